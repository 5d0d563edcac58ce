"""The start-up hook: readable, out of the way, and harmless whatever happens around it."""

from __future__ import annotations

from pathlib import Path

import pytest

HOOK = Path(__file__).parents[2] / "harness_adapters" / "_startup"
MODELS = "from lm_eval.api.registry import MODEL_REGISTRY; import lm_eval.models\n"
NATIVE_MODELS = "from lm_eval.api import registry; registry.load_plugins = None\n"
NATIVE_TASKS = """
from importlib.machinery import SourceFileLoader
run = SourceFileLoader.exec_module
def exec_module(self, module):
    run(self, module)
    if module.__name__ == "lm_eval.tasks.manager":
        module.discover_plugin_task_paths = None
SourceFileLoader.exec_module = exec_module
"""
FINDERS = "import sys, _merge_plugins_lm_eval as ours; print(ours in sys.meta_path)"


def test_the_pth_file_is_one_readable_import():
    (line,) = (HOOK / "merge-plugins-lm-eval.pth").read_text().splitlines()
    assert line == "import _merge_plugins_lm_eval; _merge_plugins_lm_eval.watch()"


def test_the_start_file_names_the_same_function():
    assert (HOOK / "merge-plugins-lm-eval.start").read_text() == "_merge_plugins_lm_eval:watch\n"


def test_nothing_but_the_stub_is_imported_at_start(installed):
    ours = "[n for n in sys.modules if 'merge' in n or 'harness' in n or n == 'lm_eval']"
    assert installed(f"import sys; print({ours})") == "['_merge_plugins_lm_eval']"


def test_the_off_switch_leaves_no_finder(installed):
    assert installed(FINDERS) == "True"
    assert installed(FINDERS, MERGE_PLUGINS_NO_LM_EVAL="1") == "False"


def test_the_finder_goes_once_both_modules_are_there(installed):
    assert installed(f"{MODELS}import lm_eval.tasks\n{FINDERS}") == "False"


def test_our_model_class_is_imported_when_it_is_asked_for(installed):
    loaded = "import sys; print('harness_adapters.lm_eval.model' in sys.modules)"
    assert installed(f"{MODELS}{loaded}") == "False"
    ask = "from lm_eval.api.registry import get_model; get_model('merged')\n"
    assert installed(f"{MODELS}{ask}{loaded}") == "True"


def test_lm_eval_modules_keep_their_own_loader(installed):
    loaders = "type(m.__loader__).__name__, m.__loader__ is m.__spec__.loader"
    assert installed(f"import lm_eval.models as m; print({loaders})") == "SourceFileLoader True"


def test_looking_for_a_module_does_not_use_up_the_hook(installed):
    look = "import importlib.util; importlib.util.find_spec('lm_eval.models')\n"
    assert installed(f"{look}{MODELS}print('merged' in MODEL_REGISTRY)") == "True"


@pytest.mark.parametrize("native", [True, False])
def test_it_stands_down_where_lm_eval_reads_entry_points_itself(native, installed):
    setting = NATIVE_MODELS if native else ""
    assert installed(f"{setting}{MODELS}print('merged' in MODEL_REGISTRY)") == str(not native)


def test_tasks_stand_down_apart_from_models(installed):
    found = "import lm_eval.tasks as t; print(hasattr(t.TaskManager.__init__, '__wrapped__'))"
    assert installed(f"{MODELS}{found}") == "True"
    assert (
        installed(f"{NATIVE_TASKS}{MODELS}print('merged' in MODEL_REGISTRY)\n{found}")
        == "True\nFalse"
    )


def test_a_broken_adapter_does_not_stop_lm_eval(installed):
    broken = "import sys; sys.modules['harness_adapters'] = None\n"
    warned = f"{broken}{MODELS}print('hf' in MODEL_REGISTRY, 'merged' in MODEL_REGISTRY)"
    assert installed(warned) == "True False"


def test_an_import_of_lm_eval_that_fails_still_fails_and_can_be_tried_again(installed):
    code = (
        "import sys; sys.modules['lm_eval.api.registry'] = None\n"
        "try:\n    import lm_eval.models\n    print('imported')\n"
        "except ImportError:\n    del sys.modules['lm_eval.api.registry']\n"
        f"{MODELS}print('merged' in MODEL_REGISTRY)"
    )
    assert installed(code) == "True"
