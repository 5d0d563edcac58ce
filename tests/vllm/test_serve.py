"""``vllm serve`` on a recipe, swapped to another and back by ``merge-plugins swap``."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness_adapters.commands.swap import main
from harness_adapters.vllm import KEY
from harness_adapters.vllm.server import Server
from harness_adapters.vllm.swap import LiveEngine
from merge_plugins import MergeError, Recipe, digest

SECRET = "not for everybody"
START = 300.0
"""Seconds in which a server must be up."""


@pytest.fixture
def server(workplace: Path, environment: dict[str, str]) -> Iterator[str]:
    """Serve the Llama's good recipe with the line of docs/serving.md; return the address."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(f"{Path(sys.executable).parent}/vllm", "serve", "dense/good", "--load-format", "merged"),
        *("--weight-transfer-config", '{"backend": "merged"}'),
        *("--middleware", "harness_adapters.vllm.guard.EveryPath"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "128", "--max-num-seqs", "4"),
    ]
    variables = {**environment, KEY: SECRET, "VLLM_SERVER_DEV_MODE": "1"}
    log = workplace / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=workplace, env=variables, stdout=output, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START
        while not is_up(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_a_running_server_is_swapped_and_swapped_back(
    server: str,
    workplace: Path,
    dense: dict[str, list[Any]],
    prompts: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By whoever has the key, when running requests have ended, and back to the same bits."""
    from openai import AuthenticationError, OpenAI

    monkeypatch.chdir(workplace)
    monkeypatch.delenv(KEY, raising=False)
    client = OpenAI(base_url=f"{server}/v1", api_key=SECRET, max_retries=0)

    def texts() -> list[str]:
        reply = client.completions.create(
            model="dense/good",
            prompt=list(prompts),
            max_tokens=8,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        return [choice.text for choice in reply.choices]

    def long() -> str:
        reply = client.completions.create(
            model="dense/good",
            prompt="one two",
            max_tokens=120,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        return reply.choices[0].text

    good, wrecked = ([text for text, _ in dense[name]] for name in ("good", "wrecked"))
    assert texts() == good
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=f"{server}/v1", api_key="guessed", max_retries=0).models.list()
    for path in ("/collective_rpc", "/pause", "/update_weight_version"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(urllib.request.Request(server + path, b"{}"))
    with pytest.raises(MergeError, match="refuses the key in VLLM_API_KEY"):
        main([server, "dense/wrecked.yaml"])

    monkeypatch.setenv(KEY, SECRET)
    before = long()
    canary = LiveEngine(Server(server, SECRET), Recipe.load("dense/good")).log_probabilities()
    with pytest.raises(MergeError, match="Do that with --verify"):
        main([server, "dense/wrecked.yaml"])
    assert texts() == good
    with ThreadPoolExecutor() as pool:
        running = pool.submit(long)
        time.sleep(0.2)  # it takes a second
        assert main([server, "dense/wrecked.yaml", "--verify"]) == 0
        assert running.result() == before
    name = digest(Recipe.load("dense/wrecked.yaml"))
    assert f"serves {name}" in capsys.readouterr().out
    assert texts() == wrecked != good
    request = urllib.request.Request(
        f"{server}/weight_info", headers={"Authorization": f"Bearer {SECRET}"}
    )
    assert json.load(urllib.request.urlopen(request)) == {"weight_version": name}

    assert main([server, "dense/good.yaml"]) == 0
    assert texts() == good
    assert long() == before
    again = LiveEngine(Server(server, SECRET), Recipe.load("dense/good")).log_probabilities()
    assert again == canary
