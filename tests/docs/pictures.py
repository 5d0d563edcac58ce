"""Make the pictures of docs/ anew: python tests/docs/pictures.py, two minutes on two cores.

Each is what a command draws of the demo's models.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from readme import README, run_here

from harness_adapters.commands import search_demo
from merge_plugins.demo import MODELS

DOCS = README.parent / "docs"
PICTURES = {
    "compare.png": "compare.png",
    "pictures/density.png": "density.png",
    "pictures/radar.png": "radar.png",
    "pictures/methods.png": "methods.png",
    "pictures/course.png": "found/course.png",
    "pictures/parameters.png": "found/parameters.png",
    "pictures/importances.png": "found/importances.png",
    "pictures/contour.png": "found/contour.png",
}
"""Pictures of docs/, each with the file that the commands below write."""
EXPERTS = "models=family/math+family/code+family/sea"
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1)
METHODS = {
    "average_merging": "",
    "model_stock": ",base=family/base",
    "task_arithmetic": ",base=family/base,lambda=0.5",
    "dare_ties": ",base=family/base,weights=0.5,density=0.8",
    "iso_c": ",base=family/base,lambda=1.5",
    "consensus": ",base=family/base,lambda=0.7,mask_lambda=0.2",
}
TASKS = "merge_demo_math merge_demo_code merge_demo_sea"


def commands() -> Iterator[str]:
    """The commands that draw, and those that score what they draw."""
    yield (
        "merge-plugins compare family/math family/code family/sea --base family/base "
        "--plot compare.png"
    )
    for name in ("base", "math", "code", "sea"):
        yield scored("hf", f"pretrained=family/{name}", "alone")
    for density in DENSITIES:
        given = f"method=ties,base=family/base,{EXPERTS},weights=1,density={density}"
        yield scored("merged", given, "sweep")
    for method, given in METHODS.items():
        yield scored("merged", f"method={method},{EXPERTS}{given}", "alone")
    report = f"merge-plugins report {{}} --tasks {TASKS} --plot {{}}"
    yield report.format("alone sweep --only ties", "density.png")
    yield report.format("alone --only base math code sea task_arithmetic model_stock", "radar.png")
    yield report.format("alone --kind heatmap", "methods.png")
    yield "merge-plugins search search.yaml found"


def scored(model: str, arguments: str, folder: str) -> str:
    """A command that scores a model on the demo's questions; its results go to the folder."""
    return (
        f"lm_eval --model {model} --model_args {arguments},dtype=float32 --tasks merge_demo "
        f"--device cpu --batch_size 64 --output_path {folder}"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(MODELS, folder / "family")
        content = search_demo.content()
        (folder / "search.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        for command in commands():
            print("$", command, file=sys.stderr, flush=True)
            run_here(command, folder)
        (DOCS / "pictures").mkdir(exist_ok=True)
        for picture, file in PICTURES.items():
            shutil.copyfile(folder / file, DOCS / picture)


if __name__ == "__main__":
    main()
