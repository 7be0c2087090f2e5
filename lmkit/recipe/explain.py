"""What a recipe may say, for people (``lmkit recipe explain KEY``) and for editors (``lmkit recipe schema``: JSON Schema)."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lmkit.errors import RecipeError
from lmkit.recipe.load import explain_unknown
from lmkit.recipe.schema import Recipe
from lmkit.recipe.section import Before, Key, Section, described

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
JSON_LIMITS = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
    "min_length": "minLength",
    "pattern": "pattern",
}


def explain(dotted: str) -> dict[str, Any]:
    """A key: what it expects, its default, what it does; of a section its keys instead of an expectation.

    Raises:
        RecipeError: there is no such key; suggests the nearest.
    """
    section: type[Section] | None = Recipe
    path, key = dotted.split("."), None
    for depth, name in enumerate(path):
        if section is None:
            assert key is not None
            parent = ".".join(path[:depth])
            if "a mapping" in described(key.annotation):  # what stands in it is the user's to name
                return explain(parent)
            raise RecipeError(f"{parent} has no keys below it", place=dotted)
        key = section.model_fields.get(name)
        if key is None:
            raise RecipeError(explain_unknown(path[: depth + 1]), place=dotted)
        section = key.section
    assert key is not None
    found = {"key": dotted, "about": key.description, "default": _plain(key)}
    if section is None:
        return found | {"expected": described(key.annotation)}
    return found | {"keys": [f"{dotted}.{name}" for name in section.model_fields]}


def json_schema(section: type[Section] = Recipe) -> dict[str, Any]:
    """JSON Schema (2020-12) of recipes: editors complete and check by it."""
    start = (
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lmkit recipe"}
        if section is Recipe
        else {}
    )
    properties = {}
    for name, key in section.model_fields.items():
        shown = {"description": key.description} if key.description else {}
        if key.default_factory is None:
            shown["default"] = key.default
        properties[name] = shown | _schema_of(key.annotation)
        if properties[name].get("type") == "object":
            properties[name]["type"] = ["object", "null"]  # a section with nothing below it
    return start | {"type": "object", "additionalProperties": False, "properties": properties}


def _plain(key: Key) -> Any:
    value = key.value()
    return value.model_dump() if isinstance(value, Section) else value


def _schema_of(kind: Any) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = _schema_of(inner[0])
        for each in inner[1:]:
            if isinstance(each, Key):
                found |= {_json_limit(name, found): limit for name, limit in each.limits.items()}
            elif isinstance(each, Before) and inner[0] is str:
                found = {"type": ["string", "integer", "boolean"]}  # which are made into texts
        return found
    if origin in (Union, UnionType):
        return {"anyOf": [_schema_of(each) for each in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": _schema_of(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(inner[1])}
    if kind is Any:
        return {}
    return json_schema(kind) if issubclass(kind, Section) else {"type": JSON_TYPES[kind]}


def _json_limit(name: str, found: dict[str, Any]) -> str:
    return (
        "minItems" if name == "min_length" and found.get("type") == "array" else JSON_LIMITS[name]
    )
