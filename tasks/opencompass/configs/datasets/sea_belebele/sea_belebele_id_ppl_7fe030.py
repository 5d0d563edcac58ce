"""Belebele in Indonesian. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import ChoiceEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Silakan ikuti contoh yang diberikan, baca konteksnya dan jawab pertanyaannya.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Konteks: Simbol nuklir digunakan untuk menulis persamaan nuklir peluruhan radioaktif. Mari kita perhatikan contoh peluruhan beta-minus dari thorium-234 menjadi protaktinium-234. Reaksi ini diwakili oleh persamaan :.
Pertanyaan: Apa yang digunakan untuk menulis persamaan nuklir peluruhan radioaktif?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: simbol nuklir\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Konteks: Barang obral apa pun yang dibeli dapat dikembalikan untuk mendapatkan kredit toko tetapi tidak untuk pengembalian uang sebesar harga pembelian. Setiap peralatan rumah tangga dan peralatan berkebun dijual bersama dengan peralatan konstruksi pilihan.
Pertanyaan: Jika pernyataan di atas benar, manakah pernyataan berikut yang juga benar?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Peralatan berkebun tidak dapat dikembalikan untuk mendapatkan pengembalian uang.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Konteks: Saya punya tujuh tas. Tiga tas berukuran besar, dan empat tas lainnya berukuran kecil. Saya punya beberapa bola basket dan bola voli. Saya memasukkan dua bola voli ke dalam setiap tas kecil. Dan saya menaruh dua bola basket dan dua bola voli di setiap tas besar. Jumlah bola voli adalah usia saya.
Pertanyaan: Dimana bola basketnya?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: Di dalam tas besar.\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Konteks: {flores_passage}
Pertanyaan: {question}""",
    ),
]
sea_belebele_id_ppl_datasets = [
    dict(
        abbr="sea-belebele-id-ppl",
        type=SeaDataset,
        path="belebele/ind_Latn.jsonl",
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
                                prompt="Jawaban: {mc_answer1}",
                            ),
                        ],
                    ),
                    "B": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {mc_answer2}",
                            ),
                        ],
                    ),
                    "C": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {mc_answer3}",
                            ),
                        ],
                    ),
                    "D": dict(
                        begin=_begin,
                        round=[
                            *_asked,
                            dict(
                                role="BOT",
                                prompt="Jawaban: {mc_answer4}",
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
