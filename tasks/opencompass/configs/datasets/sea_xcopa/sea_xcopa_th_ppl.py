"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_xcopa_th_ppl_8443d3 import sea_xcopa_th_ppl_datasets
