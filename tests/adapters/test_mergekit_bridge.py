"""Methods that other people registered with mergekit: found, used, and never imported unasked.

The second half runs where MERGE_PLUGINS_MERGEKIT_BRIDGE names the python of a venv that has both
merge-plugins and mergekit 0.1.5 (`pip install 'merge-plugins[mergekit]'`): it merges by the methods
in `sample_plugins/mergekit-methods` through us and through mergekit, and compares bit by bit.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mergekit_recipes import METHODS, number, per_model, weights, write_models

from harness_adapters.bridges import mergekit as mergekit_bridge
from merge_plugins.errors import MergeError
from merge_plugins.plugins import registry

PLUGINS = Path(__file__).parents[1] / "sample_plugins" / "mergekit-methods"
ROOT = Path(__file__).parents[2]
BRIDGE = os.environ.get("MERGE_PLUGINS_MERGEKIT_BRIDGE", "")
USABLE = (
    "power_mean",
    "clipped_sum",
    "batched_mean",
    "batched_weights",
    "batched_linear",
    "extreme",
)
"""Those of our plugin that draw nothing at random."""
N_RECIPES = 8 * len(USABLE)
FAMILIES = ("llama-float32", "llama-bfloat16")


def python(
    code: str, *path: Path, executable: str = sys.executable, modules: str = "", argv: Any = ()
) -> str:
    """Run code in a new process and return what it prints."""
    found = os.pathsep.join(map(str, (*path, ROOT)))
    env = {**os.environ, "PYTHONPATH": found, mergekit_bridge.MODULES: modules}
    run = subprocess.run(
        [executable, "-c", code, *map(str, argv)], capture_output=True, text=True, env=env
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


LIST = "from merge_plugins.cli import main; main(['list'])"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder where something that calls itself mergekit 0.1.5 is installed and fails."""
    (tmp_path / "mergekit").mkdir()
    (tmp_path / "mergekit" / "__init__.py").write_text("raise ImportError('was imported')")
    (tmp_path / "mergekit-0.1.5.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: mergekit\nVersion: 0.1.5\n"
    (tmp_path / "mergekit-0.1.5.dist-info" / "METADATA").write_text(about)
    return tmp_path


def test_a_merge_by_a_method_of_ours_never_imports_mergekit(
    installed: Path, tmp_path: Path
) -> None:
    write_models(tmp_path / FAMILIES[0])
    base, expert = (str(tmp_path / FAMILIES[0] / name) for name in ("base", "a"))
    code = (
        "import sys; from merge_plugins import Recipe, merged_tensors, registry\n"
        f"plain = dict(merge_method='ties', base_model={base!r}, models=[{expert!r}],\n"
        "             parameters=dict(weight=1, density=0.5))\n"
        "from merge_plugins import digest; recipe = Recipe.from_mapping(plain); digest(recipe)\n"
        "assert all(len(tensor[...]) for tensor in merged_tensors(recipe).values())\n"
        "print(sorted(registry().broken), 'mergekit' in sys.modules)"
    )
    assert python(code, installed) == "[] False\n"


def test_mergekit_is_imported_for_a_name_nobody_has_and_for_a_list(installed: Path) -> None:
    code = (
        "from merge_plugins import registry; from merge_plugins.cli import main\n"
        "try: registry().get('power_mean')\n"
        "except LookupError as exc: print(exc, registry().broken)\n"
        "registry.cache_clear(); main(['list'])"
    )
    first, *_, last = python(code, installed).splitlines()
    assert "no merge method 'power_mean'" in first
    assert "{'mergekit': ImportError('was imported')}" in first
    assert last == "BROKEN mergekit: ImportError: was imported"


def test_no_other_module_of_ours_names_mergekit_in_an_import() -> None:
    files = [*(ROOT / "merge_plugins").rglob("*.py"), *(ROOT / "harness_adapters").rglob("*.py")]
    importing = re.compile(r"^\s*(import mergekit|from mergekit)\b", re.M)
    found = {file.name for file in files if importing.search(file.read_text(encoding="utf-8"))}
    assert found == {"mergekit.py"}


def test_what_is_left_out_are_the_twenty_that_we_have_ourselves() -> None:
    assert set(METHODS) == mergekit_bridge.OWN
    assert registry().methods.keys() >= mergekit_bridge.OWN


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """A function that says which mergekit is installed; None: none."""
    monkeypatch.delenv(mergekit_bridge.MODULES, raising=False)

    def install(number: str | None) -> None:
        def found(name: str) -> str:
            if number is None:
                raise metadata.PackageNotFoundError(name)
            return number

        monkeypatch.setattr(mergekit_bridge.metadata, "version", found)

    return install


def test_without_mergekit_the_bridge_leads_nowhere(
    version: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    version(None)
    assert list(mergekit_bridge.plugins()) == []
    monkeypatch.setenv(mergekit_bridge.MODULES, "mine, yours")
    with pytest.raises(MergeError, match=r"names mine, yours, but .*\[mergekit\]"):
        list(mergekit_bridge.plugins())


def test_another_release_of_mergekit_is_refused_by_number(
    version: Callable[[str | None], None],
) -> None:
    version("0.1.4")
    with pytest.raises(MergeError, match=r"mergekit 0\.1\.4 is installed.*\[mergekit\]"):
        list(mergekit_bridge.plugins())


with_mergekit = pytest.mark.skipif(
    not BRIDGE, reason="set MERGE_PLUGINS_MERGEKIT_BRIDGE=/path/to/python with both packages"
)


def bridged(code: str, *argv: Any) -> str:
    """Run code where mergekit is installed and our plugin of it is named."""
    return python(code, PLUGINS, executable=BRIDGE, modules="mergekit_methods", argv=argv)


@with_mergekit
def test_methods_are_listed_and_marked() -> None:
    found = bridged(LIST)
    for name in (*USABLE, "coin_flips"):
        line = rf"\n{name} +\S.*\n.*\[mergekit plugin mergekit_methods:{name} [0-9a-f]{{8}}, "
        assert re.search(line + r"mergekit 0\.1\.5\]\n", found), name
    assert "Mean of signed powers, the base like any other model.\n" in found
    assert "1 or more models; side  pick=true" in found
    assert found.count("BROKEN") == 7
    for name, why in {
        "tsv": "'tsv' is already registered by merge_plugins.methods.tsv_iso",
        "refused_axis": "cannot be used here: it reads group.metadata.vocabulary_axis",
        "refused_base": "cannot be used here: it looks for the base without saying so",
        "refused_weight": "cannot be used here: weight has a value for the base too",
        "refused_name": "cannot be used here: a parameter of a method here cannot be named pre",
        "refused_default": r"cannot be used here: factors has the default \(1.0,\)",
        "refused_class": "cannot be used here: it is neither",
    }.items():
        expected = rf"BROKEN mergekit plugin mergekit_methods:{name}: \w+: {why}"
        assert re.search(expected, found), name


@with_mergekit
def test_a_module_that_fails_is_reported_and_hurts_nobody(tmp_path: Path) -> None:
    (tmp_path / "broken_methods.py").write_text("import nothing_of_that_name")
    modules = "broken_methods,mergekit_methods"
    found = python(LIST, tmp_path, PLUGINS, executable=BRIDGE, modules=modules)
    assert "BROKEN mergekit plugin broken_methods: ModuleNotFoundError: No module" in found
    assert "[mergekit plugin mergekit_methods:power_mean" in found


@with_mergekit
def test_mergekit_without_plugins_adds_nothing() -> None:
    code = (
        "from merge_plugins import registry; before = set(registry().methods)\n"
        "registry().load_bridges(); import sys; assert 'mergekit' in sys.modules\n"
        "print(set(registry().methods) ^ before, registry().broken)"
    )
    assert python(code, executable=BRIDGE) == "set() {}\n"


@with_mergekit
def test_a_program_that_imported_the_methods_need_not_name_them() -> None:
    code = (
        "import mergekit_methods; from merge_plugins import registry\n"
        "print(registry().get('power_mean').paper)"
    )
    assert python(code, PLUGINS, executable=BRIDGE) == "https://example.org/pm\n"


@with_mergekit
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"merge_method": "refused_axis"}, "refused_axis failed to load: cannot be used here"),
        ({"merge_method": "power_means"}, "no merge method 'power_means'; did you mean 'power"),
        ({"parameters": {"clip": -1}}, "clipped_sum: clip: Input should be greater than 0; go"),
        ({"parameters": {}}, "clipped_sum: clip is required"),
        ({"parameters": {"clip": 1, "cut": 1}}, "clipped_sum: no parameter 'cut'"),
        ({"base_model": None}, "clipped_sum: needs a base model"),
        (
            {"merge_method": "extreme", "parameters": {"side": "middle"}},
            "extreme: side is one of 'largest', 'smallest'; got 'middle'",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_before_a_weight_is_read(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_models(tmp_path / FAMILIES[0])
    base, expert = (str(tmp_path / FAMILIES[0] / name) for name in ("base", "a"))
    held = {"merge_method": "clipped_sum", "base_model": base, "models": [expert], **given}
    if held["merge_method"] == "clipped_sum":
        held["models"] = [{"model": expert, "parameters": {"weight": 1}}]
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(held))
    code = (
        "import sys; from merge_plugins.cli import main\n"
        "sys.stderr = sys.stdout; print(main(['check', sys.argv[1]]))"
    )
    found = bridged(code, tmp_path / "merge.yaml")
    assert said in found
    assert found.endswith("\n1\n")


@with_mergekit
def test_random_methods_depend_on_the_seed_and_leave_the_generator_alone(tmp_path: Path) -> None:
    write_models(tmp_path / FAMILIES[0])
    base, expert = (str(tmp_path / FAMILIES[0] / name) for name in ("base", "a"))
    code = (
        "import torch; from merge_plugins import Recipe, merged_tensors\n"
        "def merge(seed, *names):\n"
        f"    plain = dict(merge_method='coin_flips', base_model={base!r}, models=[{expert!r}])\n"
        "    tensors = merged_tensors(Recipe.from_mapping({**plain, 'seed': seed}))\n"
        "    return [tensors[name][...] for name in names]\n"
        "up, down = (f'model.layers.0.mlp.{n}_proj.weight' for n in ('up', 'down'))\n"
        "before = torch.random.get_rng_state()\n"
        "(a, b), (c, d), (e,) = merge(0, up, down), merge(0, down, up), merge(1, up)\n"
        "print(torch.equal(a, d), torch.equal(b, c), torch.equal(a, e))\n"
        "print(torch.equal(before, torch.random.get_rng_state()))"
    )
    assert bridged(code) == "True True False\nTrue\n"


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every recipe's merge, by us and by mergekit."""
    folder = tmp_path_factory.mktemp("bridge")
    for family in FAMILIES:
        write_models(folder / family)
    recipes = [draw(i, folder) for i in range(N_RECIPES)]
    named = [{"name": f"theirs-{i}", **recipe} for i, recipe in enumerate(recipes)]
    (folder / "theirs.yaml").write_text(yaml.safe_dump_all(named))
    (folder / "ours.json").write_text(json.dumps(recipes))
    options = ["--intermediate-dir", folder, "--no-copy-tokenizer", "--quiet"]
    code = "import mergekit_methods; from mergekit.scripts.multimerge import main; main()"
    bridged(code, folder / "theirs.yaml", *options)
    code = (
        "import json, sys; from pathlib import Path\n"
        "from merge_plugins import Recipe, merged_tensors\n"
        "from safetensors.torch import save_file\n"
        "folder = Path(sys.argv[1])\n"
        "for i, plain in enumerate(json.loads((folder / 'ours.json').read_text())):\n"
        "    tensors = merged_tensors(Recipe.from_mapping(plain)).items()\n"
        "    (folder / f'ours-{i}').mkdir()\n"
        "    file = folder / f'ours-{i}' / 'model.safetensors'\n"
        "    save_file({name: tensor[...] for name, tensor in tensors}, file)"
    )
    bridged(code, folder)
    return folder


@with_mergekit
@pytest.mark.parametrize("number", range(N_RECIPES))
def test_the_bits_are_those_of_mergekit(number: int, merges: Path) -> None:
    theirs, ours = weights(merges / f"theirs-{number}"), weights(merges / f"ours-{number}")
    assert ours.keys() == theirs.keys()
    plain = yaml.safe_dump(draw(number, merges))
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype, f"{name} of\n{plain}"
        assert torch.equal(ours[name], expected), f"{name} of\n{plain}"


def draw(n: int, folder: Path) -> dict[str, Any]:
    """Return the recipe of that number; methods and families take turns, the rest is drawn."""
    rng = random.Random(n)
    method, root = USABLE[n % len(USABLE)], folder / FAMILIES[n // len(USABLE) % 2]
    models: list[dict[str, Any]] = [
        {"model": str(root / name), "parameters": {}} for name in rng.sample("abc", 2)
    ]
    plain = {"merge_method": method, "models": models, "parameters": {}, "dtype": "float32"}
    if method in ("clipped_sum", "batched_weights") or rng.random() < 0.5:
        plain["base_model"] = str(root / "base")
    if n // len(USABLE) % 4 == 1:
        del plain["dtype"]
    if "base_model" in plain and rng.random() < 0.3:
        models.insert(rng.randint(0, 1), {"model": plain["base_model"], "parameters": {}})
    FILL[method](rng, plain)
    return plain


def fill_power_mean(rng: random.Random, plain: dict[str, Any]) -> None:
    plain["parameters"] |= {"weight": number(rng, 0.1, 1.0), "power": rng.randint(1, 3)}
    plain["parameters"]["normalize"] = rng.choice([True, [True, False], False])
    per_model(rng, plain, "weight", 0.1, 1.0)


def fill_clipped_sum(rng: random.Random, plain: dict[str, Any]) -> None:
    weigh_changes(rng, plain, "weight")
    plain["parameters"] |= {"clip": number(rng, 0.001, 0.02), "lambda_": number(rng, 0.5, 1.5)}
    plain["parameters"]["clip"] = [0.004, "2e-2"]  # YAML reads 2e-2 as text


def fill_batched_mean(rng: random.Random, plain: dict[str, Any]) -> None:
    if rng.random() < 0.7:
        plain["parameters"]["around"] = number(rng, 0.1, 1.0)


def fill_batched_weights(rng: random.Random, plain: dict[str, Any]) -> None:
    weigh_changes(rng, plain, "weight")
    if rng.random() < 0.5:
        weigh_changes(rng, plain, "rate")


def fill_batched_linear(rng: random.Random, plain: dict[str, Any]) -> None:
    plain["parameters"]["weight"] = number(rng, 0.1, 1.0)
    per_model(rng, plain, "weight", 0.1, 1.0)


def fill_extreme(rng: random.Random, plain: dict[str, Any]) -> None:
    plain["parameters"]["side"] = rng.choice(["largest", ["smallest", "largest", "smallest"]])
    plain["models"][-1]["parameters"]["pick"] = rng.choice([True, False])


def weigh_changes(rng: random.Random, plain: dict[str, Any], name: str) -> None:
    for model in plain["models"]:
        if model["model"] != plain["base_model"]:
            model["parameters"][name] = number(rng, 0.1, 1.0)


FILL = {
    "power_mean": fill_power_mean,
    "clipped_sum": fill_clipped_sum,
    "batched_mean": fill_batched_mean,
    "batched_weights": fill_batched_weights,
    "batched_linear": fill_batched_linear,
    "extreme": fill_extreme,
}
