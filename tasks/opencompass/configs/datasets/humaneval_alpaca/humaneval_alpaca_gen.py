from mmengine.config import read_base

with read_base():
    from .humaneval_alpaca_gen_6278f6 import humaneval_alpaca_datasets
