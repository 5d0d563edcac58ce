"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from .sea_xquad_th_gen_c6559b import sea_xquad_th_datasets
