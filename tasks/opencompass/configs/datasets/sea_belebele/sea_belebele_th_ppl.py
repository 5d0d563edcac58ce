"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_belebele_th_ppl_c94cab import sea_belebele_th_ppl_datasets
