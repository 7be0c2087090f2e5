"""Find which column of a file plays which role, from its first row; and the value in each row."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmkit.data import parallel
from lmkit.data.check.errors import BadValue, type_name
from lmkit.data.formats import find_format
from lmkit.data.row import SLICE_COLUMN, Row
from lmkit.errors import DataError, RecipeError, nearest, suggest
from lmkit.tasks.fields import Field, Form

Keys = tuple[str, ...]  # of a column: its name, and where that holds objects the keys within
SEPARATOR = re.compile(r"[;\t|]|,(?=\w)")


@dataclass(frozen=True)
class Roles:
    """The roles that a row has in a task, and the columns that play them.

    Args:
        fields: what the task reads.
        forms: what else the rows may be made of; the first row, and the roles in ``columns``, decide for the split.
        columns: role -> column of the file; columns without an entry go by the role's name, then by its aliases.
            Positions ("0", "1") say that csv and tsv files have no header; a dot leads into an object
            (``translation.en``), unless there is a column of that very name.
        slices: more columns to keep, each under ``SLICE_COLUMN`` and its name.
        with_gold: False: without the fields that are to be predicted.
    """

    fields: Sequence[Field]
    forms: Sequence[Form] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    slices: Sequence[str] = ()
    with_gold: bool = True

    @property
    def fields_read(self) -> list[Field]:
        """Return the fields that are read."""
        return [field for field in self.fields if self.with_gold or not field.gold]

    @property
    def slice_fields(self) -> list[Field]:
        return [Field(SLICE_COLUMN + name, "slice") for name in self.slices]

    def column_of(self, field: Field) -> str | None:
        """Return the column that the recipe names for a field."""
        return self.columns.get(field.name)

    def names_of(self, field: Field) -> list[str]:
        """Return the names under which a field's column may go."""
        column = self.column_of(field)
        return [field.name, *field.aliases] if column is None else [column]

    def suited_forms(self) -> list[Form]:
        """Return the forms that have every role of ``data.columns``.

        Raises:
            DataError: there is no such role, or no form has all.
        """
        forms = [Form(tuple(self.fields), dict), *self.forms]
        columns = self.columns
        names = list(dict.fromkeys(field.name for form in forms for field in form.fields))
        unknown = [role for role in columns if role not in names]
        if unknown:
            raise _unknown_role(unknown[0], names)
        suited = [form for form in forms if columns.keys() <= _names(form)]
        if not suited:
            raise _no_such_form(columns, forms)
        return suited if self.with_gold else [_without_gold(form) for form in suited]


def _unknown_role(role: str, names: list[str]) -> DataError:
    return DataError(
        f"this task has no column {role!r}",
        place="data.columns",
        remedy=suggest(role, names),
    )


def _no_such_form(columns: Mapping[str, str], forms: Sequence[Form]) -> DataError:
    choices = " or ".join(", ".join(field.name for field in form.fields) for form in forms)
    return DataError(
        f"{' and '.join(columns)} do not go together",
        place="data.columns",
        remedy=f"name {choices}",
    )


def _names(form: Form) -> set[str]:
    return {field.name for field in form.fields}


def _without_gold(form: Form) -> Form:
    return replace(form, fields=tuple(field for field in form.fields if not field.gold))


def has_header(path: Path, forms: Sequence[Form], roles: Roles) -> bool:
    """Tell whether a file's first line names its columns.

    Raises:
        DataError: some columns are named, others given by position.
    """
    return not roles.columns or _has_named_columns(path, forms, roles)


def _has_named_columns(path: Path, forms: Sequence[Form], roles: Roles) -> bool:
    read = set().union(*map(_names, forms))
    used = [column for role, column in roles.columns.items() if role in read]
    positions = [name for name in used if name.isdecimal()]
    file_format = find_format(path)
    is_table = file_format is not None and file_format.is_table
    if positions and len(positions) < len(used) and is_table:
        raise DataError(
            "some columns are named, others given by position",
            place="data.columns",
            remedy="give the names of the header, or positions for all where there is none",
        )
    return not positions


def find_form(first: Row, forms: Sequence[Form], roles: Roles) -> tuple[Form, dict[str, Keys]]:
    """Choose the form that the first row has, or else the one of which it has most.

    Returns:
        The form, and where the values of its roles are; roles without a column are missing.
    """
    columns = [_find_columns(first, form, roles) for form in forms]
    scores = [
        (len(there) == len(form.fields), len(there))
        for form, there in zip(forms, columns, strict=True)
    ]
    best = scores.index(max(scores))
    return forms[best], columns[best]


def _find_columns(first: Row, form: Form, roles: Roles) -> dict[str, Keys]:
    columns = {}
    for field in form.fields:
        keys = find_field(first, field, roles)
        if keys:
            columns[field.name] = keys
    return columns


def find_field(first: Row, field: Field, roles: Roles) -> Keys | None:
    """Return where a field's value is in rows like the first one; None where it is nowhere."""
    for name in roles.names_of(field):
        keys = find_keys(first, name)
        if keys:
            return keys
    return None


@dataclass(frozen=True)
class FirstRow:
    """The first row of a file: what its columns are.

    Args:
        name: the file's, for messages. key: the recipe's that names the file.
    """

    row: Row
    path: Path
    name: str
    key: str

    @property
    def column_names(self) -> list[str]:
        """Return the names that data.columns may use: of columns, or of the parts of one that holds an object."""
        names = []
        for column, value in self.row.items():
            is_object = isinstance(value, dict) and bool(value)
            names += [f"{column}.{key}" for key in value] if is_object else [column]
        return names


def missing_column(
    first: FirstRow, field: Field, form: Form, roles: Roles, columns: Mapping[str, Keys]
) -> DataError:
    """Describe a role that no column plays."""
    there = first.column_names
    used = [".".join(keys) for keys in columns.values()]
    unused = [name for name in there if name not in used]
    given = roles.column_of(field)
    close = nearest(given or field.name, unused)
    if close is None:
        close = unused[0] if len(unused) == 1 else "COLUMN"
    remedy = _remedy(first, field, form, close)
    named = f" ({given!r}, says data.columns)" if given is not None else ""
    problem = f"no column for {field.name!r}{named}"
    listed = ", ".join(name[:40] for name in there)
    return DataError(f"{problem}; there are: {listed}", place=first.name, remedy=remedy)


def _remedy(first: FirstRow, field: Field, form: Form, close: str) -> str:
    file_format = find_format(first.path)
    assert file_format is not None
    if file_format.is_text:
        pair = parallel.hint(first.path, key=first.key, fields_read=form.fields)
        needs = f"{field.name} needs .jsonl, .csv, .tsv, .conll or .parquet"
        return pair or f"a text file has texts alone; {needs}"
    name_it = f"say which it is: data.columns={{{field.name}: {close}}}"
    if not file_format.is_table:
        return name_it
    there = first.column_names
    separator = SEPARATOR.search(there[0])
    if len(there) == 1 and separator:
        return f"the cells seem to be parted by {separator[0]!r}: .csv is read with commas, .tsv with tabs"
    return f"{name_it}; in a file without a header, by position: 0, 1, ..."


def find_slice(first: FirstRow, name: str) -> Keys:
    """Return where a column of ``eval.slices`` is.

    Raises:
        RecipeError: there is none, or it has more than one value a row.
    """
    keys = find_keys(first.row, name)
    if keys is None:
        raise RecipeError(
            f"no column {name!r} in {first.name}",
            place="eval.slices",
            remedy=suggest(name, first.column_names),
        )
    value: Any = first.row
    for key in keys:
        value = value[key] if isinstance(value, dict) else None
    if isinstance(value, (list, dict)):
        raise RecipeError(
            f"{name!r} is {type_name(value)} in {first.name}",
            place="eval.slices",
            remedy="name a column with one value for each row",
        )
    return keys


def find_keys(row: Row, name: str) -> Keys | None:
    """Return the keys that lead to what a name means, from a file's first row; None where nothing does.

    >>> find_keys({"translation": {"en": "sea", "de": "Meer"}, "a.b": 1}, "translation.en")
    ('translation', 'en')
    >>> find_keys({"a.b": 1, "a": {"b": 2}}, "a.b")
    ('a.b',)
    """
    return (name,) if name in row else _find_nested(row, name)


def _find_nested(row: Row, name: str) -> Keys | None:
    """Return the keys that lead into an object."""
    for dot in re.finditer(r"\.", name):
        head, rest = name[: dot.start()], name[dot.end() :]
        if head not in row:
            continue
        if row[head] is None:  # this row is bad, and will be called so; the next may not be
            return (head, *rest.split("."))
        keys = find_keys(row[head], rest) if isinstance(row[head], dict) else None
        if keys:
            return (head, *keys)
    return None


def value_at(raw: Row, keys: Keys) -> Any:
    """Return what the keys of a column lead to in one raw row.

    Raises:
        BadValue: they lead nowhere.
    """
    if keys[0] not in raw:
        raise BadValue(f"no {keys[0]!r} here, unlike in the first row")
    value = raw[keys[0]]
    return value if len(keys) == 1 else _value_within(value, keys)


def _value_within(value: Any, keys: Keys) -> Any:
    """Return what the further keys of a column lead to within its value."""
    for depth, key in enumerate(keys[1:], 1):
        column = ".".join(keys[:depth])
        if not isinstance(value, dict):
            raise BadValue(f"{column!r} is {type_name(value)}; an object with {key!r} is expected")
        if key not in value:
            raise BadValue(f"no {key!r} in {column!r}")
        value = value[key]
    return value
