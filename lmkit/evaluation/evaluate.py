"""Predictions for every row of a split, in file order, exactly once; and what they are worth.

Rows are read in chunks and, within a chunk, in batches of alike lengths under a token budget, so the
memory needed does not grow with the data; where it ends, a batch is computed in halves. Every part carries its row, ranks send (row, parts), and the
first rank keeps one record per row: duplicates cannot happen by construction [trl#7010].
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit import console
from lmkit.data.encode import Encoded
from lmkit.data.plan import micro_batches
from lmkit.data.splits import Splits
from lmkit.errors import ModelError
from lmkit.evaluation import suspicions
from lmkit.evaluation.analysis import Background, analyse
from lmkit.evaluation.records import store
from lmkit.metrics.intervals import Interval, bootstrap_intervals
from lmkit.models.memory import in_parts
from lmkit.recipe.schema import Eval
from lmkit.run import atomic_directory, write_rejects
from lmkit.tasks.answers import Record, answer_of
from lmkit.tasks.base import Task
from lmkit.tasks.registry import less_is_better

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lmkit.metrics.statistics import Statistics

CHUNK_ROWS = 2048
THREAD_TOKENS = 1024  # what a core's caches hold of a small model's pass: 8192 took one thread 1.45 times as long (6 x 384 BERT, bf16)
# of modules of the evaluate library, whose metrics no task knows
LESS_IS_BETTER = frozenset({"wer", "cer", "mae", "rmse", "mape", "smape", "mase", "brier_score"})
LESS_IS_BETTER |= {"loss", "perplexity", "mse", "ter"}  # which some of them compute, too


@dataclass(frozen=True)
class Evaluated:
    """What a model does on a split.

    Args:
        statistics: per row; metrics and intervals follow from them.
        loss: mean over the labels that count, in nats, whatever the batches.
        examples: rows.
        seconds: of predicting.
    """

    statistics: Statistics
    loss: float
    examples: int
    seconds: float

    def value(self, metric: str) -> float:
        return self.loss if metric == "loss" else self.statistics.values()[metric]


def predict_records(
    model: Any, task: Task, encoded: Encoded, accelerator: Accelerator, *, budget: int
) -> Iterator[dict[str, Any]]:
    """The line of predictions.jsonl of every row, in order; on ranks other than the first nothing is yielded."""
    import torch
    from accelerate.utils import gather_object

    budget = forward_tokens(budget, task, accelerator.device)
    was_training = model.training
    model.eval()
    try:
        owners = encoded.pieces.column("row")
        ranks, rank = accelerator.num_processes, accelerator.process_index
        starts = range(0, len(encoded.rows), CHUNK_ROWS)
        for start in console.progress(starts, total=len(starts), what="predicting", unit="chunk"):
            rows = encoded.rows[start : start + CHUNK_ROWS]
            first, last = owners.searchsorted([start, start + CHUNK_ROWS]).tolist()
            pieces = encoded.take(range(first, last))
            costs = _array([task.cost(piece) for piece in pieces])
            batches = micro_batches(_numbers(len(pieces)), costs, budget)
            parts: list[tuple[int, dict[str, Any]]] = []

            def predict(
                numbers: Sequence[int], pieces: list[dict[str, Any]] = pieces
            ) -> list[tuple[int, dict[str, Any]]]:
                chosen = [pieces[i] for i in numbers]
                batch = task.collate([[piece] for piece in chosen]).to(accelerator.device)
                return list(zip(numbers, task.predict(model, batch, chosen), strict=True))

            with (
                torch.inference_mode(),
                accelerator.autocast(),
            ):  # which casts the weights once while it lasts
                for numbers in batches[rank::ranks]:
                    parts += in_parts(predict, numbers.tolist())
            if ranks > 1:
                parts = gather_object(parts)
            if rank == 0:
                by_row: list[list[dict[str, Any]]] = [[] for _ in rows]
                for number, part in sorted(dict(parts).items()):
                    by_row[pieces[number]["row"] - start].append(part)
                for row, found in zip(rows, by_row, strict=True):
                    record = task.combine(row, found)
                    if math.isnan(record["nll"]):
                        raise ModelError(
                            "the model's output is not a number",
                            place=f"row {record['id']}",
                            remedy="its training diverged, or its weights are broken: train it anew, with a lower train.learning_rate",
                        )
                    yield record
    finally:
        model.train(was_training)


def forward_tokens(budget: int, task: Task, device: Any) -> int:
    """Tokens of a forward pass without gradients: at most ``budget``, and on a CPU no more than its caches hold.

    Where text is generated a step reads one token of each sentence, so batches stay as large as the memory allows.
    """
    import torch

    if device.type != "cpu" or task.problem.writes:
        return budget
    return min(budget, THREAD_TOKENS * torch.get_num_threads())


def _numbers(count: int) -> Any:
    import numpy as np

    return np.arange(count)


def _array(values: Any) -> Any:
    import numpy as np

    return np.asarray(values, dtype=np.int64)


def measure(records: Sequence[Record], task: Task, *, seconds: float) -> Evaluated:
    """Records -> statistics and token-weighted loss."""
    nll, items = 0.0, 0
    for record in records:
        nll, items = nll + record["nll"], items + record["items"]
    loss = nll / items if items else math.nan
    return Evaluated(task.problem.score(task.facts, records), loss, len(records), seconds)


def validate(
    model: Any, task: Task, encoded: Encoded, accelerator: Accelerator, *, metric: str, budget: int
) -> float:
    """One metric on a split, the same on every rank: what chooses the best checkpoint."""
    from accelerate.utils import broadcast_object_list

    if metric == "loss":
        value = mean_loss(model, task, encoded, accelerator, budget=budget)
    else:
        predicted = predict_records(model, task, encoded, accelerator, budget=budget)
        with tempfile.TemporaryDirectory(prefix="lmkit-") as folder:
            records = store(predicted, Path(folder) / "predictions.jsonl")
            value = (
                measure(records, task, seconds=0).value(metric)
                if accelerator.is_main_process
                else 0.0
            )
            if (
                accelerator.is_main_process and not task.problem.tunes(task.recipe, task.facts)
            ):  # else answers are not yet those the model will give
                answer = answer_of(task).only_decision(records)
                suspicions.warn_of_always_predicted(answer, split="validation", training=True)
    found = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    return float(found[0])


def mean_loss(
    model: Any, task: Task, encoded: Encoded, accelerator: Accelerator, *, budget: int
) -> float:
    """Token-weighted loss of a split, without predictions; independent of the batches [transformers#39241]."""
    import torch

    budget = forward_tokens(budget, task, accelerator.device)
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.double, device=accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        lengths = encoded.pieces.column("length")
        batches = micro_batches(_numbers(len(lengths)), lengths, budget)

        def losses(numbers: Sequence[int]) -> list[torch.Tensor]:
            pieces = encoded.take(numbers)
            batch = task.collate([[piece] for piece in pieces]).to(accelerator.device)
            items = torch.tensor(float(batch.items), dtype=torch.double, device=accelerator.device)
            return [torch.stack([task.loss(model, batch).double(), items])]

        for numbers in batches[accelerator.process_index :: accelerator.num_processes]:
            for found in in_parts(losses, numbers.tolist()):
                sums += found
    model.train(was_training)
    total, items = accelerator.reduce(sums, "sum").tolist()
    return total / items if items else math.nan


def lower_is_better(metric: str) -> bool:
    """Whether less is better; of what a module of ``eval.metrics`` computes (``module.name``) by its own name."""
    name = metric.rpartition(".")[2]
    return name in LESS_IS_BETTER or less_is_better(name)


def is_better(metric: str, value: float, than: float | None) -> bool:
    if math.isnan(value):
        return False
    return than is None or (value < than if lower_is_better(metric) else value > than)


def metrics_json(
    evaluated: Evaluated, task: Task, *, split: str, options: Eval, seed: int
) -> dict[str, Any]:
    """The content of metrics.json (contract)."""
    intervals = bootstrap_intervals(
        evaluated.statistics,
        confidence=options.confidence,
        resamples=options.resamples,
        seed=seed,
        kind=options.interval,
    )
    found: dict[str, Any] = {
        "task": task.name,
        "split": split,
        "examples": evaluated.examples,
        "loss": finite(evaluated.loss),
        "confidence": options.confidence,
        "metrics": {name: _interval(interval) for name, interval in intervals.items()},
    }
    if by_label := evaluated.statistics.label_values():
        found["by_label"] = {
            label: row | {"support": int(row["support"])} for label, row in by_label.items()
        }
    found["signature"] = " ".join(
        filter(
            None,
            [
                task.signature or evaluated.statistics.signature,
                f"bootstrap:{options.interval}|resamples:{options.resamples}|seed:{seed}",
            ],
        )
    )
    found["seconds"] = round(evaluated.seconds, 3)
    return found


def further_metrics(
    records: Sequence[Record], task: Task, options: Eval, *, taken: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``eval.metrics`` names, and the module behind each, as they stand in metrics.json."""
    from lmkit.metrics.custom import custom_metrics

    found = custom_metrics(
        options.metrics,
        [record["prediction"] for record in records],
        [record["gold"] for record in records],
        labels=task.facts.get("labels", ()),
        taken=taken,
        trust_remote_code=task.recipe.model.trust_remote_code,
        confidence=options.confidence,
        resamples=options.resamples,
        seed=task.recipe.seed,
    )
    intervals = {name: _interval(interval) for name, (interval, _) in found.items()}
    return intervals, {name: vars(module) for name, (_, module) in found.items()}


def _interval(interval: Interval) -> dict[str, float | None]:
    return {key: finite(value) for key, value in interval.as_dict().items()}


def finite(value: float | None) -> float | None:
    """JSON has no inf and no nan: null stands for what cannot be said."""
    return value if value is not None and math.isfinite(value) else None


def evaluate_split(
    model: Any,
    task: Task,
    encoded: Encoded,
    accelerator: Accelerator,
    *,
    split: str,
    options: Eval,
    budget: int,
    folder: Path,
    background: Background | None = None,
    beside: Callable[[Sequence[Record]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Predict, measure and analyse; write ``metrics.json``, ``predictions.jsonl``, ``analysis.json`` and ``report.html``.

    And ``rejects.jsonl`` where rows were left out. The folder is whole or absent.

    Args:
        beside: records to what stands beside the metrics, under ``baselines``.

    Returns:
        The content of metrics.json on the first rank, an empty mapping on the others.
    """
    started = time.perf_counter()
    predicted = predict_records(model, task, encoded, accelerator, budget=budget)
    if not accelerator.is_main_process:
        deque(predicted, maxlen=0)
        return {}
    with atomic_directory(folder) as aside:
        records = store(predicted, aside / "predictions.jsonl")
        evaluated = measure(records, task, seconds=time.perf_counter() - started)
        found = metrics_json(evaluated, task, split=split, options=options, seed=task.recipe.seed)
        rejected = Splits({split: encoded.rows}, task.facts).rejected
        found |= {
            name: count
            for name, count in (("cut_rows", encoded.cut), ("rejected_rows", len(rejected)))
            if count
        }
        write_rejects(aside / "rejects.jsonl", rejected)
        if options.metrics:
            further, found["modules"] = further_metrics(
                records, task, options, taken=list(found["metrics"])
            )
            found["metrics"] |= further
        if beside is not None:
            found["baselines"] = beside(records)
        (aside / "metrics.json").write_text(
            json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        explain(
            aside, found, records, evaluated, encoded, task, options, background or Background()
        )
    return found


def explain(
    folder: Path,
    found: dict[str, Any],
    records: Sequence[Record],
    evaluated: Evaluated,
    encoded: Encoded,
    task: Task,
    options: Eval,
    background: Background,
) -> None:
    """Write ``analysis.json`` and ``report.html``, and say the suspicions aloud.

    Args:
        found: the content of metrics.json.
    """
    from lmkit.evaluation.report.page import report

    analysis = analyse(records, evaluated.statistics, encoded, task, options, background)
    text = json.dumps(analysis, ensure_ascii=False, indent=1)
    (folder / "analysis.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(
        report(found, analysis, records, task, background), encoding="utf-8"
    )
    metric = task.problem.headline(task.facts)
    suspicions.say(
        analysis["suspicions"],
        answer_of(task),
        split=found["split"],
        metric=metric,
        value=found["metrics"][metric]["value"],
    )


def metrics_table(found: dict[str, Any]) -> str:
    """The metrics with their intervals, for people."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    level = f"{found['confidence'] * 100:g} % interval"
    rows = [
        [
            name,
            shown(m["value"]),
            f"{shown(m['low'])} ... {shown(m['high'])}" if m["low"] is not None else "-",
        ]
        for name, m in found["metrics"].items()
    ]
    if "loss" not in found["metrics"]:
        rows.append(["loss", shown(found["loss"]), ""])
    return console.table(["metric", "value", level], rows)
