"""Made by tasks/sea/generate.py."""

from mmengine.config import read_base

with read_base():
    from ..datasets.sea_belebele.sea_belebele_id_ppl import sea_belebele_id_ppl_datasets
    from ..datasets.sea_belebele.sea_belebele_th_ppl import sea_belebele_th_ppl_datasets
    from ..datasets.sea_belebele.sea_belebele_vi_ppl import sea_belebele_vi_ppl_datasets
    from ..datasets.sea_m3exam.sea_m3exam_jv_gen import sea_m3exam_jv_datasets
    from ..datasets.sea_m3exam.sea_m3exam_jv_ppl import sea_m3exam_jv_ppl_datasets
    from ..datasets.sea_m3exam.sea_m3exam_th_gen import sea_m3exam_th_datasets
    from ..datasets.sea_m3exam.sea_m3exam_th_ppl2 import sea_m3exam_th_ppl2_datasets
    from ..datasets.sea_m3exam.sea_m3exam_th_ppl4 import sea_m3exam_th_ppl4_datasets
    from ..datasets.sea_m3exam.sea_m3exam_th_ppl5 import sea_m3exam_th_ppl5_datasets
    from ..datasets.sea_m3exam.sea_m3exam_vi_gen import sea_m3exam_vi_datasets
    from ..datasets.sea_m3exam.sea_m3exam_vi_ppl2 import sea_m3exam_vi_ppl2_datasets
    from ..datasets.sea_m3exam.sea_m3exam_vi_ppl3 import sea_m3exam_vi_ppl3_datasets
    from ..datasets.sea_m3exam.sea_m3exam_vi_ppl4 import sea_m3exam_vi_ppl4_datasets
    from ..datasets.sea_tydiqa.sea_tydiqa_id_gen import sea_tydiqa_id_datasets
    from ..datasets.sea_xcopa.sea_xcopa_id_ppl import sea_xcopa_id_ppl_datasets
    from ..datasets.sea_xcopa.sea_xcopa_th_ppl import sea_xcopa_th_ppl_datasets
    from ..datasets.sea_xcopa.sea_xcopa_vi_ppl import sea_xcopa_vi_ppl_datasets
    from ..datasets.sea_xquad.sea_xquad_th_gen import sea_xquad_th_datasets
    from ..datasets.sea_xquad.sea_xquad_vi_gen import sea_xquad_vi_datasets

datasets = [
    *sea_xquad_th_datasets,
    *sea_xquad_vi_datasets,
    *sea_tydiqa_id_datasets,
    *sea_xcopa_th_ppl_datasets,
    *sea_xcopa_id_ppl_datasets,
    *sea_xcopa_vi_ppl_datasets,
    *sea_belebele_th_ppl_datasets,
    *sea_belebele_id_ppl_datasets,
    *sea_belebele_vi_ppl_datasets,
    *sea_m3exam_jv_datasets,
    *sea_m3exam_th_datasets,
    *sea_m3exam_vi_datasets,
    *sea_m3exam_jv_ppl_datasets,
    *sea_m3exam_th_ppl2_datasets,
    *sea_m3exam_th_ppl4_datasets,
    *sea_m3exam_th_ppl5_datasets,
    *sea_m3exam_vi_ppl2_datasets,
    *sea_m3exam_vi_ppl3_datasets,
    *sea_m3exam_vi_ppl4_datasets,
]
