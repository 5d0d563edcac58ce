"""The files of both harnesses are what one table makes, and what it makes is Sailor's suite."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness_adapters.tasks.sea import generate, opencompass_configs
from harness_adapters.tasks.sea.suite import SUITE, pieces

PROTOCOL = Path(__file__).parents[3] / "shared" / "data" / "sea_protocol.json"
HASHES = {
    "sea_xquad_th_gen": "c6559b",
    "sea_xquad_vi_gen": "b940c8",
    "sea_tydiqa_id_gen": "0e9309",
    "sea_xcopa_th_ppl": "8443d3",
    "sea_xcopa_id_ppl": "36c11c",
    "sea_xcopa_vi_ppl": "ac5ef3",
    "sea_belebele_th_ppl": "c94cab",
    "sea_belebele_id_ppl": "7fe030",
    "sea_belebele_vi_ppl": "f1bb68",
    "sea_m3exam_jv_gen": "192605",
    "sea_m3exam_th_gen": "5891a0",
    "sea_m3exam_vi_gen": "066f1f",
    "sea_m3exam_jv_ppl": "ede415",
    "sea_m3exam_th_ppl2": "417f51",
    "sea_m3exam_th_ppl4": "24e663",
    "sea_m3exam_th_ppl5": "1b3001",
    "sea_m3exam_vi_ppl2": "a31ccc",
    "sea_m3exam_vi_ppl3": "e2973d",
    "sea_m3exam_vi_ppl4": "2cce9b",
}
"""What OpenCompass's `get_prompt_hash` says of Sailor's own configs: every word of a prompt, and
how it is asked, is in these."""


def test_every_prompt_is_sailors():
    made = {config.opencompass: opencompass_configs.prompt_hash(config)[:6] for config in SUITE}
    assert made == HASHES


def test_files_are_what_the_generator_makes():
    for file, text in generate.files().items():
        assert file.read_text(encoding="utf-8") == text, f"run python {generate.__file__}"


def test_there_are_no_other_files():
    folder = generate.CONFIGS / "datasets"
    there = {*generate.HERE.glob("*.yaml"), *folder.glob("sea_*/*.py")}
    assert there <= generate.files().keys()


def test_a_change_of_wording_is_a_new_version(monkeypatch):
    config = SUITE[0]
    before = opencompass_configs.prompt_hash(config)
    monkeypatch.setitem(config.prompt, "label", "ตอบ:")
    assert opencompass_configs.prompt_hash(config) != before


def test_configs_of_opencompass_import_only_what_it_can_dump():
    """Anything else, the standard library included, fails in some environments."""
    for file, text in generate.files().items():
        if file.suffix == ".py":
            found = re.findall(r"^ *(?:from|import) (\S+)", text, flags=re.MULTILINE)
            ours = ("opencompass.", "mmengine.config", "harness_adapters.tasks.opencompass.", ".")
            assert all(module.startswith(ours) for module in found)
            compile(text, file, "exec")


@pytest.mark.skipif(not PROTOCOL.is_file(), reason="the protocol is not beside this checkout")
def test_configs_are_those_of_the_protocol():
    protocol = {name.rpartition("_")[0]: config for name, config in read().items()}
    assert len(protocol) == len(SUITE)
    for config in SUITE:
        theirs = protocol[config.opencompass.removeprefix("sea_").removesuffix("_gen")]
        ours = opencompass_configs.infer_cfg(config)
        assert without_modules(ours) == theirs["infer_cfg"]
        assert [*config.columns] == theirs["reader_cfg"]["input_columns"]
        assert config.answer == theirs["reader_cfg"]["output_column"]
        assert f"./data/{config.file}" == theirs["path"]
        template = theirs["infer_cfg"]["prompt_template"]["template"]
        first = template if "begin" in template else next(iter(template.values()))
        answer = f"{{{config.choices[0]}}}" if config.choices else ""
        said = [message["prompt"] for message in first["begin"] + first["round"]]
        assert pieces(config.prompt, answer) == said


def read():
    (protocol,) = [json.loads(PROTOCOL.read_text(encoding="utf-8"))]
    return {name: config for name, (config,) in protocol.items()}


def without_modules(value):
    if isinstance(value, dict):
        kept = {key: without_modules(part) for key, part in value.items()}
        return {**kept, "type": kept["type"].rpartition(".")[2]} if "type" in kept else kept
    return [without_modules(part) for part in value] if isinstance(value, list) else value
