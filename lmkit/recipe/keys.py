"""All keys that a recipe may have, and what to answer where one is unknown."""

from __future__ import annotations

from collections.abc import Sequence

from lmkit.errors import nearest
from lmkit.recipe.foreign import FOREIGN
from lmkit.recipe.further import recipe_type
from lmkit.recipe.section import Section, keys_of


def known_keys(section: type[Section] | None = None, prefix: str = "") -> list[str]:
    """Return every dotted key that a recipe may have, or a section of it."""
    keys = []
    for name, key in keys_of(section or recipe_type()).items():
        keys.append(prefix + name)
        if key.section is not None:
            keys += known_keys(key.section, f"{prefix}{name}.")
    return keys


def explain_unknown(path: Sequence[str]) -> str:
    """Explain an unknown key: by its name here, or by the nearest ones."""
    name = path[-1]
    if name in FOREIGN and ".".join(path) != FOREIGN[name]:
        return f"unknown key; here it is {FOREIGN[name]}"
    everywhere = known_keys()
    same_name = _ending_in(name, everywhere)
    if same_name:
        return _did_you_mean(same_name)
    siblings = keys_of(_innermost_section(path[:-1]))
    close = nearest(name, siblings)
    if close:
        # seed and seeds, fold and folds
        alike = [key for key in siblings if key.rstrip("s") == close.rstrip("s")]
        return _did_you_mean([".".join([*path[:-1], key]) for key in alike])
    close = nearest(name, [key.split(".")[-1] for key in everywhere])
    if close:
        return _did_you_mean(_ending_in(close, everywhere))
    return f"unknown key; known here: {', '.join(siblings)}"


def _ending_in(name: str, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key.split(".")[-1] == name]


def _did_you_mean(keys: Sequence[str]) -> str:
    return f"unknown key; did you mean {' or '.join(keys)}?"


def _innermost_section(path: Sequence[str]) -> type[Section]:
    """Return the last section of the schema on a path."""
    section: type[Section] = recipe_type()
    for name in path:
        key = keys_of(section).get(name)
        if key is None or key.section is None:
            break
        section = key.section
    return section
