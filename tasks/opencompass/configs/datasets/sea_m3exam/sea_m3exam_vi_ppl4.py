"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_m3exam_vi_ppl4_2cce9b import sea_m3exam_vi_ppl4_datasets
