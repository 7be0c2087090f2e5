"""A recipe's keys for people (``lmkit recipe explain KEY``) and for editors (``lmkit recipe schema``: JSON Schema)."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import msgspec

from lmkit.errors import RecipeError
from lmkit.recipe.convert import describe
from lmkit.recipe.further import recipe_type
from lmkit.recipe.keys import explain_unknown
from lmkit.recipe.section import Key, Section, bare, keys_of, members_of, metas_of


def explain(dotted: str) -> dict[str, Any]:
    """Explain a key: what it expects, its default, what it does; of a section its keys instead of an expectation.

    Raises:
        RecipeError: there is no such key; suggests the nearest.
    """
    section: type[Section] | None = recipe_type()
    path = dotted.split(".")
    key: Key | None = None
    for depth, name in enumerate(path):
        if section is None:
            assert key is not None
            parent = ".".join(path[:depth])
            if any(get_origin(bare(member)) is dict for member in members_of(key.annotation)):
                return explain(parent)  # the user names what is in a mapping
            raise RecipeError(f"{parent} has no keys below it", place=dotted)
        key = keys_of(section).get(name)
        if key is None:
            raise RecipeError(explain_unknown(path[: depth + 1]), place=dotted)
        section = key.section
    assert key is not None
    explained = {
        "key": dotted,
        "about": key.description,
        "default": msgspec.to_builtins(key.default),
    }
    if section is None:
        return explained | {"expected": describe(key.annotation)}
    return explained | {"keys": [f"{dotted}.{name}" for name in keys_of(section)]}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of recipes: editors complete and check by it."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "title": "lmkit recipe"} | _section_schema(recipe_type())


def _section_schema(section: type[Section]) -> dict[str, Any]:
    properties = {name: _property(key) for name, key in keys_of(section).items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(key: Key) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": key.description} if key.description else {}
    if key.default is None or not key.null_is_default:
        schema["default"] = key.default
    schema |= _schema_of(key.annotation)
    if schema.get("type") == "object":
        schema["type"] = ["object", "null"]  # a section with nothing below it
    return schema


def _schema_of(annotation: Any) -> dict[str, Any]:
    """Return msgspec's schema with sections in place, choices in their order, and values as they are given."""
    members = members_of(annotation)
    if len(members) > 1:
        return {"anyOf": [_schema_of(member) for member in members]}
    plain = bare(members[0])
    if isinstance(plain, type) and issubclass(plain, Section):
        return _section_schema(plain)
    schema = msgspec.json.schema(members[0])
    schema.pop("description", None)
    origin, inner = get_origin(plain), get_args(plain)
    if origin is Literal:
        schema["enum"] = list(inner)
    elif origin is list:
        schema["items"] = _schema_of(inner[0])
    elif origin is dict:
        schema["additionalProperties"] = _schema_of(inner[1])
    for meta in metas_of(members[0]):
        schema |= (meta.extra or {}).get("json_schema", {})
    return schema
