from mmengine.config import read_base

with read_base():
    from .gsm8k_alpaca_mergelm_gen_a8145d import gsm8k_alpaca_mergelm_datasets
