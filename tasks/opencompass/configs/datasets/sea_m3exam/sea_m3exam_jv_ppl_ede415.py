"""M3Exam in Javanese. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Mangga tindakake conto diwenehi lan wangsulana pitakonan.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Pertanyaan: Pak Untung iku sabendinane lunga menyang sanggar saperlu mimpin lan ngatur lumakune crita drama

Miturut wacan ing inggil, pendamelan (penggawean) pak Untung dados""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Sutradara\n",
    ),
    dict(
        role="HUMAN",
        prompt="Pertanyaan: Godhong Gedhang Garing Diarani",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Klaras\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Pertanyaan: Pandu iku yen lagi main drama mesti dadi wong sing becik, seneng mbiyantu lan sabar.

Saking pranyatan ing inggil, Pandu niku minangka paraga""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Protagonis\n",
    ),
    dict(
        role="HUMAN",
        prompt="Pertanyaan: {question_text}",
    ),
]
sea_m3exam_jv_ppl_datasets = [
    dict(
        abbr="sea-m3exam-jv-ppl",
        type=SeaDataset,
        path="m3exam/javanese-questions-test.json",
        reader_cfg=dict(
            input_columns=[
                "question_text",
                "options_0",
                "options_1",
                "options_2",
                "options_3",
            ],
            output_column="answer_text",
        ),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={
                    "A": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {options_0}",
                            ),
                        ],
                    ),
                    "B": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {options_1}",
                            ),
                        ],
                    ),
                    "C": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {options_2}",
                            ),
                        ],
                    ),
                    "D": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {options_3}",
                            ),
                        ],
                    ),
                },
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(
                type=PPLInferencer,
                generation_kwargs=dict(do_sample=False),
            ),
        ),
        eval_cfg=dict(
            evaluator=dict(type=ChoiceEvaluator),
            pred_role="BOT",
        ),
    ),
]
