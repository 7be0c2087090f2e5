"""``lmkit demo``: the whole way on shipped data."""

from typing import Any


def run_demo(output: str, *, overwrite: bool) -> dict[str, Any]:
    return {}
