"""XCOPA in Vietnamese. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Hãy đọc tiền đề đã cho và trả lời câu hỏi.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Tiền đề: Người đàn ông uống rất nhiều trong bữa tiệc.
Câu hỏi: Hiệu quả là gì?""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: Anh ấy bị đau đầu vào ngày hôm sau.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Tiền đề: Người chơi đã bắt được bóng.
Câu hỏi: Nguyên nhân là gì?""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: Đồng đội của cô ấy đã ném cho cô.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Tiền đề: Thư ký nói người gọi đợi.
Câu hỏi: Hiệu quả là gì?""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: Người gọi chờ.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Tiền đề: {premise}
Câu hỏi: cái gì là {question}?""",
    ),
]
sea_xcopa_vi_ppl_datasets = [
    dict(
        abbr="sea-xcopa-vi-ppl",
        type=SeaDataset,
        path="xcopa/vi_test.jsonl",
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
                                prompt="Trả lời: {choice1}",
                            ),
                        ],
                    ),
                    "1": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Trả lời: {choice2}",
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
