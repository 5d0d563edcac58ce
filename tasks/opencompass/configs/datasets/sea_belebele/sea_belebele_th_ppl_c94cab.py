"""Belebele in Thai. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="โปรดปฏิบัติตามตัวอย่างที่ให้มา อ่านบริบท และตอบคำถาม\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""บริบท: สัญลักษณ์นิวเคลียร์ใช้ในการเขียนสมการนิวเคลียร์สำหรับการสลายกัมมันตภาพรังสี ลองพิจารณาตัวอย่างของการสลายตัวแบบเบตาลบของทอเรียม-234 ไปเป็นโปรแทกติเนียม-234 ปฏิกิริยานี้แสดงด้วยสมการ:
คำถาม: อะไรคือสิ่งที่ใช้ในการเขียนสมการนิวเคลียร์สำหรับการสลายกัมมันตภาพรังสี?""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: สัญลักษณ์นิวเคลียร์\n",
    ),
    dict(
        role="HUMAN",
        prompt="""บริบท: สินค้าลดราคาใดๆ ที่ซื้อสามารถคืนเป็นเครดิตร้านค้าได้ แต่ไม่สามารถขอคืนเงินตามราคาที่ซื้อได้ จำหน่ายเครื่องใช้ไฟฟ้าภายในบ้านและอุปกรณ์ทำสวนทุกชิ้นพร้อมอุปกรณ์ก่อสร้างที่คัดสรร
คำถาม: หากข้อความข้างต้นเป็นจริง ข้อใดต่อไปนี้จะต้องเป็นจริงด้วย""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: ไม่มีการคืนอุปกรณ์ทำสวนเพื่อขอเงินคืน\n",
    ),
    dict(
        role="HUMAN",
        prompt="""บริบท: ฉันมีเจ็ดถุง สามถุงใหญ่และอีกสี่ถุงเล็ก ฉันมีบาสเก็ตบอลและวอลเล่ย์บอล ฉันใส่ลูกวอลเลย์บอลสองลูกไว้ในถุงเล็กแต่ละใบ และฉันใส่ลูกบาสเก็ตบอลสองลูกและลูกวอลเล่ย์บอลสองลูกไว้ในกระเป๋าใบใหญ่แต่ละใบ จำนวนวอลเล่ย์บอลคืออายุของฉัน
คำถาม: บาสเก็ตบอลอยู่ที่ไหน?""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: ในถุงใหญ่.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""บริบท: {flores_passage}
คำถาม: {question}""",
    ),
]
sea_belebele_th_ppl_datasets = [
    dict(
        abbr="sea-belebele-th-ppl",
        type=SeaDataset,
        path="belebele/tha_Thai.jsonl",
        reader_cfg=dict(
            input_columns=[
                "flores_passage",
                "question",
                "mc_answer1",
                "mc_answer2",
                "mc_answer3",
                "mc_answer4",
            ],
            output_column="answer",
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
                                prompt="คำตอบ: {mc_answer1}",
                            ),
                        ],
                    ),
                    "B": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {mc_answer2}",
                            ),
                        ],
                    ),
                    "C": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {mc_answer3}",
                            ),
                        ],
                    ),
                    "D": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="คำตอบ: {mc_answer4}",
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
