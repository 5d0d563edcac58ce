"""XCOPA in Thai. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="โปรดอ่านหลักฐานที่ให้ไว้และตอบคำถาม\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""สถานที่: หมาเห่า
คำถาม: ผลกระทบคืออะไร?""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: มีคนเคาะประตู\n",
    ),
    dict(
        role="HUMAN",
        prompt="""สถานที่: ผู้หญิงติดต่อนายหน้าอสังหาริมทรัพย์
คำถาม: ผลกระทบคืออะไร?""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: ผู้หญิงวางแผนที่จะซื้อคอนโด\n",
    ),
    dict(
        role="HUMAN",
        prompt="""สถานที่: ผู้หญิงขอให้ผู้ชายออกไป
คำถาม: ผลกระทบคืออะไร?""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: เขาสบประมาทผู้หญิง\n",
    ),
    dict(
        role="HUMAN",
        prompt="""สถานที่: {premise}
คำถาม: อะไรคือ {question}?""",
    ),
]
sea_xcopa_th_ppl_datasets = [
    dict(
        abbr="sea-xcopa-th-ppl",
        type=SeaDataset,
        path="xcopa/th_test.jsonl",
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
                                prompt="คำตอบ: {choice1}",
                            ),
                        ],
                    ),
                    "1": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {choice2}",
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
