"""What `pip install` puts on a machine, what it makes work there, and that all of it goes again."""

from __future__ import annotations

import email
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOOK = """
import lm_eval.models, lm_eval.tasks
from pathlib import Path
from lm_eval.api.registry import MODEL_REGISTRY
assert {"hf", "merged", "merged-steered"} <= set(MODEL_REGISTRY)
assert hasattr(lm_eval.tasks.TaskManager.__init__, "__wrapped__")
from harness_adapters.lm_eval import discovery
(folder,) = discovery.task_folders()
assert list(Path(folder).rglob("*.yaml"))
print(Path(folder).resolve())
"""
ADVICE = "from merge_plugins.installing import to_install; print(to_install('report'))"
FIND = "import importlib.util; print(importlib.util.find_spec"


def test_the_wheel_holds_two_packages_and_the_hook(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    hook = {"merge-plugins-lm-eval.pth", "merge-plugins-lm-eval.start", "_merge_plugins_lm_eval"}
    assert top == {"merge_plugins", "harness_adapters", *hook}
    assert not [name for name in names if name.startswith("harness_adapters/_startup")]


@pytest.mark.parametrize("folder", ["tasks", "merge_plugins", "harness_adapters"])
def test_the_wheel_holds_every_file_of(folder, wheel):
    hidden = ("__pycache__", "_startup")
    files = [file for file in (REPOSITORY / folder).rglob("*") if file.is_file()]
    wanted = {
        str(file.relative_to(REPOSITORY)) for file in files if not set(hidden) & set(file.parts)
    }
    held = {name.replace("harness_adapters/tasks/", "tasks/") for name in _names(wheel)}
    assert wanted <= held


def test_the_source_distribution_holds_models_and_tests(wheel):
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "tests/packaging/test_installing.py"} <= names
    models = (REPOSITORY / "merge_plugins" / "demo" / "models").rglob("*.safetensors")
    assert {str(file.relative_to(REPOSITORY)) for file in models} <= names


def test_the_page_on_pypi_has_no_link_into_a_checkout(wheel):
    (name,) = (name for name in _names(wheel) if name.endswith(".dist-info/METADATA"))
    fields = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    assert fields["Description-Content-Type"] == "text/markdown"
    page = fields.get_payload(decode=True).decode()
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert targets
    assert not [target for target in targets if not target.startswith(("https://", "#"))]
    assert page.startswith("# merge-plugins\n")
    assert "\n# Changelog\n" in page


def test_opencompass_finds_its_configs_in_a_wheel(installed):
    command = installed.python.with_name("merge-plugins")
    done = subprocess.run([command, "tasks", "--opencompass"], capture_output=True, text=True)
    folder = Path(done.stdout.rstrip("\n"))
    assert installed.packages in folder.parents
    assert (folder / "dataset_collections" / "sea.py").is_file()


@pytest.mark.parametrize("tool", ["pip", "uv"])
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_install_use_and_uninstall(tool, kind, environment, wheel):
    before = environment.files()
    what = [wheel] if kind == "wheel" else ["--editable", REPOSITORY]
    environment.install(tool, *what)
    folder = Path(environment(LOOK))
    if kind == "wheel":
        assert folder == (environment.packages / "harness_adapters" / "tasks").resolve()
        for name in ("tasks", "tests", "benchmarks"):
            assert environment(f"{FIND}({name!r}))") == "None"
    else:
        assert folder == REPOSITORY / "tasks"
        assert not (environment.packages / "harness_adapters").exists()  # no copy that grows stale
    for flags in (("-I",), ("-s", "-E")):
        environment("from lm_eval.models import MODEL_MAPPING as m", *flags)
    environment.try_out(environment(ADVICE))
    environment.uninstall(tool, "merge-plugins")
    assert environment.files() == before


@pytest.mark.parametrize("line", ["--version", "--help", "", "reprot", "report --help", "check"])
def test_the_script_and_the_module_are_one_command(line, installed):
    def said(*command):
        done = subprocess.run(
            [*command, *line.split()], capture_output=True, text=True, cwd=installed.folder
        )
        return done.returncode, done.stdout, done.stderr

    script = said(installed.python.with_name("merge-plugins"))
    assert script == said(installed.python, "-m", "merge_plugins")
    assert "Traceback" not in script[2]
    assert script[1] or script[2]


def test_entry_points_alone_lead_to_models_and_tasks(installed):
    installed(
        "from importlib.metadata import entry_points\n"
        "from importlib.util import find_spec\n"
        "from pathlib import Path\n"
        "for point in entry_points(group='lm_eval.models'):\n"
        "    if point.name != 'merged-vllm': point.load()\n"  # needs vLLM, which is not here
        "(point,) = entry_points(group='lm_eval.tasks')\n"
        "folder = list(find_spec(point.value).submodule_search_locations)[0]\n"
        "assert list(Path(folder).rglob('*.yaml'))",
        MERGE_PLUGINS_NO_LM_EVAL="1",
    )


def _names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()
