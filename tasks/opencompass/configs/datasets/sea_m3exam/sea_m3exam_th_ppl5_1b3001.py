"""M3Exam in Thai. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="โปรดปฏิบัติตามตัวอย่างที่ให้มาและตอบคำถาม\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="คำถาม: ข้อใดเป็นหน้าที่ของพลเมืองไทยทุกคน",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: เคารพกฎหมาย\n",
    ),
    dict(
        role="HUMAN",
        prompt="คำถาม: บุคคลในข้อใดจัดเป็นอภัพพบุคคล ประเภทบุคคลที่ห้ามอุปสมบทแบบเด็ดขาด",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: คนมีเพศบกพร่อง\n",
    ),
    dict(
        role="HUMAN",
        prompt="คำถาม: ซื้อน้ำผลไม้ 9 กล่อง ราคากล่องละ 60.50 บาท จะต้องจ่ายเงินทั้งหมดกี่บาท",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: 544.50\n",
    ),
    dict(
        role="HUMAN",
        prompt="คำถาม: {question_text}",
    ),
]
sea_m3exam_th_ppl5_datasets = [
    dict(
        abbr="sea-m3exam-th-ppl5",
        type=SeaDataset,
        path="m3exam/thai-questions-test-5.json",
        reader_cfg=dict(
            input_columns=[
                "question_text",
                "options_0",
                "options_1",
                "options_2",
                "options_3",
                "options_4",
            ],
            output_column="answer",
        ),
        infer_cfg=dict(
            prompt_template=dict(
                type=PromptTemplate,
                template={
                    "1": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {options_0}",
                            ),
                        ],
                    ),
                    "2": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {options_1}",
                            ),
                        ],
                    ),
                    "3": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {options_2}",
                            ),
                        ],
                    ),
                    "4": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {options_3}",
                            ),
                        ],
                    ),
                    "5": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {options_4}",
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
