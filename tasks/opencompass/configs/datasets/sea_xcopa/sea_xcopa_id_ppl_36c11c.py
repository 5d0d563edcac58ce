"""XCOPA in Indonesian. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Silakan baca premis yang diberikan dan jawab pertanyaannya.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Premis: Nyala api pada lilin itu sudah padam.
Pertanyaan: Apa penyebabnya?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Saya telah tiup sumbu lilin itu.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Premis: Hakim memukul-mukulkan palunya.
Pertanyaan: Apa efeknya?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Ruang sidang menjadi penuh keributan.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Premis: Langganan saya ke majalah itu telah kedaluwarsa.
Pertanyaan: Apa efeknya?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Saya berhenti menerima terbitannya yang baru.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Premis: {premise}
Pertanyaan: Apakah yang {question}?""",
    ),
]
sea_xcopa_id_ppl_datasets = [
    dict(
        abbr="sea-xcopa-id-ppl",
        type=SeaDataset,
        path="xcopa/id_test.jsonl",
        reader_cfg=dict(
            input_columns=[
                "question",
                "premise",
                "choice1",
                "choice2",
            ],
            output_column="answer",
        ),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={
                    "0": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {choice1}",
                            ),
                        ],
                    ),
                    "1": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {choice2}",
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
