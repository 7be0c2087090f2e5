"""The page that the benchmarks are written to, and what they say of the machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def between(page: str, name: str, content: str) -> str:
    """The page with ``content`` between the two marks of that name; at its end where it has none.

    >>> between("# Page", "speed", "fast").splitlines()
    ['# Page', '', '<!-- speed: begin -->', 'fast', '<!-- speed: end -->']
    """
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    if begin not in page:
        page = f"{page.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def publish(name: str, content: str, *, docs: bool) -> None:
    """Print a section, and with ``docs`` write it into the page."""
    print(content)
    if docs:
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")


def chip() -> tuple[str, list[str]]:
    """The processor's name, and what it has that matters for matrix products."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [
        line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")
    ]
    words = set(info.split())
    return names[0] if names else platform.processor(), [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in words
    ]


def processor() -> str:
    """Both in a line."""
    name, has = chip()
    return f"{name} ({', '.join(has)})"


def machines(parts: Mapping[str, str]) -> str:
    """What the parts of a section were measured on; said once where it is the same for all.

    >>> machines({"mlm": "2 cores", "clm": "2 cores"})
    '2 cores'
    >>> machines({"mlm": "2 cores", "clm": "2 cores", "ner": "4 cores"})
    '2 cores (mlm, clm) and 4 cores (ner)'
    """
    named: dict[str, list[str]] = {}
    for part, machine in parts.items():
        named.setdefault(machine, []).append(part)
    return " and ".join(
        f"{machine} ({', '.join(names)})" if len(named) > 1 else machine
        for machine, names in named.items()
    )
