"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_m3exam_vi_ppl3_e2973d import sea_m3exam_vi_ppl3_datasets
