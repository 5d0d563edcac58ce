"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_xcopa_id_ppl_36c11c import sea_xcopa_id_ppl_datasets
