"""M3Exam in Javanese. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import LetterEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Ing ngisor iki minangka pitakonan pilihan ganda, mangga mung menehi pilihan sing bener, tanpa rincian utawa panjelasan liyane.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Pertanyaan: Pak Untung iku sabendinane lunga menyang sanggar saperlu mimpin lan ngatur lumakune crita drama

Miturut wacan ing inggil, pendamelan (penggawean) pak Untung dados ….
A. Aktor
B. Penulis
C. Pelawak
D. Sutradara""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: D\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Pertanyaan: Godhong Gedhang Garing Diarani ....
A. Dliring
B. Kajang
C. Klaras
D. Procot""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: C\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Pertanyaan: Pandu iku yen lagi main drama mesti dadi wong sing becik, seneng mbiyantu lan sabar.

Saking pranyatan ing inggil, Pandu niku minangka paraga ....
A. Prolog
B. Epilog
C. Antagonis
D. Protagonis""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: D\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Pertanyaan: {question_text}
{full_options}""",
    ),
]
sea_m3exam_jv_datasets = [
    dict(
        abbr="sea-m3exam-jv",
        type=SeaDataset,
        path="m3exam/javanese-questions-test.json",
        reader_cfg=dict(
            input_columns=[
                "question_text",
                "full_options",
            ],
            output_column="answer_text",
        ),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template=dict(
                    begin=_begin,
                    round=[
                        *_asked,
                        dict(
                            role="BOT",
                            prompt="Jawaban:",
                        ),
                    ],
                ),
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(
                type=GenInferencer,
                generation_kwargs=dict(do_sample=False),
                max_out_len=10,
            ),
        ),
        eval_cfg=dict(
            evaluator=dict(type=LetterEvaluator),
            pred_role="BOT",
        ),
    ),
]
