"""A few rows in the form of Sailor's files, written for these tests, and what Sailor makes of them.

The rows are ours. data/sea-prompts.json holds, for each, the first 16 digits of the SHA-256 of the
prompts that Sailor's own readers and templates make of it, and the right answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

READING = [
    {
        "title": "Rice",
        "context": "ข้าวเป็นพืชที่ปลูกใน {ทุ่ง} นา  ชาวนา 3,000 คน",
        "question": "ปลูกข้าวที่ไหน",
        "answer": "นา",
    },
    {"title": "Rice", "context": "Lúa trồng ở ruộng.", "question": "Ở đâu?", "answer": "ruộng"},
]
CAUSES = [
    {"premise": "Hujan turun.", "choice1": "Jalan basah.", "choice2": "Jalan kering.",
     "question": "effect", "label": 0, "idx": 0, "changed": False},
    {"premise": "Lampu mati.", "choice1": "Ada orang datang.", "choice2": "Listrik padam.",
     "question": "cause", "label": 1, "idx": 1, "changed": False},
]  # fmt: skip
PASSAGES = [
    {"link": "-", "question_number": 1, "flores_passage": "Kucing itu tidur di atas meja.",
     "question": "Di mana kucing?", "mc_answer1": "Di meja", "mc_answer2": "Di kursi",
     "mc_answer3": "Di 'lantai'", "mc_answer4": 'Di "atap"', "correct_answer_num": "1",
     "dialect": "-"},
    {"link": "-", "question_number": 2, "flores_passage": "Ibu membeli tiga ikan.",
     "question": "Berapa?", "mc_answer1": "Satu", "mc_answer2": "Dua", "mc_answer3": "Tiga",
     "mc_answer4": "Empat", "correct_answer_num": "3", "dialect": "-"},
]  # fmt: skip


def thai(n: int) -> list[dict[str, Any]]:
    """Two questions with n options, in Thai and in Arabic digits."""
    names = ["แดง", "เขียว", "  ขาว", "ดำ", "ฟ้า"][:n]
    return [
        {
            "question_text": "ท้องฟ้าสี {อะไร}\n$\\frac{1}{2}$",
            "answer_text": "๒",
            "options": [f"{'๑๒๓๔๕'[i]}. {name}" for i, name in enumerate(names)],
        },
        {
            "question_text": "ใบไม้สีอะไร",
            "answer_text": "1",
            "options": [f"{i}.{name}" for i, name in enumerate(names, 1)],
        },
    ]


def vietnamese(n: int) -> list[dict[str, Any]]:
    """Two questions with n options, one with a Cyrillic letter, one with a stray blank."""
    names = ["đỏ", "xanh", "trắng", "đen"][:n]
    odd = ["A . đỏ", "B, xanh", *(f"{'CD'[i]} {name}" for i, name in enumerate(names[2:]))]
    letters = "A\N{CYRILLIC CAPITAL LETTER VE}CD"
    looks_like_b = [f"{letters[i]}. {name}" for i, name in enumerate(names)]
    return [
        {"question_text": "Trời màu gì?", "answer_text": "\u0412", "options": looks_like_b},
        {"question_text": "Lá màu gì?", "answer_text": "A", "options": odd},
    ]


JAVANESE = [
    {
        "question_text": "Langit iku wernane ….",
        "answer_text": "b",
        "options": ["a. abang", "b. biru", "c. ijo", "d.  ireng"],
    },
    {
        "question_text": "Godhong iku wernane . . .",
        "answer_text": "C",
        "options": ["A. abang", "B. biru", "C. ijo", "D. ireng"],
    },
]
FILES: dict[str, list[dict[str, Any]]] = {
    "xquad/xquad_th.json": READING,
    "xquad/xquad_vi.json": READING,
    "tydiqa_id/validation.jsonl": [{**row, "answer": [row["answer"], "x"]} for row in READING],
    "xcopa/th_test.jsonl": CAUSES,
    "xcopa/id_test.jsonl": CAUSES,
    "xcopa/vi_test.jsonl": CAUSES,
    "belebele/tha_Thai.jsonl": PASSAGES,
    "belebele/ind_Latn.jsonl": PASSAGES,
    "belebele/vie_Latn.jsonl": PASSAGES,
    "m3exam/javanese-questions-test.json": JAVANESE,
    "m3exam/thai-questions-test.json": thai(5) + thai(4),
    "m3exam/thai-questions-test-2.json": [*thai(2), thai(2)[1]],
    "m3exam/thai-questions-test-4.json": thai(4),
    "m3exam/thai-questions-test-5.json": thai(5),
    "m3exam/vietnamese-questions-test.json": vietnamese(4) + vietnamese(3),
    "m3exam/vietnamese-questions-test-2.json": vietnamese(2),
    "m3exam/vietnamese-questions-test-3.json": vietnamese(3),
    "m3exam/vietnamese-questions-test-4.json": vietnamese(4),
}


def write(folder: Path) -> Path:
    """Write the files as MERGE_PLUGINS_DATA wants them; return the folder for that variable."""
    for name, rows in FILES.items():
        file = folder / "sea" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        whole = json.dumps(rows, ensure_ascii=False)
        file.write_text(whole if "m3exam" in name else lines, encoding="utf-8")
    return folder
