"""Parse YAML and JSON from anywhere: what comes out is plain, and of bounded size."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import yaml

from merge_plugins.errors import RecipeError
from merge_plugins.recipe.yaml_mistakes import explained

T = TypeVar("T")
LONGEST = 2**20
"""Characters of a recipe file; one with a value for every weight of a 70B model has a third."""
MOST, DEEPEST = 50_000, 50
"""Values in a recipe, those of an anchor counted wherever it is used; levels of nesting."""


def from_yaml(text: str) -> Any:
    """Parse one YAML document; raise `RecipeError` for a duplicate key."""
    documents = list(each_from_yaml(text))
    if len(documents) > 1:
        raise RecipeError(f"one YAML document is expected here; got {len(documents)}")
    return documents[0] if documents else None


def each_from_yaml(text: str) -> Iterator[Any]:
    """Parse the documents of a YAML file one after the other."""
    try:
        loader = _Loader(_short(text))
        while loader.check_node():
            node = loader.get_node()
            bounded(node)
            yield bounded(loader.construct_document(node))
    except RecipeError:  # a ValueError too
        raise
    except yaml.YAMLError as exc:
        raise RecipeError(explained(text, exc)) from exc
    except (LookupError, OverflowError, ValueError) as exc:
        raise RecipeError(f"not YAML: {exc}") from exc


def from_json(text: str) -> Any:
    """Parse a JSON value; raise `RecipeError` for a duplicate key."""
    try:
        return bounded(json.loads(_short(text), object_pairs_hook=_unique))
    except RecursionError as exc:
        raise RecipeError(TOO_DEEP) from exc
    except RecipeError:  # a ValueError too
        raise
    except ValueError as exc:
        raise RecipeError(f"not JSON: {exc}") from exc


def _short(text: str) -> str:
    if len(text) > LONGEST:
        raise RecipeError(f"a recipe has at most {LONGEST:,} characters; this one has more")
    return text


TOO_MANY = f"a recipe has at most {MOST:,} values, anchors (&) written out"
TOO_DEEP = f"a recipe has at most {DEEPEST} levels of lists and mappings"


def bounded(value: T) -> T:
    """Return a value from a parser, or raise `RecipeError` if it is too large or no plain text.

    Anchors make a file of 400 bytes a tree of a billion values, or one without end.
    """
    level: list[Any] = [value]
    n_values = 0
    for _ in range(DEEPEST):
        for each in level:
            _check_scalar(each)
        level = list(itertools.islice(itertools.chain.from_iterable(map(_items, level)), MOST + 1))
        n_values += len(level)
        if n_values > MOST:
            raise RecipeError(TOO_MANY)
        if not level:
            return value
    raise RecipeError(TOO_DEEP)


def _check_scalar(value: Any) -> None:
    if isinstance(value, int) and abs(value) >= 2**64:
        raise RecipeError(f"a whole number has at most 64 bits; got one of {value.bit_length()}")
    if isinstance(value, str) and ("\0" in value or _is_no_text(value)):
        raise RecipeError(f"text in a recipe is UTF-8 without null characters; got {value[:80]!a}")


def _is_no_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character: "\ud800"
        return True
    return False


def _items(value: Any) -> Iterable[Any]:
    """Return what a parsed value, or a node of YAML, consists of."""
    if isinstance(value, yaml.MappingNode):
        return itertools.chain.from_iterable(value.value)
    if isinstance(value, Mapping):
        return itertools.chain(value, value.values())
    if isinstance(value, yaml.SequenceNode):
        return value.value  # type: ignore[no-any-return]
    return value if isinstance(value, list | tuple) else ()


KINDS = ("bool", "float", "int", "map", "merge", "null", "seq", "str")
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}
TEXT = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """YAML loader of what JSON has too; dates are text.

    It rejects duplicate keys, of which PyYAML would silently drop the first.
    """

    n_nodes = level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.n_nodes += 1
        self.level += 1
        if self.n_nodes > MOST or self.level > DEEPEST:
            raise RecipeError(TOO_MANY if self.n_nodes > MOST else TOO_DEEP)
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag if tag in TAGS else TEXT

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in TAGS:
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise RecipeError(
                f"line {line}: a recipe has text, numbers, lists and mappings, no {kind}"
            )
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in _repeated(keys):
                if key != "<<":
                    line = node.start_mark.line + 1
                    raise RecipeError(f"{key!r} is written twice in the mapping at line {line}")
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key in _repeated([key for key, _ in pairs]):
        raise RecipeError(f"{key!r} is written twice in one mapping")
    return dict(pairs)


def _repeated(keys: list[str]) -> list[str]:
    return [key for key, n in Counter(keys).items() if n > 1]
