"""``lmkit bench RECIPE``: how fast a recipe trains on this machine, and which hardware keys would make it faster."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.errors import LmkitError, RecipeError, TrainingStopped
from lmkit.flow.singles import check_repeat, is_repeated, single_runs
from lmkit.models.source import ModelSource, find_model
from lmkit.preflight import check_model_keys, check_stage
from lmkit.recipe import Recipe, load_recipe
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from lmkit.data.splits import Splits

ROUNDS = 5  # turns of the recipe and of a setting: equals have all five ratios on one side once in 16 times
NOISE = 0.03  # and a median this far from 1 besides
WAITING = 0.01  # share of the time from which on loader workers could gain something
PEAK_SECONDS = 0.3
TRIED = (
    "precision",
    "micro_batch_tokens",
    "packing",
    "attention",
    "kernels",
    "workers",
    "gradient_checkpointing",
    "compile",
)
KEYS = tuple(f"hardware.{key}" for key in TRIED)
ENDS_SECONDS = 5  # before it is ended, in the middle of a step if need be
READ_AHEAD = 2  # steps that torch's loader lets each worker prepare

Setting = dict[str, Any]  # dotted keys of the hardware section -> values


@dataclass(frozen=True)
class Case:
    """What a process of its own measures."""

    recipe: Recipe
    splits: Splits
    source: ModelSource | None


def bench(
    source: str, overrides: Sequence[str] = (), *, seconds: float = 10.0, tried: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure a recipe's training loop, and beside it settings that compute the same otherwise.

    No run directory is touched and no weight saved; tokens, and a tokenizer that the recipe learns, go into the cache,
    where training finds them.

    Args:
        seconds: measured for each setting, and as long for the recipe beside it.
        tried: hardware keys as ``KEY=VALUE``, each a setting of its own, in place of lmkit's choice.

    Returns:
        For ``--json``; ``faster`` is the best of what was clearly faster, as KEY=VALUE.

    Raises:
        LmkitError: whatever training the recipe would refuse.
    """
    recipe, splits, found = _checked(source, overrides)
    asked = [_hardware_keys(recipe, text) for text in tried]
    turn = seconds / ROUNDS
    with _process(Case(recipe, splits, found)) as own:
        first = own.call("turn", turn, settle=0)
        smaller = _fitting(recipe, own.facts, first, turn)
        if smaller is None:
            return _compare(
                Case(recipe, splits, found), own, asked, turn, steps_of=recipe.train.batch_size
            )
    console.warn(
        f"a step takes {first['seconds'] / first['steps']:.0f} s; measured are steps of {smaller} examples, not {recipe.train.batch_size}"
    )
    short = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"batch_size": smaller})}
    )
    with _process(Case(short, splits, found)) as own:
        return _compare(
            Case(short, splits, found), own, asked, turn, steps_of=recipe.train.batch_size
        )


def _checked(source: str, overrides: Sequence[str]) -> tuple[Recipe, Splits, ModelSource | None]:
    """All that training would refuse before torch is there."""
    recipe = load_recipe(source, overrides)
    if "RANK" in os.environ:
        raise LmkitError(
            "lmkit bench measures one process, and was started as one of several",
            remedy="leave the launcher out",
        )
    check_stage(recipe, problem(recipe.task).stage if recipe.task else "finetune")
    if recipe.lora is not None and recipe.lora.quantize is not None:
        from lmkit.models.quantized import check_quantization

        check_quantization(recipe.lora.quantize)
    if is_repeated(recipe):
        check_repeat(recipe)
        recipe = single_runs(recipe)[0][1]
    found = find_model(recipe.model.base) if recipe.model.base else None
    check_model_keys(recipe, found)
    from lmkit.data.splits import Splits, load_splits

    splits = load_splits(recipe, problem(recipe.task), wanted=("train", "validation"))
    return recipe, Splits({"train": splits.rows["train"]}, splits.facts), found


def _hardware_keys(recipe: Recipe, text: str) -> Setting:
    """The key and value of ``--try``.

    Raises:
        RecipeError: no such key or value, one that changes what is learned, or one that the loop of one process does not know.
    """
    changed = load_recipe(recipe, [text])
    key = text.partition("=")[0]
    if key not in KEYS:
        problem = (
            "is no part of what is measured"
            if key.startswith("hardware.")
            else "changes what is learned, not only how fast"
        )
        raise RecipeError(problem, place=f"--try {key}", remedy=f"one of: {', '.join(KEYS)}")
    return {key: getattr(changed.hardware, key.partition(".")[2])}


def _fitting(
    recipe: Recipe, facts: dict[str, Any], first: dict[str, Any], turn: float
) -> int | None:
    """Examples of a step that is done within a turn, two micro-batches at least; None: the recipe's are."""
    step_seconds = first["seconds"] / first["steps"]
    if step_seconds <= turn:
        return None
    wanted = max(
        int(recipe.train.batch_size * turn / step_seconds), 2 * facts["examples_a_micro_batch"]
    )
    return wanted if wanted < recipe.train.batch_size else None


# ---------------------------------------------------------------------------------- measuring


def _compare(
    case: Case, own: _Process, asked: list[Setting], turn: float, *, steps_of: int
) -> dict[str, Any]:
    """The recipe's own figures, and each setting against it."""
    facts = own.facts
    warm = own.turn(turn)
    settings = asked or choices(case.recipe, facts, warm["waited_seconds"] / warm["seconds"])
    minutes = 2 * turn * (ROUNDS + 1) * len(settings) / 60
    console.say(
        f"settings to try: {len(settings)}; {minutes:.1f} minutes of measuring, and some seconds to start each"
    )
    turns, peaks, rows = [own.turn(turn)], [own.call("matmul_peak", PEAK_SECONDS)], []
    with console.progress_bar(total=len(settings), what="bench", unit="setting") as bar:
        for setting in settings:
            row, beside = _against(case, own, setting, turn)
            turns += beside
            peaks.append(own.call("matmul_peak", PEAK_SECONDS))
            rows.append(row)
            if console.is_verbose():
                console.say(f"{setting}: {row}")
            bar.update()
    best = combined(rows)
    if len(best) > 1:
        row, beside = _against(case, own, best, turn)
        turns += beside
        rows.append(row)
    flops = own.call("flops_per_token")
    total = {
        key: sum(each[key] for each in turns)
        for key in ("seconds", "examples", "tokens", "slots", "waited_seconds")
    }
    speed, an_example = total["tokens"] / total["seconds"], total["seconds"] / total["examples"]
    steps, train = facts["steps"], case.recipe.train
    chosen = fastest(rows)
    return {
        "recipe": case.recipe.name,
        "task": case.recipe.task,
        **{
            key: facts[key]
            for key in ("device", "threads", "parameters", "precision", "packing", "workers")
        },
        "micro_batch_tokens": turns[-1]["micro_batch_tokens"],
        "tokens_per_second": round(speed, 1),
        "low": round(min(each["tokens"] / each["seconds"] for each in turns), 1),
        "high": round(max(each["tokens"] / each["seconds"] for each in turns), 1),
        "padding": round(1 - total["tokens"] / total["slots"], 4),
        "peak_memory_bytes": max(each["peak_memory_bytes"] for each in turns),
        "matmul_flops_per_second": round(max(peaks)),
        "flops_per_token": round(flops) if flops is not None else None,
        "share_of_peak": round(speed * flops / max(peaks), 4) if flops is not None else None,
        "data_wait": round(total["waited_seconds"] / total["seconds"], 4),
        "seconds_per_epoch": round(an_example * facts["examples"], 3),
        "seconds_in_all": round(an_example * steps_of * steps, 3)
        if steps
        else (train.max_minutes or 0) * 60,
        "settings": rows,
        "faster": [f"{key}={_as_value(value)}" for key, value in chosen.items()],
    }


def _against(
    case: Case, own: _Process, setting: Setting, turn: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A setting's row, and the turns of the recipe beside it: turn about, so that whatever slows the machine slows both."""
    recipe = load_recipe(
        case.recipe, [f"{key}={_as_value(value)}" for key, value in setting.items()]
    )
    row: dict[str, Any] = {"set": setting}
    beside: list[dict[str, Any]] = []
    try:
        with _process(Case(recipe, case.splits, case.source)) as other:
            other.turn(turn)  # what is slow at first, and what the memory grows to
            turns = []
            for _ in range(ROUNDS):
                beside.append(own.turn(turn))
                turns.append(other.turn(turn))
    except (LmkitError, TrainingStopped) as error:
        return row | {"verdict": "failed", "note": str(error).splitlines()[0]}, beside
    speeds, owns = ([each["tokens"] / each["seconds"] for each in some] for some in (turns, beside))
    ratios = [mine / its for mine, its in zip(speeds, owns, strict=True)]
    row |= {
        "tokens_per_second": round(statistics.median(speeds), 1),
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "padding": round(
            1 - sum(each["tokens"] for each in turns) / sum(each["slots"] for each in turns), 4
        ),
        "peak_memory_bytes": turns[-1]["peak_memory_bytes"],
        "verdict": verdict(ratios),
    }
    wanted, used = other.facts["micro_batch_tokens"], turns[-1]["micro_batch_tokens"]
    return row | (
        {"note": f"out of memory: micro-batches of {used} tokens"} if used != wanted else {}
    ), beside


def verdict(ratios: Sequence[float]) -> str:
    """``faster`` and ``slower`` where all turns say so, and the median by more than noise.

    >>> verdict([1.1, 1.2, 1.04]), verdict([0.9, 1.2, 1.1]), verdict([0.8, 0.9, 0.9])
    ('faster', 'no difference', 'slower')
    """
    median = statistics.median(ratios)
    if min(ratios) > 1 and median >= 1 + NOISE:
        return "faster"
    return "slower" if max(ratios) < 1 and median <= 1 - NOISE else "no difference"


def choices(recipe: Recipe, facts: dict[str, Any], data_wait: float) -> list[Setting]:
    """The settings worth trying: those that would compute something in another way than the recipe does."""
    hardware = recipe.hardware
    found: list[Setting] = []
    if facts["native_bf16"]:
        found.append({"hardware.precision": "fp32" if facts["precision"] == "bf16" else "bf16"})
    found += [{"hardware.micro_batch_tokens": tokens} for tokens in facts["other_micro_batches"]]
    if facts["packing"] or hardware.packing == "off":
        found.append({"hardware.packing": "off" if facts["packing"] else "auto"})
    if facts["attention"] != "SDPA":
        found.append({"hardware.attention": "sdpa"})
    if facts["kernels"] != "PyTorch's":
        found.append({"hardware.kernels": "torch"})
    if hardware.gradient_checkpointing:
        found.append({"hardware.gradient_checkpointing": False})
    if (
        hardware.compile == "on" or facts["device"] != "cpu"
    ):  # where auto decides in the run itself, which is longer
        found.append({"hardware.compile": "off" if hardware.compile == "on" else "on"})
    if facts["workers"] not in (0, "auto") or data_wait >= WAITING:
        found += [
            {"hardware.workers": number} for number in (0, 1, 2) if number != facts["workers"]
        ]
    return found


def combined(rows: Sequence[dict[str, Any]]) -> Setting:
    """All that is clearly faster together; of one key the best value."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        for key in row["set"]:
            if row["verdict"] == "faster" and row["ratio"] > best.get(key, {"ratio": 1})["ratio"]:
                best[key] = row
    return {key: row["set"][key] for key, row in best.items()}


def fastest(rows: Sequence[dict[str, Any]]) -> Setting:
    """The setting with the highest ratio of those that are clearly faster; none: empty."""
    faster = [row for row in rows if row["verdict"] == "faster"]
    return max(faster, key=lambda row: row["ratio"])["set"] if faster else {}


def _as_value(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def tables(found: dict[str, Any]) -> str:
    """What was measured, and what was tried, for people."""
    memory = f"{found['peak_memory_bytes'] / 2**30:.2f} GiB"
    share = f"{found['share_of_peak']:.1%}" if found["share_of_peak"] is not None else "-"
    measured = [
        ["device", f"{found['device']}, {found['threads']} threads, {found['precision']}"],
        [
            "parameters",
            f"{found['parameters']['total']:,} ({found['parameters']['trained']:,} trained)",
        ],
        [
            "micro-batches",
            f"{found['micro_batch_tokens']} tokens, {'packed' if found['packing'] else 'not packed'}",
        ],
        [
            "tokens a second",
            f"{found['tokens_per_second']:,.0f} ({found['low']:,.0f} ... {found['high']:,.0f})",
        ],
        ["padding", f"{found['padding']:.1%}"],
        ["peak memory", memory],
        [
            "matrix products' peak",
            f"{found['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s in {found['precision']}",
        ],
        ["share of it", share],
        ["waiting for data", f"{found['data_wait']:.1%}"],
        ["an epoch", f"{found['seconds_per_epoch'] / 60:.1f} minutes"],
        ["the whole run", f"{found['seconds_in_all'] / 60:.1f} minutes, evaluations not counted"],
    ]
    tried = [
        [
            " ".join(f"{key}={_as_value(value)}" for key, value in row["set"].items()),
            f"{row['tokens_per_second']:,.0f}" if "ratio" in row else "-",
            f"{row['ratio']:.2f} ({row['low']:.2f} ... {row['high']:.2f})"
            if "ratio" in row
            else "-",
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB" if "ratio" in row else "-",
            row["verdict"],
            row.get("note", ""),
        ]
        for row in found["settings"]
    ]
    parts = [console.table([f"{found['recipe']} as it is", "measured"], measured)]
    if tried:
        parts.append(
            console.table(
                ["tried", "tokens/s", "times the recipe's", "memory", "verdict", ""], tried
            )
        )
    parts.append(
        " ".join(found["faster"]) if found["faster"] else "nothing that was tried is clearly faster"
    )
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------- the processes


class _Process:
    """A trial in a process of its own.

    Peak memory is a process's, and threads, precision and what torch caches are set once in it. At most two are
    there at a time, the recipe's and one setting's, and one of them always waits.
    """

    def __init__(self, case: Case):
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, case))
        self._process.start()
        end.close()
        self._is_slow = False
        self.facts: dict[str, Any] = self._answer()

    def turn(self, seconds: float) -> dict[str, Any]:
        """Steps for about so long, after one that warms up and those that loader workers had ready.

        Where a step takes as long as the turn, it needs no warming up.
        """
        workers = self.facts["workers"]
        settle = 0 if self._is_slow else 1 + READ_AHEAD * (0 if workers == "auto" else workers)
        found: dict[str, Any] = self.call("turn", seconds, settle=settle)
        self._is_slow = found["steps"] == 1
        return found

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What a method of the trial returns; what it raises is raised here."""
        self._pipe.send((method, arguments, options))
        return self._answer()

    def _answer(self) -> Any:
        try:
            is_well, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise TrainingStopped(
                f"the process that measured ended with status {self._process.exitcode}: often the memory is full"
            ) from None
        if not is_well:
            raise value
        return value

    def end(self) -> None:
        self._pipe.close()  # which ends it, and its loader workers
        self._process.join(ENDS_SECONDS)
        self._process.terminate()
        self._process.join()


@contextmanager
def _process(case: Case) -> Iterator[_Process]:
    process = _Process(case)
    try:
        yield process
    finally:
        process.end()


def _serve(pipe: Connection, case: Case) -> None:
    """Answer what is asked over the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that started this ends it
    os.dup2(2, 1)  # stdout has room for the command's one JSON object alone
    console.configure(as_json=True, quiet=True)
    try:
        from lmkit.train.trial import Trial

        trial = Trial(case.recipe, case.splits, case.source)
        pipe.send((True, trial.facts()))
        while True:
            method, arguments, options = pipe.recv()
            pipe.send((True, getattr(trial, method)(*arguments, **options)))
    except EOFError:
        return
    except (LmkitError, TrainingStopped) as error:
        pipe.send((False, type(error)(str(error))))
