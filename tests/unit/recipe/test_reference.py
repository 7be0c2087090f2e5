"""The reference of recipe keys in docs/ is the schema's."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_keys_is_what_the_schema_says() -> None:
    page = runpy.run_path(str(DOCS / "make_reference.py"))["page"]()
    assert (DOCS / "recipes.md").read_text(encoding="utf-8") == page, "run make reference"
