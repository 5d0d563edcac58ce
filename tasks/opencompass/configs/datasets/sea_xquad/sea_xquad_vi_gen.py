"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_xquad_vi_gen_b940c8 import sea_xquad_vi_datasets
