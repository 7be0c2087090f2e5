"""What a sceptic would ask for: baselines learned from the training rows in seconds, shown beside the model.

A baseline answers with lines of predictions.jsonl, so that it is scored, and compared with the model, as models are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit import console
from lmkit.data.encode import Encoded, encode
from lmkit.data.rows import Rows
from lmkit.errors import RecipeError
from lmkit.evaluation.compare import Test, compare_pair, score_together
from lmkit.evaluation.ngram import KneserNey, grams
from lmkit.metrics.intervals import bootstrap_intervals
from lmkit.models.tokenizer import tokenizer_hash
from lmkit.recipe.schema import Eval, Recipe
from lmkit.records import BaselineScore, Metrics, Record
from lmkit.tasks.base import Facts, Problem, Task
from lmkit.tasks.registry import headline, problem

Answers = dict[str, list[Record]]  # by baseline
# more would take minutes, and what is beyond is said
MOST_ROWS, MOST_TOKENS = 20_000, 2_000_000
ORDER = 4
MODELS_OWN = (
    "pseudo_perplexity",
    "truncated",
)  # read off what the model did, which its baselines' records only carry on


def compare_baselines(
    task: Task, train: Rows, test: Encoded, records: Sequence[Record], options: Eval
) -> dict[str, BaselineScore]:
    """Return every baseline of the task with its metrics, and how much better the model is.

    Args:
        test: the rows the model was evaluated on. records: what it said.
    """
    answers = answers_of(task, train, test, records)
    return {name: _score(found, records, task, options) for name, found in answers.items()}


def answers_of(task: Task, train: Rows, test: Encoded, records: Sequence[Record]) -> Answers:
    """Return the records of every baseline of the task."""
    if not _has_gold(task.problem, task.recipe):
        return language_model(task, train, test, records)
    rows, answers = _first(train), Answers()
    for baseline in task.problem.baselines(task.facts):
        predictions = baseline.predict(rows, list(test.rows))
        if predictions is not None:
            answers[baseline.name] = _answer(records, predictions)
    return answers


def _has_gold(problem: Problem, recipe: Recipe) -> bool:
    """Tell if rows have an answer; else a model predicts the tokens of the text itself."""
    return any(field.gold for field in problem.fields(recipe))


def _score(
    answers: Sequence[Record], records: Sequence[Record], task: Task, options: Eval
) -> BaselineScore:
    """Score the answers of a baseline, and compare them with the model's."""
    metric, seed = task.problem.headline(task.facts), task.recipe.seed
    (baseline,), (model,) = score_together(task, [[answers], [records]], metric)
    intervals = bootstrap_intervals(
        baseline,
        confidence=options.confidence,
        resamples=options.resamples,
        seed=seed,
        kind=options.interval,
    )
    metrics = {name: value for name, value in intervals.items() if name not in MODELS_OWN}
    items = [[record.get("items") for record in side] for side in (answers, records)]
    if not options.resamples or len(records) < 2 or items[0] != items[1]:
        return BaselineScore(metrics)
    test = Test(confidence=options.confidence, resamples=options.resamples, seed=seed)
    pair = compare_pair([baseline], [model], metric, test)
    return BaselineScore(
        metrics,
        metric=metric,
        difference=pair.difference,
        low=pair.low,
        high=pair.high,
        p_value=pair.p_value,
        verdict=pair.verdict.replace("a is", "baseline is").replace("b is", "model is"),
    )


def baselines_table(metrics: Metrics) -> str:
    """Show the headline metric of the model and of its baselines, for people."""
    metric = headline(metrics.task, metrics.metrics)
    rows = [["this model", _shown(metrics.metrics[metric].value), "", "", ""]]
    for name, score in (metrics.baselines or {}).items():
        bounds = f"{_shown(score.low, '+')} ... {_shown(score.high, '+')}"
        rows.append(
            [
                name.replace("_", " "),
                _shown(score.metrics[metric].value),
                bounds if score.low is not None else "-",
                "-" if score.p_value is None else f"{score.p_value:.3g}",
                score.verdict or "-",
            ]
        )
    return console.table(["beside it", metric, "the model has more", "p", "verdict"], rows)


def _shown(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def check_baselines(recipe: Recipe, facts: Facts) -> None:
    """Refuse ``eval.baseline`` where there is nothing to learn one from."""
    solved = problem(recipe.task)
    if _has_gold(solved, recipe) and not solved.baselines(facts):
        raise RecipeError(
            f"there is no baseline for {recipe.task}", place="eval.baseline", remedy="leave it out"
        )
    if recipe.data.train is None:
        raise RecipeError(
            "no data to learn a baseline from",
            place="eval.baseline",
            remedy="give data.train, or leave it out",
        )


def _first(train: Rows, most: int = MOST_ROWS) -> list[dict[str, Any]]:
    """The training rows; of many a sample, for files may be sorted by label."""
    if len(train) <= most:
        return list(train)
    console.say(f"baselines: learned from a sample of {most:,} of {len(train):,} training rows")
    chosen = np.random.Generator(np.random.Philox(len(train))).choice(
        len(train), most, replace=False
    )
    return list(train.select(np.sort(chosen).tolist()))


def _answer(records: Sequence[Record], predictions: Sequence[Any]) -> list[Record]:
    return [
        record.with_answer(prediction)
        for record, prediction in zip(records, predictions, strict=True)
    ]


def language_model(task: Task, train: Rows, test: Encoded, records: Sequence[Record]) -> Answers:
    """The n-gram model over the model's tokens, asked for the tokens that the model is asked for.

    For a masked model these are the hidden ones, from what is to be seen on their left; for a decoder that fills gaps
    those that it writes, from what it wrote before.
    """
    vocabulary = len(task.tokenizer)
    is_causal = task.problem.architecture == "decoder"
    writes = task.problem.architecture == "encoder-decoder"

    def asked(seen: Sequence[int], labels: Sequence[int], *, causal: bool = is_causal) -> Any:
        return grams(seen, labels, order=ORDER, causal=causal, pad=vocabulary)

    def written(labels: Sequence[int]) -> Any:
        return asked([vocabulary, *labels[:-1]], labels, causal=True)

    learned = encode(train, task, tokenizer_hash(task.tokenizer))
    parts, tokens = [], 0
    for number, piece in enumerate(learned.pieces):
        if writes:
            parts.append(
                written(task.collate([[piece | {"piece": number}]], epoch=0).labels[0].tolist())
            )
        else:  # every token but the first is one to learn from
            parts.append(
                asked(piece["input_ids"], piece.get("labels") or [-100, *piece["input_ids"][1:]])
            )
        tokens += len(parts[-1])
        if tokens > MOST_TOKENS:
            console.say(
                f"baselines: learned from the first {tokens:,} of about {learned.tokens:,} training tokens"
            )
            break
    model = KneserNey(np.concatenate(parts), vocabulary)
    answers: list[Record] = []
    for number, record in enumerate(records):
        batches = [task.collate([[piece]]) for piece in test.example(number)]
        lines = [
            (batch.inputs["input_ids"][0].tolist(), batch.labels[0].tolist()) for batch in batches
        ]
        wanted = np.concatenate(
            [written(labels) if writes else asked(seen, labels) for seen, labels in lines]
        )
        probability, likeliest = model.predict(wanted)
        sums = {
            "nll": float(-np.log(probability).sum()),
            "items": len(wanted),
            "correct": int((likeliest == wanted[:, -1]).sum()),
        }
        answers.append(Record({**record, **sums}))
    return {f"kneser_ney_{ORDER}_gram": answers}
