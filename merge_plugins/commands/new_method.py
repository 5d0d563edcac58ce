"""`merge-plugins new-method`: a distribution with one merge method, ready to be installed."""

from __future__ import annotations

import argparse
import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template

from merge_plugins._version import __version__
from merge_plugins.commands.new_method_files import FILES
from merge_plugins.errors import RecipeError
from merge_plugins.folders import complete_or_nothing, new_folder
from merge_plugins.plugins import registry

IMPORTED = {"Callable", "PerExpert", "Slot", "Tensor"}
"""Names in the module that a class may not take."""


def new_method(options: argparse.Namespace) -> int:
    """Write a distribution with one merge method and its test."""
    name = options.name
    check_name(name)
    distribution = f"merge-{name.replace('_', '-')}"
    folder = Path(options.folder or distribution)
    write(name, distribution, folder)
    module = folder / f"merge_{name}.py"
    print(f"{module}: the maths. Try it, then install and test it:")
    print(f"  merge-plugins show {name} --plugin {module}")
    print(f"  pip install -e '{folder}[test]' && pytest {folder}")
    return 0


def check_name(name: str) -> None:
    """Raise `RecipeError` for a name that is none of a new method."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        fit = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = f", like {fit}" if re.fullmatch(r"[a-z][a-z0-9_]*", fit) and fit != name else ""
        raise RecipeError(
            f"a method's name is lower-case letters, digits and _, and no word of Python{hint}; "
            f"got {name!r}"
        )
    known = registry().named
    if name in known:
        raise RecipeError(
            f"there is a method {name} already, of {known[name].plugin}; choose another name"
        )
    if find_spec(f"merge_{name}") is not None:
        raise RecipeError(f"there is a module merge_{name} already; choose another name")


def write(name: str, distribution: str, folder: Path) -> Path:
    """Write the files of the distribution into a new folder, all or none; return the folder."""
    words = {
        "name": name,
        "distribution": distribution,
        "module": f"merge_{name}",
        "Class": class_name(name),
        "version": __version__,
    }
    target = new_folder(folder)
    with complete_or_nothing(target) as unfinished:
        for file, text in FILES.items():
            path = unfinished / Template(file).substitute(words)
            path.write_text(Template(text).substitute(words), encoding="utf-8")
    return target


def class_name(name: str) -> str:
    """Name the class of a method: my_method is MyMethod."""
    found = "".join(part.capitalize() for part in name.split("_"))
    taken = found in IMPORTED or keyword.iskeyword(found)
    return f"{found}Method" if taken else found
