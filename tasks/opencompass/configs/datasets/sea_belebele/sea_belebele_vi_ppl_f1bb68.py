"""Belebele in Vietnamese. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Hãy làm theo các ví dụ đã cho, đọc ngữ cảnh và trả lời câu hỏi.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Bối cảnh: Ký hiệu hạt nhân được dùng để viết phương trình hạt nhân của sự phân rã phóng xạ. Hãy xem xét ví dụ về sự phân rã beta-trừ của thorium-234 thành protactinium-234. Phản ứng này được biểu diễn bằng phương trình:.
Câu hỏi: Người ta dùng gì để viết phương trình hạt nhân của sự phân rã phóng xạ?""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: ký hiệu hạt nhân\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Bối cảnh: Bất kỳ mặt hàng giảm giá nào đã mua đều có thể được trả lại để lấy tín dụng của cửa hàng nhưng không được hoàn lại giá mua. Mọi thiết bị gia dụng và mọi thiết bị làm vườn đều được giảm giá cùng với các dụng cụ xây dựng được chọn lọc.
Câu hỏi: Nếu những câu trên là đúng thì câu nào sau đây cũng phải đúng?""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: Không có thiết bị làm vườn nào được trả lại để được hoàn lại tiền.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Bối cảnh: Tôi có bảy túi. Ba túi lớn và bốn túi còn lại nhỏ. Tôi có một số quả bóng rổ và bóng chuyền. Tôi để hai quả bóng chuyền vào mỗi túi nhỏ. Và tôi để hai quả bóng rổ và hai quả bóng chuyền vào mỗi chiếc túi lớn. Số quả bóng chuyền bằng tuổi tôi.
Câu hỏi: Bóng rổ ở đâu?""",
    ),
    dict(
        role="BOT",
        prompt="Trả lời: Trong những chiếc túi lớn.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Bối cảnh: {flores_passage}
Câu hỏi: {question}""",
    ),
]
sea_belebele_vi_ppl_datasets = [
    dict(
        abbr="sea-belebele-vi-ppl",
        type=SeaDataset,
        path="belebele/vie_Latn.jsonl",
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
                                prompt="Trả lời: {mc_answer1}",
                            ),
                        ],
                    ),
                    "B": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Trả lời: {mc_answer2}",
                            ),
                        ],
                    ),
                    "C": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Trả lời: {mc_answer3}",
                            ),
                        ],
                    ),
                    "D": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Trả lời: {mc_answer4}",
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
