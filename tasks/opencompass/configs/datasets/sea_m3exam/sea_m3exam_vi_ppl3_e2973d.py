"""M3Exam in Vietnamese. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Hãy làm theo các ví dụ đã cho và trả lời câu hỏi.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="Câu hỏi: Trong các câu sau đây, câu nào không chứa thành phần tình thái?",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: Trời ơi, chỉ còn năm phút.\n",
    ),
    dict(
        role="HUMAN",
        prompt="Câu hỏi: Hỗn số $5\\frac{3}{5}$ được viết dưới dạng phân số là:",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: $28/5$\n",
    ),
    dict(
        role="HUMAN",
        prompt='Câu hỏi: Xét về cấu tạo ngữ pháp, câu “Tác phẩm vừa là kết tinh của tâm hồn người sáng tác, vừa là sợi dây truyền cho mọi người sự sống mà nghệ sĩ mang trong lòng" (Nguyễn Đình Thi Tiếng nói của văn nghệ) thuộc kiểu câu nào?',
    ),
    dict(
        role="BOT",
        prompt="Trả lời: Câu đơn.\n",
    ),
    dict(
        role="HUMAN",
        prompt="Câu hỏi: {question_text}",
    ),
]
sea_m3exam_vi_ppl3_datasets = [
    dict(
        abbr="sea-m3exam-vi-ppl3",
        type=SeaDataset,
        path="m3exam/vietnamese-questions-test-3.json",
        reader_cfg=dict(
            input_columns=[
                "question_text",
                "options_0",
                "options_1",
                "options_2",
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
                                prompt="Trả lời: {options_0}",
                            ),
                        ],
                    ),
                    "B": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Trả lời: {options_1}",
                            ),
                        ],
                    ),
                    "C": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Trả lời: {options_2}",
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
