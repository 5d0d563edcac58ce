"""Turn a running vLLM server into another merge: `merge-plugins swap`.

The server is ``vllm serve`` with the load format and the weight transfer ``merged``, in
VLLM_SERVER_DEV_MODE=1; docs/serving.md has the line. Everything goes through its own endpoints.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from harness_adapters.vllm import KEY
from harness_adapters.vllm.server import Server
from merge_plugins.cli import takes
from merge_plugins.cli.arguments import add_plugin


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("url", metavar="URL", help="of the server: http://127.0.0.1:8000")
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a file, or a recipe folder")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check, the first time for this kind of server, that a swap is right; for some "
        "seconds the server holds other weights, so nobody else may send requests",
    )
    parser.add_argument(
        "--serving",
        type=Path,
        metavar="RECIPE",
        help="what the server holds now; default: the recipe folder that it was started with",
    )
    add_plugin(parser)


@takes(_arguments, group="merges")
def main(options: argparse.Namespace) -> int:
    """Turn a running vLLM server into another merge, verified."""
    server = Server(options.url, os.environ.get(KEY))
    started = time.monotonic()
    name = _swap(server, options)
    print(f"{server.place} serves {name}, {time.monotonic() - started:.1f} s later")
    return 0


def _swap(server: Server, options: argparse.Namespace) -> str:
    from harness_adapters.vllm.swap import LiveEngine
    from merge_plugins import Recipe, digest  # torch and transformers, for which --help cannot wait
    from merge_plugins.plugins import load_plugins

    load_plugins(options.plugin)
    recipe, serving = Recipe.load(options.recipe), Recipe.load(options.serving or server.folder)
    LiveEngine(server, serving).become(recipe, verify=options.verify)
    return digest(recipe)
