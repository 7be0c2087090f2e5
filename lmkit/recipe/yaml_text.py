"""YAML as people expect it, and YAML that any reader reads back as it was written."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lmkit.errors import RecipeError


class Loader(yaml.SafeLoader):
    """Reader to which 1e-4 is a number; no, 12:30 and 2024-01-01 are words; 010 is ten; a key stands once."""


_OWN = [f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")]
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OWN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


class Dumper(yaml.SafeDumper):
    """Quotes what either loader would read as something else than text: a label 08, a revision 1e5."""


Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
}


def _whole_number(loader: Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


def _mapping_once(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (list, dict)):
            raise _bad_key("a key is a list or a mapping", key_node)
        if key in seen:
            raise _bad_key(f"the key {key!r} stands twice", key_node)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _bad_key(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
Loader.add_constructor("tag:yaml.org,2002:map", _mapping_once)


def dump_yaml(values: dict[str, Any]) -> str:
    """Write values in the order in which they are."""
    text: str = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def parse_yaml(text: str, place: str) -> Any:
    """Read plain values; ``place`` is what messages call the text.

    Raises:
        RecipeError: not YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=Loader)  # a SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        raise _not_yaml(error, place) from None


def _not_yaml(error: yaml.YAMLError, place: str) -> RecipeError:
    mark = getattr(error, "problem_mark", None)
    where = f"{place}:{mark.line + 1}" if mark else place
    what = getattr(error, "problem", None) or str(error).split("\n")[0]
    alias = (
        getattr(error, "context", None) == "while scanning an alias" or "undefined alias" in what
    )
    remedy = 'a value that begins with * stands in quotes: "*.jsonl"' if alias else None
    return RecipeError(f"not readable as YAML: {what}", place=where, remedy=remedy)
