"""How seconds and memory grow with the rows, the model and the length of the texts.

    python tests/bench/growth.py [--only rows,model,length] [--base 5000] [--docs]

- *rows*: reading, checking, tokenising and packing 1x, 4x and 16x as many short texts (20 words), with an empty cache.
- *model*: training steps of 16 texts of 128 tokens, by preset (BERT, MLM, vocabulary 16 k).
- *length*: training steps of 4,096 tokens, in texts of 64 to 1,024 (mini, MLM and causal LM).

A training step's own growth is that of its useful FLOPs (tests/bench/speed.py says what they are), that of preparation
is that of the rows. ``for more work`` is what the work since the line above took, each unit of it, over what it took from the
first line to the second: what every line takes alike falls out, and about 1 means that no term grows faster than the
work itself, more that one does. Memory is the greatest size of a process's own pages (RssAnon of
/proc, looked at every 10 ms): files that are mapped are left out, as the system takes their pages back when it needs
them. Each line is a process of its own. Writes runs/bench/growth.json; ``--docs`` makes docs/growth.svg and the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inputs
import speed
from page import PAGE, machines, publish

FACTORS = (1, 4, 16)
PRESETS = ("nano", "mini", "small", "medium", "base")
LENGTHS = (64, 128, 256, 512, 1024)
STEP_TOKENS = 4096
STEPS = 6  # that the clock counts
FIGURE = PAGE.with_name("growth.svg")
KINDS = {"mlm": "AutoModelForMaskedLM", "clm": "AutoModelForCausalLM"}
STYLE = (
    "text{font:11px sans-serif;fill:#444}.axis{stroke:#ddd}.curve{fill:none;stroke:#2563eb;stroke-width:2}.dot{fill:#2563eb}"
    ".curve.second{stroke:#999;stroke-dasharray:4 3}.dot.second{fill:#999}"
)


def own_pages(status: str) -> int:
    """Bytes of a process's own pages, from its /proc/PID/status.

    >>> own_pages("VmRSS:\\t  90 kB\\nRssAnon:\\t  40 kB\\n")
    40960
    """
    return next(
        (
            int(line.split()[1]) * 1024
            for line in status.splitlines()
            if line.startswith("RssAnon:")
        ),
        0,
    )


def watched(command: Sequence[str], place: speed.Place, log: Path) -> int:
    """Run to the end; the greatest size of its own pages in bytes."""
    most = 0
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=stream, stderr=stream, env=speed.environment(place)
        )
        while process.poll() is None:
            most = max(most, own_pages(Path(f"/proc/{process.pid}/status").read_text()))
            time.sleep(0.01)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed, see {log}:\n{log.read_text()[-2000:]}")
    return most


def slopes(lines: Sequence[dict[str, Any]]) -> list[float | None]:
    """Seconds for each unit of the work that a line has more than the one before, over those of the second line.

    None for the first line, and where nothing can be said: the work is no more, or the first step took no more seconds.

    >>> slopes([{"seconds": 5.0, "work": 10}, {"seconds": 7.0, "work": 18}, {"seconds": 15.0, "work": 34}])
    [None, 1.0, 2.0]
    """
    steps = [(b["seconds"] - a["seconds"], b["work"] - a["work"]) for a, b in pairwise(lines)]
    found = [seconds / work if work > 0 else None for seconds, work in steps]
    first = found[0] if found else None
    return [
        None,
        *(
            None if slope is None or first is None or first <= 0 else slope / first
            for slope in found
        ),
    ]


def bytes_each(lines: Sequence[dict[str, Any]]) -> float:
    """Memory that a row more takes, between the first line and the last.

    >>> bytes_each([{"memory": 1000, "work": 10}, {"memory": 1600, "work": 160}])
    4.0
    """
    return (lines[-1]["memory"] - lines[0]["memory"]) / (lines[-1]["work"] - lines[0]["work"])


# --- measuring ---


def prepare(recipe: str, out: str) -> None:
    """Of a process of its own: what precedes the model, and the seconds of its parts, without those of imports."""
    import datasets  # noqa: F401
    import transformers  # noqa: F401

    from lmkit.data.splits import load_splits
    from lmkit.models.source import find_model
    from lmkit.recipe import load_recipe
    from lmkit.tasks.registry import problem
    from lmkit.train import prepare as preparing

    loaded = load_recipe(recipe)
    source = find_model(str(loaded.model.base))
    begun = time.perf_counter()
    splits = load_splits(loaded, problem(loaded.task), wanted=("train",))
    read = time.perf_counter()
    preparing.prepare(loaded, splits, source)
    found = {"reading": read - begun, "tokenising": time.perf_counter() - read}
    Path(out).write_text(json.dumps(found))


def rows(place: speed.Place, base: int) -> list[dict[str, Any]]:
    import numpy as np

    words, found = inputs.Words(16_000, "encoder"), []
    for factor in FACTORS:
        rng = np.random.default_rng(factor)
        file = place.root / f"growth-{base * factor}.jsonl"
        inputs._write(
            file,
            [
                inputs._labelled(rng, words, size)
                for size in inputs.lengths(rng, base * factor, 20, 0.5, 90)
            ],
        )
        for task in ("mlm", "classification"):
            recipe, out = place.root / "growth.yaml", place.root / "growth-prepared.json"
            data = {"train": str(file), "max_length": 128}
            recipe.write_text(
                json.dumps(
                    {"task": task, "model": {"base": str(place.inputs / "mlm")}, "data": data}
                )
            )
            shutil.rmtree(place.root / "cache", ignore_errors=True)
            memory = watched(
                [__file__, "--prepare", str(recipe), str(out)], place, place.root / "growth.log"
            )
            parts = json.loads(out.read_text())
            line = {
                "what": task,
                "at": base * factor,
                "work": base * factor,
                "seconds": sum(parts.values()),
                "memory": memory,
            }
            found.append(line | parts)
            print(
                f"{task}, {base * factor} rows: {line['seconds']:.1f} s, {memory / 1e6:.0f} MB",
                file=sys.stderr,
            )
    return sorted(found, key=lambda line: (line["what"], line["at"]))


def step(task: str, preset: str, length: int, batch: int, place: speed.Place) -> dict[str, Any]:
    """Seconds of a training step, its useful FLOPs, and the run's memory."""
    out, recipe = place.root / "growth-run", place.root / "growth.yaml"
    shutil.rmtree(out, ignore_errors=True)
    steps, tokenizer = speed.WARM_UP + STEPS, place.root / f"growth-{task}"
    role = "decoder" if task == "clm" else "encoder"
    inputs.Words(16_000, role).tokenizer(role, LENGTHS[-1]).save_pretrained(tokenizer)
    content = {
        "task": task, "model": {"preset": preset}, "tokenizer": {"base": str(tokenizer)},
        "data": {"train": str(place.inputs / f"{task}.jsonl"), "max_length": length, "max_rows": 4000},
        "train": {"max_steps": steps, "batch_size": batch, "warmup": 0}, "logging": {"every": 1},
        "hardware": {"checkpoint_every": None},
    }  # fmt: skip
    recipe.write_text(json.dumps(content))
    memory = watched(
        ["-m", "lmkit", "pretrain", str(recipe), "-o", str(out)], place, place.root / "growth.log"
    )
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    seconds = (lines[-1]["seconds"] - lines[speed.WARM_UP - 1]["seconds"]) / STEPS
    size = sizes_of(task, out / "model")
    tokens = sum(line["tokens"] for line in lines[speed.WARM_UP :]) / STEPS
    seen = speed.seen(
        speed.lengths_of(speed.texts_of(place.inputs / f"{task}.jsonl"), tokenizer), length
    )
    work = speed.useful_flops(size, task, tokens=tokens, length=seen, training=True)
    print(
        f"{task} {preset}, length {length}: {seconds:.2f} s a step, {memory / 1e6:.0f} MB",
        file=sys.stderr,
    )
    return {
        "what": task,
        "seconds": seconds,
        "memory": memory,
        "work": work,
        "weights": size["encoder"],
    }


def sizes_of(task: str, model: Path) -> dict[str, Any]:
    """``inputs.sizes`` of a model directory, without its weights."""
    import torch
    import transformers

    with torch.device("meta"):
        return inputs.sizes(
            getattr(transformers, KINDS[task]).from_config(
                transformers.AutoConfig.from_pretrained(model)
            )
        )


def measure(part: str, place: speed.Place, base: int) -> list[dict[str, Any]]:
    if part == "rows":
        return rows(place, base)
    if part == "model":
        return [step("mlm", f"bert-{name}", 128, 16, place) | {"at": name} for name in PRESETS]
    families = (("clm", "llama-mini"), ("mlm", "bert-mini"))
    return [
        step(task, preset, length, STEP_TOKENS // length, place) | {"at": length}
        for task, preset in families
        for length in LENGTHS
    ]


# --- the page ---

UNITS = {"rows": "rows", "model": "weights of the layers, millions", "length": "tokens of a text"}


def groups(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [
        [line for line in lines if line["what"] == what]
        for what in dict.fromkeys(line["what"] for line in lines)
    ]


def table(found: dict[str, Any]) -> str:
    said = [
        "| growing | | seconds | grown | its own | for more work | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in ("rows", "model", "length"):
        for lines in groups(found.get(part, [])):
            first = lines[0]
            for line, slope in zip(lines, slopes(lines), strict=True):
                more = "" if slope is None else f"{slope:.2f}x"
                at = f"{line['at']:,}" if isinstance(line["at"], int) else line["at"]
                said.append(
                    f"| {part}, {line['what']} | {at} | {line['seconds']:.2f} | {line['seconds'] / first['seconds']:.1f}x "
                    f"| {line['work'] / first['work']:.1f}x | {more} | {line['memory'] / 1e6:,.0f} MB |"
                )
    return "\n".join(said)


def figure(found: dict[str, Any]) -> str:
    """Seconds beside what they would be if they grew as the work does (dashed), and memory."""
    from lmkit.evaluation.report.plots import HEIGHT, WIDTH

    panels = []
    for part in ("rows", "model", "length"):
        for lines in groups(found.get(part, [])):
            at = [line["weights"] / 1e6 if part == "model" else line["at"] for line in lines]
            own = [lines[0]["seconds"] * line["work"] / lines[0]["work"] for line in lines]
            seconds, memory = (
                [line["seconds"] for line in lines],
                [line["memory"] / 1e6 for line in lines],
            )
            titles = [
                f"{part}, {lines[0]['what']}: seconds",
                f"{part}, {lines[0]['what']}: memory, MB",
            ]
            panels += [
                _panel([seconds, own], at, titles[0], UNITS[part]),
                _panel([memory], at, titles[1], UNITS[part]),
            ]
    height = -(-len(panels) // 2) * HEIGHT
    placed = [
        panel.replace(
            "<svg ",
            f'<svg x="{i % 2 * WIDTH}" y="{i // 2 * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ',
            1,
        )
        for i, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {height}"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(placed)}</svg>\n'
    )


def _panel(lines: Sequence[Sequence[float]], at: Sequence[float], title: str, x_label: str) -> str:
    from lmkit.evaluation.report.plots import Frame, Shape
    from lmkit.evaluation.report.render import svg

    frame = Frame((0, max(at)), (0, 1.05 * max(value for line in lines for value in line)))
    shapes: list[Shape] = []
    for style, line in zip(("", " second"), lines, strict=False):
        points = list(zip(at, line, strict=True))
        shapes = [frame.line(points, f"curve{style}"), frame.dots(points, f"dot{style}"), *shapes]
    return svg(frame.drawn(shapes, x_label=x_label, y_label=title, title=title))


def machine_of(found: dict[str, Any], part: str) -> dict[str, Any]:
    """What a part was measured on; earlier files have one machine for all."""
    machine: dict[str, Any] = found.get("machines", {}).get(part) or found["machine"]
    return machine


def section(found: dict[str, Any]) -> str:
    parts = {part: machine_of(found, part) for part in UNITS if part in found}
    on = {
        part: "{cores} cores ({cpu}), {date}".format_map(machine) for part, machine in parts.items()
    }
    each = ", ".join(
        f"{bytes_each(lines):,.0f} bytes for {lines[0]['what']}"
        for lines in groups(found.get("rows", []))
    )
    said = f" A row more takes {each} of memory while data is prepared." if each else ""
    return f"""### Growth

`make bench BENCH=growth` on {machines(on)}; what is measured stands at the head of
`tests/bench/growth.py`. Seconds are those of preparing all rows, or of a training step.{said}

![seconds and memory by rows, model and length](growth.svg)

{table(found)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(UNITS))
    parser.add_argument("--base", type=int, default=5000, help="rows that 1x stands for")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the page and the figure from what was measured, and measure nothing",
    )
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(*given.prepare)
        return
    place = speed.Place(given.out.resolve())
    file = place.root / "growth.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    if not given.docs:
        place.root.mkdir(parents=True, exist_ok=True)
        speed.timed(
            [str(speed.HERE / "inputs.py"), str(place.inputs)], place, place.root / "inputs.log"
        )
        machine = speed.machine_of(place)
        for part in given.only.split(","):
            found[part] = measure(part, place, given.base)
            found["machines"] = found.get("machines", {}) | {part: machine}
            file.write_text(json.dumps(found, indent=1) + "\n")
    if found:
        publish("growth", section(found), docs=given.docs)
        (FIGURE if given.docs else place.root / "growth.svg").write_text(
            figure(found), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
