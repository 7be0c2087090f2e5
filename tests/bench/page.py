"""The page that the benchmarks are written to, and what they say of the machine."""

from __future__ import annotations

import platform
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


def processor() -> str:
    """The model's name, and what of it matters for matrix products."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in f"{info} "]
    return f"{names[0] if names else platform.processor()} ({', '.join(flags)})"
