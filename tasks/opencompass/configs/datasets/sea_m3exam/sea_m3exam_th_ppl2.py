"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_m3exam_th_ppl2_417f51 import sea_m3exam_th_ppl2_datasets
