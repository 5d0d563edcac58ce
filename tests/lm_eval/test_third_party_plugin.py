"""Somebody else's merge method, in a distribution of its own, used from lm-eval."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

PLUGIN = Path(__file__).parents[1] / "sample_plugins" / "merge-median"


def test_an_installed_plugin_is_a_method_of_lm_eval(
    command, evaluate, family, fewer_tasks, tmp_path
):
    site = tmp_path / "site"
    source = shutil.copytree(PLUGIN, tmp_path / "source")
    install = ("pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, *install, "--python", sys.executable, "--target", site, source], check=True)

    folders = (family.base, family.math, family.code)
    arguments = ("--model_args", f"method=median,models={'+'.join(folders)}", "--device", "cpu")
    tasks = ("--tasks", "tiny_choice,tiny_generate,tiny_rolling")
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    lm_eval = fewer_tasks("from lm_eval.__main__ import cli_evaluate\ncli_evaluate()\n")
    merged = command("python", lm_eval, "--model", "merged", *arguments, *tasks, PYTHONPATH=path)

    models = [LlamaForCausalLM.from_pretrained(folder) for folder in folders]
    states = [model.state_dict() for model in models]
    median = {
        name: torch.stack([state[name] for state in states]).median(dim=0).values
        for name in states[0]
    }
    models[0].load_state_dict(median)
    folder = tmp_path / "median"
    shutil.copytree(family.base, folder)
    models[0].save_pretrained(folder)
    assert merged.answers == evaluate("hf", {"pretrained": str(folder)}).answers
