"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_tydiqa_id_gen_0e9309 import sea_tydiqa_id_datasets
