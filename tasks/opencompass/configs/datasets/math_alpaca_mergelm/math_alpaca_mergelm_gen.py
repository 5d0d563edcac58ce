from mmengine.config import read_base

with read_base():
    from .math_alpaca_mergelm_gen_f293d4 import math_alpaca_mergelm_datasets
