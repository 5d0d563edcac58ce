"""Time a merge of mergekit without its imports: run by the Python of its own venv.

    venv/bin/python benchmarks/mergekit_merge.py RECIPE FOLDER

What mergekit-yaml does with its default options, called through mergekit's documented Python
interface; prints seconds and CPU seconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import mergekit.scripts.run_yaml  # noqa: F401 - imports what a merge would while it is timed
import transformers.models.llama.modeling_llama  # noqa: F401
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

if __name__ == "__main__":
    recipe = MergeConfiguration.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
    start, busy = time.perf_counter(), time.process_time()
    run_merge(recipe, sys.argv[2], options=MergeOptions())
    alone = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    print(json.dumps(alone))
