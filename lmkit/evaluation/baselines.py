"""What a sceptic would ask for: baselines learned from the training rows in seconds, shown beside the model.

A baseline answers with lines of predictions.jsonl, so that it is scored, and compared with the model, as models are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit import console
from lmkit.batch import IGNORE, Batch, Piece
from lmkit.data.encode import Encoded, encode
from lmkit.data.rows import Rows
from lmkit.errors import RecipeError
from lmkit.evaluation.compare import Test, compare_pair, score_together
from lmkit.evaluation.ngram import Integers, KneserNey, grams
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
# read off what the model did, which its baselines' records only carry on
MODELS_OWN = ("pseudo_perplexity", "truncated")


def compare_baselines(
    task: Task, train: Rows, test: Encoded, records: Sequence[Record], options: Eval
) -> dict[str, BaselineScore]:
    """Return every baseline of the task with its metrics, and how much better the model is.

    Args:
        test: the rows the model was evaluated on. records: what it said.
    """
    by_baseline = answers_of(task, train, test, records)
    return {name: _score(answers, records, task, options) for name, answers in by_baseline.items()}


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
    """Return the training rows; of many a sample, since files may be sorted by label."""
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
    """Ask an n-gram model over the model's tokens for the tokens that the model is asked for."""
    questions = _Questions(task)
    model = KneserNey(questions.of_training(train), questions.vocabulary)
    answers = []
    for number, record in enumerate(records):
        asked = questions.of_row(test.example(number))
        probability, likeliest = model.predict(asked)
        sums = {
            "nll": float(-np.log(probability).sum()),
            "items": len(asked),
            "correct": int((likeliest == asked[:, -1]).sum()),
        }
        answers.append(Record({**record, **sums}))
    return {f"kneser_ney_{ORDER}_gram": answers}


class _Questions:
    """The tokens that a language model is asked for, each with those before it.

    A masked model is asked for the hidden ones, from what is to be seen on their left; a decoder that fills gaps
    for those that it writes, from what it wrote before.
    """

    def __init__(self, task: Task):
        self.task, self.vocabulary = task, len(task.tokenizer)
        self.is_causal = task.problem.architecture == "decoder"
        self.writes = task.problem.architecture == "encoder-decoder"

    def of_training(self, rows: Rows) -> Integers:
        """Return the tokens to learn from; of many, the first ones."""
        learned = encode(rows, self.task, tokenizer_hash(self.task.tokenizer))
        parts: list[Integers] = []
        tokens = 0
        for number, piece in enumerate(learned.pieces):
            parts.append(self._of_training_piece(piece | {"piece": number}))
            tokens += len(parts[-1])
            if tokens > MOST_TOKENS:
                console.say(
                    f"baselines: learned from the first {tokens:,} of about {learned.tokens:,} training tokens"
                )
                break
        return np.concatenate(parts)

    def of_row(self, pieces: Sequence[Piece]) -> Integers:
        """Return the tokens of a row that the model is asked for."""
        batches = [self.task.collate([[piece]]) for piece in pieces]
        return np.concatenate([self._of_batch(batch) for batch in batches])

    def _of_training_piece(self, piece: Piece) -> Integers:
        if self.writes:
            return self._of_batch(self.task.collate([[piece]], epoch=0))
        # every token but the first is one to learn from
        labels = piece.get("labels") or [IGNORE, *piece["input_ids"][1:]]
        return self._asked(piece["input_ids"], labels)

    def _of_batch(self, batch: Batch) -> Integers:
        return self._asked(batch.inputs["input_ids"][0].tolist(), batch.labels[0].tolist())

    def _asked(self, seen: Sequence[int], labels: Sequence[int]) -> Integers:
        if self.writes:  # what was written before is the context
            seen = [self.vocabulary, *labels[:-1]]
        is_causal = self.is_causal or self.writes
        return grams(seen, labels, order=ORDER, causal=is_causal, pad=self.vocabulary)
