"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_m3exam_vi_gen_066f1f import sea_m3exam_vi_datasets
