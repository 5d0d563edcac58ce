"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_m3exam_th_ppl4_24e663 import sea_m3exam_th_ppl4_datasets
