"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_xcopa_vi_ppl_ac5ef3 import sea_xcopa_vi_ppl_datasets
