"""M3Exam in Vietnamese. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import LetterEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Sau đây là những câu hỏi trắc nghiệm, vui lòng chỉ đưa ra phương án đúng, không kèm theo bất kỳ chi tiết hay giải thích nào khác.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Câu hỏi: Trong các câu sau đây, câu nào không chứa thành phần tình thái?
A. Nhiều mây đấy.
B. Trời ơi, chỉ còn năm phút.
C. Đêm khuya, chó sủa nhiều chắc là có trộm.
D. Hình như thu đã về.""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: B\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Câu hỏi: Hỗn số $5\\frac{3}{5}$ được viết dưới dạng phân số là:
A. $21/5$
B. $25/3$
C. $13/10$
D. $28/5$""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: D\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Câu hỏi: Xét về cấu tạo ngữ pháp, câu “Tác phẩm vừa là kết tinh của tâm hồn người sáng tác, vừa là sợi dây truyền cho mọi người sự sống mà nghệ sĩ mang trong lòng" (Nguyễn Đình Thi Tiếng nói của văn nghệ) thuộc kiểu câu nào?
A. Câu đơn.
B. Câu ghép.
C. Câu đặc biệt.
D. Câu rút gọn.""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: A\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Câu hỏi: {question_text}
{full_options}""",
    ),
]
sea_m3exam_vi_datasets = [
    dict(
        abbr="sea-m3exam-vi",
        type=SeaDataset,
        path="m3exam/vietnamese-questions-test.json",
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
                            prompt="Trả lời:",
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
