"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_belebele_vi_ppl_f1bb68 import sea_belebele_vi_ppl_datasets
