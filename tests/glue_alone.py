"""Let lm-eval know its own GLUE and our tasks alone: all of its files take 12 s to read."""

from __future__ import annotations

from pathlib import Path

import lm_eval.tasks

GLUE = Path(lm_eval.tasks.__file__).parent / "glue"
FEWER = f"""
from lm_eval.tasks import TaskManager
from harness_adapters.lm_eval.discovery import task_folders

init = TaskManager.__init__

def fewer(self, *args, **options):
    options |= {{"include_path": [{str(GLUE)!r}, *task_folders()], "include_defaults": False}}
    init(self, *args, **options)

TaskManager.__init__ = fewer
"""
"""Code that lets lm-eval know its GLUE and our tasks alone."""
