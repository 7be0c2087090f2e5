"""lmkit beside what a user would run instead: every line of "Speed" in docs/benchmarks.md.

    python tests/bench/speed.py [--only mlm,clm] [--pairs 3] [--seconds 20] [--rows N] [--docs | --profile NAME]

The other side is ``transformers.Trainer`` (tests/bench/peer.py) on the same rows, weights, rows per optimizer step and
steps: once as the example scripts of transformers set it up (``script``: fp32, their padding) and once at its best
settings (``best``: bf16 where the chip has it, fused AdamW, rows of alike length together, dynamic padding). Each run is
a fresh process; lmkit, script and best take turns. lmkit's side is the real command on a recipe. The clock of training
runs from the end of step 3 to the end of the last; of evaluation and generation over prediction (lmkit's also measures
the loss of every translation); of startup from the command to the end of the first optimizer step.

``*/s`` counts real tokens, never padding; rows a second of training are tokens a second over the mean length of a row, for
transformers' group_by_length takes the longest rows of 50 batches first. Useful FLOPs of training: 6 x weights of the layers x tokens + 12 x layers x
width x length x tokens for attention (half of it where a token sees only those before it) + 6 x width x vocabulary x
predicted positions (15 % in MLM); a third of that in evaluation. The length is that of the texts, in MLM and causal LM, where
lmkit packs several in a row that do not see one another, the mean over their tokens of the length of the text (of its
part, where it is longer than a row). They are the same for both sides, whatever a side computes beside them, as the script
does, whose texts see their neighbours in the block. The share of the peak is of the matrix product measured in the same run, in the side's dtype.

Every bench writes runs/bench/NAME.json once it is done; ``--docs`` takes those into docs/speed.json, in place of what that has of
the same benches, and makes the section of the page from it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from page import PAGE, chip, machines, publish

HERE = Path(__file__).parent
RESULTS = PAGE.with_name("speed.json")
SIDES = ("lmkit", "script", "best")
WARM_UP = 3  # steps that no clock counts
MORE = {
    "time": "time_to_loss.py",
    "growth": "growth.py",
    "gpu": "gpu.py",
}  # benches with a script of their own


@dataclass(frozen=True)
class Bench:
    """What is compared.

    Args:
        what: for the page.
        task: of the recipe.
        model: directory of the inputs.
        batch: rows per optimizer step.
        length: ``data.max_length`` and the blocks of the script; of generate the longest output.
        targets: how many times faster than script and best lmkit should be; None: none is set.
    """

    what: str
    task: str
    model: str
    batch: int
    length: int
    targets: tuple[float, float | None] | None
    unit: str = "tokens"


BENCHES = {
    "mlm": Bench("MLM pretraining, 4 x 256 BERT, vocabulary 16 k, length 128", "mlm", "mlm", 32, 128, (4.0, 2.0)),
    "clm": Bench("causal LM pretraining, 4 x 256 Llama, vocabulary 16 k, length 256", "clm", "clm", 16, 256, (2.5, 1.5)),
    "classification": Bench("classification, 6 x 384 BERT, vocabulary 30 k, short texts", "classification", "bert", 32, 128, (6.0, 1.6), "rows"),
    "ner": Bench("NER, the same model, 20 words", "ner", "bert", 32, 128, (4.0, 1.6), "rows"),
    "translation": Bench("translation from scratch, Marian 3+3 x 256", "translation", "marian", 64, 128, (3.0, 1.5)),
    "eval": Bench("evaluation of a classifier, 10,000 short texts", "classification", "classifier", 0, 128, (5.0, 2.0), "rows"),
    "generate": Bench("beam-4 translation of 1,000 sentences", "translation", "translator", 0, 48, (4.0, 1.5), "rows"),
    "startup": Bench("from the command to the first step, classification", "classification", "bert", 8, 128, (1 / 0.6, None), "runs"),
    "tokenize": Bench("tokenising 20,000 short texts (best: one process a core)", "classification", "bert", 0, 128, None, "rows"),
}  # fmt: skip
COMMANDS = {
    "mlm": "pretrain",
    "clm": "pretrain",
    "eval": "eval",
    "generate": "eval",
}  # else finetune


def useful_flops(
    size: dict[str, Any], task: str, *, tokens: float, length: float, training: bool
) -> float:
    """Of reading ``tokens`` tokens (of translation: source and target together, half each); see the head of this file.

    Args:
        size: the model's ``sizes.json``: weights of the layers by side, layers, width, vocabulary.
        length: tokens that attend to one another.
    """
    share = 0.5 if task == "translation" else 1.0
    layers = 6 * (size["encoder"] + size["decoder"]) * tokens * share
    attention = (
        12 * size["layers"] * size["width"] * length * tokens * (0.5 if task == "clm" else share)
    )
    predicted = {"mlm": 0.15, "clm": 1.0, "translation": 0.5}.get(task, 0.0) * tokens
    return (layers + attention + 6 * size["width"] * size["vocabulary"] * predicted) / (
        1 if training else 3
    )


def seen(lengths: Sequence[int], most: int) -> float:
    """Tokens of its own text around a token, itself included, in the mean over all tokens; longer texts are cut after ``most``.

    >>> seen([2, 2, 4], 4), seen([7], 4)
    (3.0, 3.5714285714285716)
    """
    squares = sum(length // most * most**2 + (length % most) ** 2 for length in lengths)
    return squares / sum(lengths)


def lengths_of(texts: Sequence[str], model: Path) -> list[int]:
    """Tokens of each text, marks included, with the tokenizer in a model's directory."""
    from tokenizers import Tokenizer

    return [
        len(text.ids)
        for text in Tokenizer.from_file(str(model / "tokenizer.json")).encode_batch(list(texts))
    ]


def texts_of(file: Path) -> list[str]:
    """The first texts (of a translation the sources) of a file of the inputs."""
    rows = [json.loads(line) for line in file.read_text().splitlines()[:2000]]
    return [row.get("source") or row.get("text") or " ".join(row["tokens"]) for row in rows]


def ratios(
    rounds: Sequence[dict[str, dict[str, float]]], against: str, value: str = "rate"
) -> tuple[float, float, float]:
    """Median, least and greatest of lmkit's value over the other side's, pair by pair."""
    found = [pair["lmkit"][value] / pair[against][value] for pair in rounds]
    return statistics.median(found), min(found), max(found)


# --- running ---


@dataclass(frozen=True)
class Place:
    """Where things lie, which checkout is measured, and how much is done."""

    root: Path
    code: Path = HERE.parents[1]
    steps: int = 0
    rows: int | None = None
    bf16: bool = False

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"


def environment(place: Place) -> dict[str, str]:
    """Of a process that is measured: one checkout, all cores, caches of its own, no network."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    return kept | {
        "PYTHONPATH": str(place.code), "HF_HUB_OFFLINE": "1", "LMKIT_CACHE": str(place.root / "cache" / "lmkit"),
        "HF_DATASETS_CACHE": str(place.root / "cache" / "datasets"), "TOKENIZERS_PARALLELISM": "true",
    }  # fmt: skip


def timed(
    command: Sequence[str], place: Place, log: Path, *, until: Path | None = None
) -> dict[str, Any]:
    """Run to the end; seconds, peak memory (bytes) and, with ``until``, seconds until that file had something in it."""
    begun, first = time.perf_counter(), None
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=stream, stderr=stream, env=environment(place)
        )
        while until is not None and first is None and process.poll() is None:
            time.sleep(0.005)
            first = (
                time.perf_counter() - begun if until.is_file() and until.stat().st_size else None
            )
        if process.returncode is None:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            memory = usage.ru_maxrss * 1024
        else:
            memory = 0
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed, see {log}:\n{log.read_text()[-2000:]}")
    return {"command_seconds": time.perf_counter() - begun, "memory": memory, "first": first}


def recipe_of(name: str, place: Place) -> dict[str, Any]:
    bench, rows = BENCHES[name], place.rows
    file = str(
        place.inputs
        / f"{ {'startup': 'classification', 'tokenize': 'classification'}.get(name, name) }.jsonl"
    )
    data = {
        "max_length": bench.length if name != "generate" else 128,
        "max_rows": 64 if name == "startup" else rows,
    }
    data |= {"test": file} if name in ("eval", "generate") else {"train": file}
    recipe: dict[str, Any] = {
        "task": bench.task,
        "model": {"base": str(place.inputs / bench.model)},
        "data": data,
    }
    if name == "generate":
        recipe["generation"] = {"num_beams": 4, "max_new_tokens": bench.length}
    elif name not in ("eval", "tokenize"):
        rate = {"mlm": 5e-4, "clm": 5e-4, "translation": 7e-4}.get(name, 5e-5)
        recipe["train"] = {
            "max_steps": place.steps,
            "batch_size": bench.batch,
            "learning_rate": rate,
            "warmup": 0,
        }
        recipe["train"] |= {"weight_decay": 0.0} | (
            {"group_by_length": True} if name == "translation" else {}
        )  # as best does
        recipe |= {"logging": {"every": 1}, "hardware": {"checkpoint_every": None}}
    return recipe


def run_lmkit(name: str, place: Place) -> dict[str, Any]:
    out, recipe = place.root / "lmkit", place.root / f"{name}.yaml"
    shutil.rmtree(out, ignore_errors=True)
    recipe.write_text(json.dumps(recipe_of(name, place)))  # JSON is YAML
    command = COMMANDS.get(name, "finetune")
    log, path = out / "log.jsonl", place.root / f"{name}-lmkit.log"
    found = timed(
        ["-m", "lmkit", command, str(recipe), "-o", str(out)],
        place,
        path,
        until=log if name == "startup" else None,
    )
    if command == "eval":
        (metrics,) = out.glob("**/metrics.json")
        rows = [
            json.loads(line)
            for line in (metrics.parent / "predictions.jsonl").read_text().splitlines()
        ]
        answers = [row["prediction"] for row in rows]
        told = json.loads(metrics.read_text())
        cut = statistics.mean(bool(row.get("truncated")) for row in rows)
        return found | {
            "seconds": told["seconds"],
            "loss": told["loss"],
            "answers": answers,
            "truncated": cut,
            "slots": 0,
            "tokens": 0,
        }
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in lines if "tokens" in line]
    return found | {
        "times": [line["seconds"] for line in lines],
        "counts": [(line["tokens"], line["tokens"] / (1 - line["padding"])) for line in lines],
        "loss": statistics.mean(line["loss"] for line in lines),
    }


def run_peer(name: str, side: str, place: Place) -> dict[str, Any]:
    bench, out = BENCHES[name], place.root / f"{name}-{side}-result.json"
    recipe = recipe_of(name, place)
    first = place.root / "first_step"
    first.unlink(missing_ok=True)
    spec = {
        "bench": name, "side": side, "inputs": str(place.inputs), "model": recipe["model"]["base"], "out": str(out),
        "data": recipe["data"].get("train", recipe["data"].get("test")), "rows": recipe["data"]["max_rows"],
        "recipe": str(place.root / f"{name}.yaml"), "batch": bench.batch, "length": bench.length, "steps": place.steps,
        "learning_rate": recipe.get("train", {}).get("learning_rate", 5e-5), "bf16": place.bf16, "cores": os.cpu_count(),
    }  # fmt: skip
    if name == "startup":
        spec["first_step"] = str(first)
    if name == "tokenize":
        shutil.rmtree(place.root / "cache", ignore_errors=True)
        Path(spec["recipe"]).write_text(json.dumps(recipe))
    (place.root / "spec.json").write_text(json.dumps(spec))
    log = place.root / f"{name}-{side}.log"
    until = first if name == "startup" else None
    found = timed([str(HERE / "peer.py"), str(place.root / "spec.json")], place, log, until=until)
    return found | json.loads(out.read_text())


def result_of(
    name: str, found: dict[str, Any], side: str, place: Place, mean: dict[str, float]
) -> dict[str, Any]:
    """What is compared of one run: ``rate`` (in the bench's unit), tokens a second, padding, FLOP/s, memory."""
    bench = BENCHES[name]
    result = {
        key: found.get(key) for key in ("command_seconds", "memory", "loss", "answers", "truncated")
    }
    if name == "startup":
        return result | {"seconds": found["first"], "rate": 1 / found["first"]}
    if name == "tokenize":
        return result | {"seconds": found["seconds"], "rate": found["rows"] / found["seconds"]}
    if name in ("eval", "generate"):
        rows, seconds = len(found["answers"]), found["seconds"]
        tokens, slots, flops_tokens = rows * mean["tokens"], found["slots"], rows * mean["tokens"]
        padding = 1 - found["tokens"] / slots if slots else None
    else:
        seconds = found["times"][-1] - found["times"][WARM_UP - 1]
        counts = found["counts"][WARM_UP:]
        rows, tokens, slots = (
            bench.batch * len(counts),
            sum(c[0] for c in counts),
            sum(c[1] for c in counts),
        )
        padding = 1 - tokens / slots
        if name == "translation" and side == "lmkit":
            tokens *= mean["tokens"] / mean["source"]  # its log counts the source
        flops_tokens = tokens
    result |= {
        "seconds": seconds,
        "padding": padding,
        "tokens_per_second": tokens / seconds,
        "rows_per_second": rows / seconds,
    }
    if name != "generate":  # what beams compute is no function of the rows
        size = json.loads((place.inputs / bench.model / "sizes.json").read_text())
        length = mean["seen"] if bench.task in ("mlm", "clm") else mean["source"]
        flops = useful_flops(
            size, bench.task, tokens=flops_tokens, length=length, training=name != "eval"
        )
        result["flops_per_second"] = flops / seconds
    if bench.unit == "rows" and name not in ("eval", "generate"):
        rows = (
            tokens / mean["tokens"]
        )  # of mean length: a side that groups by length takes the longest rows first
    return result | {"rate": (tokens if bench.unit == "tokens" else rows) / seconds}


def mean_tokens(name: str, place: Place) -> dict[str, float]:
    """Mean tokens of a row, and of its source (of the whole row but in translation), marks included; and what is ``seen``."""
    recipe, bench = recipe_of(name, place), BENCHES[name]
    file = Path(recipe["data"].get("train", recipe["data"].get("test")))
    lengths = lengths_of(texts_of(file), place.inputs / bench.model)
    source, written = statistics.mean(lengths), 0.0
    if name == "translation":
        targets = [json.loads(line)["target"] for line in file.read_text().splitlines()[:2000]]
        written = statistics.mean(lengths_of(targets, place.inputs / bench.model))
    return {"source": source, "tokens": source + written, "seen": seen(lengths, bench.length)}


def measure(
    name: str, place: Place, *, pairs: int, seconds: float, machine: dict[str, Any]
) -> dict[str, Any]:
    bench = BENCHES[name]
    mean = mean_tokens(name, place)
    if name == "startup":
        place = replace(place, steps=1)
    elif name not in ("eval", "generate", "tokenize"):
        tried = run_lmkit(name, replace(place, steps=WARM_UP + 5))["times"]
        steps = WARM_UP + max(5, round(seconds * 5 / (tried[-1] - tried[WARM_UP - 1])))
        place = replace(place, steps=steps)
    rounds: list[dict[str, Any]] = []
    for _ in range(pairs):
        rounds.append({})
        for side in SIDES:
            run = (
                run_peer(name, side, place)
                if side != "lmkit" or name == "tokenize"
                else run_lmkit(name, place)
            )
            rounds[-1][side] = result_of(name, run, side, place, mean)
            told = rounds[-1][side]
            print(
                f"{name:15} {side:7} {told['rate']:10.1f} {bench.unit}/s, {told['memory'] / 1e9:.2f} GB",
                file=sys.stderr,
            )
    found: dict[str, Any] = {
        "name": name,
        "what": bench.what,
        "unit": bench.unit,
        "steps": place.steps,
        "machine": machine,
    }
    found["targets"] = {
        side: target
        for side, target in zip(SIDES[1:], bench.targets or (None, None), strict=True)
        if target
    }
    for side in SIDES[1:]:
        found[side] = {"ratio": ratios(rounds, side)}
        if rounds[0]["lmkit"]["memory"] and rounds[0][side]["memory"]:
            found[side]["memory_ratio"] = ratios(rounds, side, "memory")[0]
        ours, theirs = rounds[-1]["lmkit"]["answers"], rounds[-1][side]["answers"]
        if ours:
            asked = [str(answer) for answer in theirs]
            found[side]["same_answers"] = statistics.mean(
                a == b for a, b in zip(ours, asked, strict=True)
            )
    for side in SIDES:
        keys = (
            "rate",
            "seconds",
            "command_seconds",
            "memory",
            "loss",
            "padding",
            "tokens_per_second",
            "rows_per_second",
            "flops_per_second",
            "truncated",
        )
        known = {
            key: [r[side][key] for r in rounds if r[side].get(key) is not None] for key in keys
        }
        found.setdefault(side, {}).update(
            {key: statistics.median(values) for key, values in known.items() if values}
        )
        dtype = "bf16" if place.bf16 and side != "script" else "fp32"
        if "flops_per_second" in found[side]:
            found[side]["share_of_peak"] = found[side]["flops_per_second"] / machine["peak"][dtype]
    return found


def translator(place: Place, minutes: float) -> None:
    """A Marian that was trained for a while, so that its sentences end, at different times."""
    if (place.inputs / "translator" / "config.json").is_file():
        return
    recipe = recipe_of("translation", Place(place.root, steps=1))
    recipe["train"] = {
        "max_minutes": minutes,
        "batch_size": 64,
        "learning_rate": 1.5e-3,
        "warmup": 0.1,
        "dropout": 0.0,
    }
    (place.root / "translator.yaml").write_text(json.dumps(recipe))
    run = place.root / "translator"
    command = [
        "-m",
        "lmkit",
        "finetune",
        str(place.root / "translator.yaml"),
        "-o",
        str(run),
        "--overwrite",
    ]
    timed(command, place, place.root / "translator.log")
    shutil.copytree(run / "model", place.inputs / "translator")
    shutil.copy(place.inputs / "marian" / "sizes.json", place.inputs / "translator")


def machine_of(place: Place) -> dict[str, Any]:
    (place.root / "spec.json").write_text(
        json.dumps({"side": "peak", "out": str(place.root / "peak.json")})
    )
    timed([str(HERE / "peer.py"), str(place.root / "spec.json")], place, place.root / "peak.log")
    peak = json.loads((place.root / "peak.json").read_text())
    name, has = chip()
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "has": has,
        "peak": peak,
        "date": today(),
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }


def today() -> str:
    return datetime.date.today().isoformat()


def computes_in_bf16(machine: dict[str, Any]) -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & set(machine["has"]))


PROFILED = """
import re
from torch.profiler import profile
from lmkit.cli import main
from lmkit.train import session
seen, train_steps, whole = profile(), session.train_steps, {whole!r}
def watched(*given, **named):
    for step in train_steps(*given, **named):
        step.number == {first} and seen.start()
        step.number == {last} and seen.stop()
        yield step
if whole:
    seen.start()
else:
    session.train_steps = watched
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
if whole:
    seen.stop()
found = seen.key_averages()
kinds = dict.fromkeys([*{kinds!r}, "other"], 0.0)
for each in found:
    kinds[next((kind for kind, names in {kinds!r}.items() if re.search(names, each.key)), "other")] += each.self_cpu_time_total
with open({out!r}, "w") as page:
    page.writelines(f"{{kind:34}} {{took / sum(kinds.values()):6.1%}}\\n" for kind, took in kinds.items())
    page.write(found.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
"""
KINDS = {
    "matrix products": r"^aten::(mm|addmm|bmm|baddbmm|addmm_)$",
    "attention's kernel": r"scaled_dot_product_flash",
    "copies, casts, new memory": r"^aten::(copy_|cat|fill_|zero_|empty.*|clone|index.*|_index.*|gather|scatter.*|embedding.*)$",
    "random numbers and masks": r"^aten::(random_|bernoulli_|where|masked_fill.*|ge|div_)$",
    "softmax": r"softmax|^aten::(exp_?|log)$",
    "activations and norms": r"silu|gelu|layer_norm|^aten::(pow|rsqrt|mean)$",
    "additions and multiplications": r"^aten::(add|add_|mul|mul_|sub|sub_|neg|div|sum|amax)$",
    "clipping and optimizer": r"adamw|AdamW|vector_norm|_foreach",
}  # of operators, by their names


def profile(name: str, place: Place) -> str:
    """What lmkit's side of a bench spends its time in, by kinds of operators and by operators.

    Of training the steps after the warm-up; of evaluation, generation and startup the whole command.
    """
    out, recipe, page = (
        place.root / "lmkit",
        place.root / f"{name}.yaml",
        place.root / f"{name}-profile.txt",
    )
    shutil.rmtree(out, ignore_errors=True)
    recipe.write_text(json.dumps(recipe_of(name, place)))
    whole = name in ("eval", "generate", "startup")
    code = PROFILED.format(out=str(page), whole=whole, first=WARM_UP, last=place.steps, kinds=KINDS)
    timed(
        ["-c", code, COMMANDS.get(name, "finetune"), str(recipe), "-o", str(out)],
        place,
        place.root / "profile.log",
    )
    return page.read_text()


# --- the page ---


def table(found: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| work | against the script | target | against best | target | lmkit | script | best | memory | padding | share of peak | loss |"
    ]
    lines.append("|---" * 12 + "|")
    for bench in found:

        def ratio(side: str, bench: dict[str, Any] = bench) -> str:
            median, least, most = bench[side]["ratio"]
            return f"{median:.2f}x ({least:.2f} ... {most:.2f})"

        def each(key: str, form: str, bench: dict[str, Any] = bench) -> str:
            values = [bench[side].get(key) for side in SIDES]
            return " / ".join("-" if value is None else format(value, form) for value in values)

        rates = [
            f"{bench[side]['seconds']:.2f} s"
            if bench["unit"] == "runs"
            else f"{bench[side]['rate']:,.0f} {bench['unit']}/s"
            for side in SIDES
        ]
        targets = [
            f"{bench['targets'][side]:.2f}x" if side in bench["targets"] else ""
            for side in SIDES[1:]
        ]
        memory = " / ".join(
            f"{bench[side]['memory_ratio']:.2f}x" if "memory_ratio" in bench[side] else "-"
            for side in SIDES[1:]
        )
        cells = [
            bench["what"],
            ratio("script"),
            targets[0],
            ratio("best"),
            targets[1],
            *rates,
            memory,
        ]
        cells += [each("padding", ".0%"), each("share_of_peak", ".0%"), each("loss", ".3f")]
        lines.append("| " + " | ".join(cells) + " |")
    for bench in found:
        if "same_answers" in bench["script"]:
            same = " / ".join(f"{bench[side]['same_answers']:.1%}" for side in SIDES[1:])
            cut = bench["lmkit"].get("truncated", 0.0)
            lines.append(
                f"\n{bench['name']}: {same} of the answers of script / best are lmkit's; {cut:.1%} of lmkit's reached the longest output."
            )
    return "\n".join(lines)


def described(machine: dict[str, Any]) -> str:
    """What ``machine_of`` found, in a line."""
    peak = ", ".join(
        f"{machine['peak'][dtype] / 1e9:,.0f} GFLOP/s in {dtype}" for dtype in ("fp32", "bf16")
    )
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    has = ", ".join(machine["has"])
    return f"{machine['cores']} cores ({machine['cpu']}; {has}), {machine['date']}, {versions}, matrix products {peak}"


def section(found: Sequence[dict[str, Any]]) -> str:
    """The text of the page, from the JSON of the benches."""
    on = {bench["name"]: described(bench["machine"]) for bench in found}
    return f"""## Speed

`make bench` on {machines(on)}.
How each side is set up stands at the head of `tests/bench/speed.py`. Ratios are medians of pairs with
least and greatest; above 1 lmkit is faster. Memory: lmkit's peak over that of script / best. Padding, share of peak and mean
training loss: lmkit / script / best.

{table(found)}
"""


def remembered(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that docs/speed.json has once these are in it, in the order of the page."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    by_name = {bench["name"]: bench for bench in [*known, *measured]}
    kept = [by_name[name] for name in BENCHES if name in by_name]
    if kept:
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only",
        default=os.environ.get("BENCH", ""),
        help="names with commas: " + ", ".join([*BENCHES, *MORE]),
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of lmkit's loop")
    parser.add_argument("--rows", type=int, help="no more rows than these")
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="of training the translator of generate, once"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the page from what was measured, and measure nothing",
    )
    parser.add_argument(
        "--profile",
        metavar="NAME",
        choices=set(BENCHES) - {"tokenize"},
        help="where 20 steps of lmkit's side spend their time",
    )
    given = parser.parse_args()
    root = given.out.resolve()
    names = given.only.split(",") if given.only else [*BENCHES, "time", "growth", "gpu"]
    if unknown := set(names) - {*BENCHES, *MORE}:
        sys.exit(f"no bench {', '.join(sorted(unknown))}; there are {', '.join([*BENCHES, *MORE])}")
    root.mkdir(parents=True, exist_ok=True)
    if given.profile:
        timed([str(HERE / "inputs.py"), str(root / "inputs")], Place(root), root / "inputs.log")
        print(profile(given.profile, Place(root, steps=20, rows=given.rows)))
        return
    if not given.docs and (chosen := [name for name in names if name in BENCHES]):
        measure_all(
            chosen,
            Place(root, rows=given.rows),
            pairs=given.pairs,
            seconds=given.seconds,
            minutes=given.minutes,
        )
    done = [
        json.loads(path.read_text())
        for name in BENCHES
        if (path := root / f"{name}.json").is_file()
    ]
    if given.docs and (kept := remembered(done)):
        publish("speed", section(kept), docs=True)
    elif shown := [bench for bench in done if bench["name"] in names]:
        publish("speed", section(shown), docs=False)
    for name in names:
        if name in MORE:
            subprocess.run(
                [
                    sys.executable,
                    str(HERE / MORE[name]),
                    "--out",
                    str(root),
                    *["--docs"] * given.docs,
                ],
                check=True,
            )


def measure_all(
    names: Sequence[str], place: Place, *, pairs: int, seconds: float, minutes: float
) -> None:
    timed([str(HERE / "inputs.py"), str(place.inputs)], place, place.root / "inputs.log")
    machine = machine_of(place)
    place = replace(place, bf16=computes_in_bf16(machine))
    for name in names:
        if name == "generate":
            translator(place, minutes)
        found = measure(name, place, pairs=pairs, seconds=seconds, machine=machine)
        (place.root / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
