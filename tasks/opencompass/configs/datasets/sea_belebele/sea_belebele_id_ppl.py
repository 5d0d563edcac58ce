"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_belebele_id_ppl_7fe030 import sea_belebele_id_ppl_datasets
