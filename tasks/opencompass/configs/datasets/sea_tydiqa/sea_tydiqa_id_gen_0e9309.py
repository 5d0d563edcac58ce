"""TyDiQA in Indonesian. Made by tasks/sea/generate.py."""

from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

from harness_adapters.tasks.opencompass.sea import AnyAnswerEvaluator, SeaDataset

_begin = [
    dict(
        role="SYSTEM",
        fallback_role="HUMAN",
        prompt="Baca konteks yang diberikan dan jawab pertanyaannya. Tanggapan Anda harus dalam bahasa Indonesia dan sesederhana mungkin.\n",
    ),
]
_asked = [
    dict(
        role="HUMAN",
        prompt="""Konteks: Komposisi tubuh dapat dianalisis dalam hal jenis molekulnya, misalnya, air, protein, jaringan ikat, lemak (atau lipida), hidroksilapatit (dalam tulang), karbohidrat (seperti glikogen dan glukosa) dan DNA. Sesuai jenis jaringannya, tubuh dapat dianalisis menjadi air, lemak, otot, tulang, dll. Menurut jenis selnya, tubuh mengandung ratusan jenis sel, tetapi tercatat jumlah sel paling banyak yang dikandung dalam tubuh manusia (meski bukan massa sel terbesar) bukan sel manusia, tetapi bakteri yang berada dalam saluran pencernaan manusia normal.
Pertanyaan: Ada berapa banyak sel dalam tubuh manusia?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: ratusan jenis sel\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Konteks: Restoran pertama Burger King dinamai Insta Burger King dan dibuka pada tahun 1954 di Miami, Florida, Amerika Serikat oleh James McLamore dan David Edgerton, keduanya adalah alumni dari Cornell University School of Hotel Administration.
Pertanyaan: Siapakah pendiri Burger King?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: James McLamore dan David Edgerton\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Konteks: Love Nikki-Dress Up Queen atau dikenal di Indonesia sebagai Love Nikki-Dress Up Fantasy atau menyebut Miracle Nikki, adalah permainan video berbasis ponsel yang dibuat oleh SuZhou Nikki Co. dan diterbitkan oleh Elex Technology. Premis dari permainan ini adalah untuk menata karakter utama Nikki dan menantang NPC dan pemain dalam gaya duel, di mana peserta dengan selera mode terbaik dan pemenang yang paling relevan.
Pertanyaan: siapakah pencipta game Love Nikki-Dress Up Queen?""",
    ),
    dict(
        role="BOT",
        prompt="Jawaban: SuZhou Nikki Co\n",
    ),
    dict(
        role="HUMAN",
        prompt="""Konteks: {context}
Pertanyaan: {question}""",
    ),
]
sea_tydiqa_id_datasets = [
    dict(
        abbr="sea-tydiqa-id",
        type=SeaDataset,
        path="tydiqa_id/validation.jsonl",
        reader_cfg=dict(
            input_columns=[
                "context",
                "question",
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
                            prompt="Jawaban:",
                        ),
                    ],
                ),
            ),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(
                type=GenInferencer,
                generation_kwargs=dict(do_sample=False),
                batch_size=4,
                max_out_len=100,
            ),
        ),
        eval_cfg=dict(
            evaluator=dict(type=AnyAnswerEvaluator),
            pred_role="BOT",
        ),
    ),
]
