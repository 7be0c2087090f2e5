"""report.html in a real browser: no error, no request, no sideways scrolling on a phone, and the table can be searched."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium here (apt-get install chromium): the report is not rendered",
)
EVIL = "<script>document.title='broken'</script>"
# measured in the page, and left where --dump-dom shows it
PROBE = """<script>const leave = (text) => { if (parent !== window) return parent.postMessage(text, "*");
  const left = document.createElement("pre"); left.id = "probe"; left.textContent = text; document.body.append(left); };
addEventListener("message", (e) => leave(e.data));
addEventListener("load", () => {
  const shown = [...document.querySelectorAll("#rows tr")].filter((row) => !row.hidden);
  const wide = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1);
  const result = { rows: shown.length, total: document.querySelectorAll("#rows tr").length, count: document.getElementById("count").textContent,
    overflow: document.documentElement.scrollWidth - innerWidth, wide: wide.map((e) => e.outerHTML.slice(0, 80)), width: innerWidth,
    texts: shown.map((row) => row.textContent), errors: window.problems, background: getComputedStyle(document.body).backgroundColor,
    title: document.title };
  leave(JSON.stringify(result));
});</script>"""
CATCH = "<script>window.problems = []; addEventListener('error', (e) => window.problems.push(e.message));</script>"


def browse(folder: Path, page: Path, *options: str, fragment: str = "") -> str:
    assert CHROMIUM is not None
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    quiet += [
        "--disable-component-update",
        "--disable-sync",
        "--virtual-time-budget=2000",
        f"--user-data-dir={folder}/profile",
    ]
    env = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        [CHROMIUM, *quiet, *options, f"{page.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        timeout=600,
        env=env,
        check=True,
    )
    return done.stdout


def probed(
    folder: Path, page: Path, *options: str, fragment: str = "", phone: bool = False
) -> dict[str, Any]:
    """What the page is after loading. Its policy forbids any other script, so the copy that is probed has none.

    A window is never narrower than 500 pixels, so a phone is a frame in it.
    """
    html = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', CATCH, page.read_text(encoding="utf-8")
    )
    copy = folder / "probed.html"
    copy.write_text(html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    if phone:
        script = PROBE.partition('addEventListener("load"')[0] + "</script>"
        copy = folder / "phone.html"
        copy.write_text(
            f'{script}<iframe src="probed.html" width="390" height="844" style="border: 0"></iframe>'
        )
    dumped = browse(folder, copy, "--dump-dom", *options, fragment=fragment)
    found = re.search(r'<pre id="probe">(.*?)</pre>', dumped, re.DOTALL)
    assert found, dumped[-2000:]
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """The report of a small run whose data try to break it."""
    folder = tmp_path_factory.mktemp("report")
    rows = [
        {
            "text": f"a good day {i} {EVIL}" if i % 2 else f"bad {i} " + "w" * 300,
            "label": ["neg", EVIL][i % 2],
        }
        for i in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "opinions",
        "task": "classification",
        "model": {"preset": "bert-nano"},
        "tokenizer": {"train": {"algorithm": "wordpiece", "vocab_size": 200}},
        "data": {"train": "rows.jsonl", "validation": "rows.jsonl", "max_length": 32},
        "train": {"max_steps": 2, "batch_size": 4},
        "hardware": {"precision": "fp32"},
        "eval": {"resamples": 20},
        "logging": {"every": 1},
        "output": str(folder / "run"),
    }
    from lmkit.commands.train import train

    here = Path.cwd()
    os.chdir(folder)
    try:
        train("finetune", values)
    finally:
        os.chdir(here)
    return folder / "run" / "eval" / "validation" / "report.html"


def test_the_report_opens_without_error_and_shows_its_rows(evaluated: Path, tmp_path: Path) -> None:
    found = probed(tmp_path, evaluated, "--window-size=1200,900")
    assert found["errors"] == []
    assert found["title"] == "opinions: validation"
    assert 0 < found["rows"] == min(50, found["total"])
    assert (
        any(EVIL in text for text in found["texts"])
        or EVIL in evaluated.with_name("predictions.jsonl").read_text()
    )


@pytest.mark.parametrize("fragment", ["#q=bad+3", "#gold=neg", "#q=nothing+like+this"])
def test_the_table_can_be_searched_from_a_link(
    evaluated: Path, tmp_path: Path, fragment: str
) -> None:
    found = probed(tmp_path, evaluated, fragment=fragment)
    records = [
        json.loads(line)
        for line in evaluated.with_name("predictions.jsonl").read_text().splitlines()
    ]
    wrong = [record for record in records if record["gold"] != record["prediction"]]
    matching = {
        "#q=bad+3": lambda r: all(
            word in f"row {r['id']} {r['text']} {r['gold']} {r['prediction']}"
            for word in ("bad", "3")
        ),
        "#gold=neg": lambda r: r["gold"] == "neg",
        "#q=nothing+like+this": lambda r: False,
    }[fragment]
    expected = sum(map(matching, wrong))
    if fragment == "#q=bad+3":  # losses are searched too
        assert expected <= found["rows"] <= sum(r["gold"] == "neg" for r in wrong)
    else:
        assert found["rows"] == min(50, expected)
    assert found["count"].startswith(f"{found['rows']} of {len(wrong)}")
    assert found["errors"] == []


def test_a_phone_scrolls_in_one_direction_only(evaluated: Path, tmp_path: Path) -> None:
    found = probed(tmp_path, evaluated, phone=True)
    assert found["width"] == 390
    assert found["overflow"] <= 0
    assert found["wide"] == []


def test_it_is_dark_in_the_dark(evaluated: Path, tmp_path: Path) -> None:
    light = probed(tmp_path, evaluated, "--blink-settings=preferredColorScheme=1")["background"]
    dark = probed(tmp_path, evaluated, "--blink-settings=preferredColorScheme=0")["background"]
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (light, dark)]
    assert brightness[0] > 220
    assert brightness[1] < 40


def test_the_policy_of_the_page_lets_its_own_script_run(evaluated: Path, tmp_path: Path) -> None:
    """Unchanged: the count beside the search is written by the script, so its hash is right."""
    dumped = browse(tmp_path, evaluated, "--dump-dom")
    assert re.search(r'<span id="count">\d+ of \d+</span>', dumped)
    shot = tmp_path / "shot.png"
    browse(tmp_path, evaluated, f"--screenshot={shot}", "--window-size=600,400")
    assert struct.unpack(">II", shot.read_bytes()[16:24])[0] == 600
