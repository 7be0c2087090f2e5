"""``lmkit bench RECIPE``: how fast a recipe trains on this machine, and which hardware keys would make it faster."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from lmkit import console
from lmkit.errors import LmkitError, RecipeError, TrainingStopped
from lmkit.flow.case import Case
from lmkit.flow.singles import check_repeat, is_repeated, single_runs
from lmkit.flow.trials import TrialProcess, trial_process
from lmkit.models.source import find_model
from lmkit.preflight import check_model_keys, check_stage
from lmkit.recipe import Recipe, load_recipe
from lmkit.tasks.registry import problem
from lmkit.train.measurements import TrialFacts, Turn, sum_turns

ROUNDS = 5  # turns of the recipe and of a setting: equals have all five ratios on one side once in 16 times
NOISE = 0.03  # and a median this far from 1 besides
WAITING = 0.01  # share of the time from which on loader workers could gain something
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

Setting = dict[str, Any]  # dotted keys of the hardware section -> values


@dataclass(frozen=True)
class Speed:
    """The speed of a setting beside the recipe's, over turns of both.

    Args:
        ratio: median of its speeds over the recipe's; ``low`` and ``high`` are the extremes.
    """

    tokens_per_second: float
    ratio: float
    low: float
    high: float
    padding: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class TriedSetting:
    """A setting that was tried.

    Args:
        speed: None: it failed, and ``note`` says why.
    """

    setting: Setting
    verdict: str
    speed: Speed | None = None
    note: str | None = None

    @property
    def is_faster(self) -> bool:
        return self.speed is not None and self.verdict == "faster"

    @property
    def ratio(self) -> float:
        return self.speed.ratio if self.speed is not None else 0.0

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"set": self.setting}
        if self.speed is not None:
            values |= asdict(self.speed)
        values["verdict"] = self.verdict
        return values if self.note is None else values | {"note": self.note}

    def cells(self) -> list[str]:
        """Return a line of the table."""
        keys = " ".join(as_arguments(self.setting))
        if self.speed is None:
            return [keys, "-", "-", "-", self.verdict, self.note or ""]
        speed = self.speed
        ratio = f"{speed.ratio:.2f} ({speed.low:.2f} ... {speed.high:.2f})"
        memory = f"{speed.peak_memory_bytes / 2**30:.2f} GiB"
        tokens = f"{speed.tokens_per_second:,.0f}"
        return [keys, tokens, ratio, memory, self.verdict, self.note or ""]


@dataclass(frozen=True)
class BenchReport:
    """The speed of a recipe on this machine, and of the settings that were tried beside it.

    Args:
        flops_per_token, share_of_peak: None where they could not be counted.
        faster: the best of what was clearly faster, as KEY=VALUE.
    """

    recipe: str
    task: str
    device: str
    threads: int
    parameters: Mapping[str, int]
    precision: str
    packing: bool
    workers: int | str
    micro_batch_tokens: int
    tokens_per_second: float
    low: float
    high: float
    padding: float
    peak_memory_bytes: int
    matmul_flops_per_second: int
    flops_per_token: int | None
    share_of_peak: float | None
    data_wait: float
    seconds_per_epoch: float
    seconds_in_all: float
    settings: tuple[TriedSetting, ...]
    faster: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["settings"] = [measured.to_json() for measured in self.settings]
        return values | {"faster": list(self.faster)}

    def to_text(self) -> str:
        trained = f"{self.parameters['trained']:,} trained"
        packing = "packed" if self.packing else "not packed"
        peak = f"{self.matmul_flops_per_second / 1e9:,.0f} GFLOP/s in {self.precision}"
        speed = f"{self.tokens_per_second:,.0f} ({self.low:,.0f} ... {self.high:,.0f})"
        in_all = f"{self.seconds_in_all / 60:.1f} minutes, evaluations not counted"
        rows = [
            ["device", f"{self.device}, {self.threads} threads, {self.precision}"],
            ["parameters", f"{self.parameters['total']:,} ({trained})"],
            ["micro-batches", f"{self.micro_batch_tokens} tokens, {packing}"],
            ["tokens a second", speed],
            ["padding", f"{self.padding:.1%}"],
            ["peak memory", f"{self.peak_memory_bytes / 2**30:.2f} GiB"],
            ["matrix products' peak", peak],
            ["share of it", "-" if self.share_of_peak is None else f"{self.share_of_peak:.1%}"],
            ["waiting for data", f"{self.data_wait:.1%}"],
            ["an epoch", f"{self.seconds_per_epoch / 60:.1f} minutes"],
            ["the whole run", in_all],
        ]
        parts = [console.table([f"{self.recipe} as it is", "measured"], rows)]
        if self.settings:
            header = ["tried", "tokens/s", "times the recipe's", "memory", "verdict", ""]
            tried = [measured.cells() for measured in self.settings]
            parts.append(console.table(header, tried))
        parts.append(" ".join(self.faster) or "nothing that was tried is clearly faster")
        return "\n\n".join(parts)


def bench(
    source: str, overrides: Sequence[str] = (), *, seconds: float = 10.0, tried: Sequence[str] = ()
) -> BenchReport:
    """Measure a recipe's training loop, and beside it settings that compute the same otherwise.

    No run directory is touched and no weight saved; tokens, and a tokenizer that the recipe learns, go into the cache,
    where training finds them.

    Args:
        seconds: measured for each setting, and as long for the recipe beside it.
        tried: hardware keys as ``KEY=VALUE``, each a setting of its own, in place of lmkit's choice.

    Raises:
        LmkitError: whatever training the recipe would refuse.
    """
    case = _checked(source, overrides)
    recipe = case.recipe
    asked = [_hardware_keys(recipe, text) for text in tried]
    turn = seconds / ROUNDS
    with trial_process(case) as own:
        first = own.first_turn(turn)
        smaller = _fitting(recipe, own.facts, first, turn)
        if smaller is None:
            return _compare(case, own, asked, turn, steps_of=recipe.train.batch_size)
    console.warn(
        f"a step takes {first.seconds / first.steps:.0f} s; measured are steps of {smaller} examples, not {recipe.train.batch_size}"
    )
    train = recipe.train.model_copy(update={"batch_size": smaller})
    short = Case(recipe.model_copy(update={"train": train}), case.splits, case.source)
    with trial_process(short) as own:
        return _compare(short, own, asked, turn, steps_of=recipe.train.batch_size)


def _checked(source: str, overrides: Sequence[str]) -> Case:
    """Refuse all that training would refuse before torch is there."""
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
    model = find_model(recipe.model.base) if recipe.model.base else None
    check_model_keys(recipe, model)
    from lmkit.data.splits import Splits, load_splits

    splits = load_splits(recipe, problem(recipe.task), wanted=("train", "validation"))
    return Case(recipe, Splits({"train": splits.rows["train"]}, splits.facts), model)


def _hardware_keys(recipe: Recipe, text: str) -> Setting:
    """Read the key and value of ``--try``.

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


def _fitting(recipe: Recipe, facts: TrialFacts, first: Turn, turn: float) -> int | None:
    """Return the examples of a step that is done within a turn, two micro-batches at least; None: the recipe's are."""
    step_seconds = first.seconds / first.steps
    if step_seconds <= turn:
        return None
    size = int(recipe.train.batch_size * turn / step_seconds)
    size = max(size, 2 * facts.examples_a_micro_batch)
    return size if size < recipe.train.batch_size else None


# ---------------------------------------------------------------------------------- measuring


def _compare(
    case: Case, own: TrialProcess, asked: list[Setting], turn: float, *, steps_of: int
) -> BenchReport:
    """Measure the recipe, and each setting against it."""
    warm = own.turn(turn)
    settings = asked or choices(case.recipe, own.facts, warm.data_wait)
    minutes = 2 * turn * (ROUNDS + 1) * len(settings) / 60
    console.say(
        f"settings to try: {len(settings)}; {minutes:.1f} minutes of measuring, and some seconds to start each"
    )
    turns, peaks = [own.turn(turn)], [own.matmul_peak()]
    results: list[TriedSetting] = []
    with console.progress_bar(total=len(settings), what="bench", unit="setting") as bar:
        for setting in settings:
            measured, beside = _against(case, own, setting, turn)
            turns += beside
            peaks.append(own.matmul_peak())
            results.append(measured)
            if console.is_verbose():
                console.say(f"{setting}: {measured.to_json()}")
            bar.update()
    together = combined(results)
    if len(together) > 1:
        measured, beside = _against(case, own, together, turn)
        turns += beside
        results.append(measured)
    return _report(case, own, turns, results, max(peaks), steps_of)


def _report(
    case: Case,
    own: TrialProcess,
    turns: list[Turn],
    results: list[TriedSetting],
    peak: float,
    steps_of: int,
) -> BenchReport:
    """Sum up the recipe's own turns, and what was measured beside them."""
    facts, flops, total = own.facts, own.flops_per_token(), sum_turns(turns)
    speeds = [part.tokens_per_second for part in turns]
    speed, an_example = total.tokens_per_second, total.seconds / total.examples
    in_all: float = (case.recipe.train.max_minutes or 0) * 60
    if facts.steps:
        in_all = round(an_example * steps_of * facts.steps, 3)
    return BenchReport(
        recipe=case.recipe.name,
        task=case.recipe.task,
        device=facts.device,
        threads=facts.threads,
        parameters=facts.parameters,
        precision=facts.precision,
        packing=facts.packing,
        workers=facts.workers,
        micro_batch_tokens=total.micro_batch_tokens,
        tokens_per_second=round(speed, 1),
        low=round(min(speeds), 1),
        high=round(max(speeds), 1),
        padding=round(total.padding, 4),
        peak_memory_bytes=total.peak_memory_bytes,
        matmul_flops_per_second=round(peak),
        flops_per_token=None if flops is None else round(flops),
        share_of_peak=None if flops is None else round(speed * flops / peak, 4),
        data_wait=round(total.data_wait, 4),
        seconds_per_epoch=round(an_example * facts.examples, 3),
        seconds_in_all=in_all,
        settings=tuple(results),
        faster=tuple(as_arguments(fastest(results))),
    )


def _against(
    case: Case, own: TrialProcess, setting: Setting, turn: float
) -> tuple[TriedSetting, list[Turn]]:
    """Measure a setting, turn about with the recipe, so that whatever slows the machine slows both.

    Returns:
        The setting's figures, and the recipe's turns.
    """
    recipe = load_recipe(case.recipe, as_arguments(setting))
    turns: list[Turn] = []
    beside: list[Turn] = []
    try:
        with trial_process(Case(recipe, case.splits, case.source)) as trial:
            trial.turn(turn)  # what is slow at first, and what the memory grows to
            for _ in range(ROUNDS):
                beside.append(own.turn(turn))
                turns.append(trial.turn(turn))
    except (LmkitError, TrainingStopped) as error:
        return TriedSetting(setting, "failed", note=str(error).splitlines()[0]), beside
    pairs = zip(turns, beside, strict=True)
    ratios = [part.tokens_per_second / its.tokens_per_second for part, its in pairs]
    total = sum_turns(turns)
    speed = Speed(
        tokens_per_second=round(statistics.median(part.tokens_per_second for part in turns), 1),
        ratio=round(statistics.median(ratios), 3),
        low=round(min(ratios), 3),
        high=round(max(ratios), 3),
        padding=round(total.padding, 4),
        peak_memory_bytes=turns[-1].peak_memory_bytes,
    )
    note = None
    if total.micro_batch_tokens != trial.facts.micro_batch_tokens:
        note = f"out of memory: micro-batches of {total.micro_batch_tokens} tokens"
    return TriedSetting(setting, verdict(ratios), speed, note), beside


def verdict(ratios: Sequence[float]) -> str:
    """``faster`` and ``slower`` where all turns say so, and the median by more than noise.

    >>> verdict([1.1, 1.2, 1.04]), verdict([0.9, 1.2, 1.1]), verdict([0.8, 0.9, 0.9])
    ('faster', 'no difference', 'slower')
    """
    median = statistics.median(ratios)
    if min(ratios) > 1 and median >= 1 + NOISE:
        return "faster"
    return "slower" if max(ratios) < 1 and median <= 1 - NOISE else "no difference"


def choices(recipe: Recipe, facts: TrialFacts, data_wait: float) -> list[Setting]:
    """Return the settings worth trying: those that would compute something in another way than the recipe does."""
    hardware = recipe.hardware
    settings: list[Setting] = []
    if facts.native_bf16:
        settings.append({"hardware.precision": "fp32" if facts.precision == "bf16" else "bf16"})
    settings += [{"hardware.micro_batch_tokens": tokens} for tokens in facts.other_micro_batches]
    if facts.packing or hardware.packing == "off":
        settings.append({"hardware.packing": "off" if facts.packing else "auto"})
    if facts.attention != "SDPA":
        settings.append({"hardware.attention": "sdpa"})
    if facts.kernels != "PyTorch's":
        settings.append({"hardware.kernels": "torch"})
    if hardware.gradient_checkpointing:
        settings.append({"hardware.gradient_checkpointing": False})
    # on a CPU, auto decides in the run itself, which is longer
    if hardware.compile == "on" or facts.device != "cpu":
        settings.append({"hardware.compile": "off" if hardware.compile == "on" else "on"})
    if facts.workers not in (0, "auto") or data_wait >= WAITING:
        numbers = [number for number in (0, 1, 2) if number != facts.workers]
        settings += [{"hardware.workers": number} for number in numbers]
    return settings


def combined(results: Sequence[TriedSetting]) -> Setting:
    """Return all that is clearly faster together; of one key the best value."""
    best: dict[str, TriedSetting] = {}
    for measured in results:
        for key in measured.setting:
            if measured.is_faster and (key not in best or measured.ratio > best[key].ratio):
                best[key] = measured
    return {key: measured.setting[key] for key, measured in best.items()}


def fastest(results: Sequence[TriedSetting]) -> Setting:
    """Return the setting with the highest ratio of those that are clearly faster; empty without one."""
    faster = [measured for measured in results if measured.is_faster]
    return max(faster, key=lambda measured: measured.ratio).setting if faster else {}


def as_arguments(setting: Setting) -> list[str]:
    """Return the KEY=VALUE arguments that make a setting."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in setting.items()
    ]
