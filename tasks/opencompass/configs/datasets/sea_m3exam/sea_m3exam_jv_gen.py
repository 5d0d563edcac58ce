"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_m3exam_jv_gen_192605 import sea_m3exam_jv_datasets
