from mmengine.config import read_base

with read_base():
    from .mbpp_alpaca_gen_6278f6 import mbpp_alpaca_datasets
