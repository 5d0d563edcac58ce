"""M3Exam in Thai. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import DigitEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="ต่อไปนี้เป็นคำถามแบบปรนัย โปรดระบุเฉพาะตัวเลือกที่ถูกต้องเท่านั้น โดยไม่มีรายละเอียดหรือคำอธิบายอื่นใด\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""คำถาม: ข้อใดเป็นหน้าที่ของพลเมืองไทยทุกคน
๑. เคารพกฎหมาย
๒. แก้ปัญหาของประเทศ
๓. ลงคะแนนเสียงเลือกตั้ง
๔. เสียภาษีเงินได้บุคคลธรรมดา""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: ๑\n",
    ),
    dict(
        role="HUMAN",
        prompt="""คำถาม: บุคคลในข้อใดจัดเป็นอภัพพบุคคล ประเภทบุคคลที่ห้ามอุปสมบทแบบเด็ดขาด
1. คนมีเพศบกพร่อง
2. คนไม่มีอุปัชฌาย์
3. คนยืมบาตรเขามา
4. คนที่ไม่มีบาตรและจีวร
5. คนที่ถือเอาสงฆ์เป็นอุปัชฌาย์""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: 1\n",
    ),
    dict(
        role="HUMAN",
        prompt="""คำถาม: ซื้อน้ำผลไม้ 9 กล่อง ราคากล่องละ 60.50 บาท จะต้องจ่ายเงินทั้งหมดกี่บาท
1. 455.40
2. 540.50
3. 544.50
4. 594.45""",
    ),
    dict(
        role="BOT",
        prompt="คำตอบ: 3\n",
    ),
    dict(
        role="HUMAN",
        prompt="""คำถาม: {question_text}
{full_options}""",
    ),
]
sea_m3exam_th_datasets = [
    dict(
        abbr="sea-m3exam-th",
        type=SeaDataset,
        path="m3exam/thai-questions-test.json",
        reader_cfg=dict(
            input_columns=[
                "question_text",
                "full_options",
            ],
            output_column="answer",
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
                            prompt="คำตอบ:",
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
            evaluator=dict(type=DigitEvaluator),
            pred_role="BOT",
        ),
    ),
]
