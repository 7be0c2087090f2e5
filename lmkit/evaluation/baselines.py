"""What a sceptic would ask for: baselines learned from the training rows in seconds, shown beside the model.

A baseline answers with lines of predictions.jsonl, so that it is scored, and compared with the model, as models are.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
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
from lmkit.recipe.schema import Eval
from lmkit.records import BaselineScore, Metrics, Record
from lmkit.tasks.base import Task
from lmkit.tasks.ner.task import marks_entities
from lmkit.tasks.registry import headline

Answers = dict[str, list[Record]]
# more would take minutes, and what is beyond is said
MOST_ROWS, MOST_TOKENS, MOST_LINKS = 20_000, 2_000_000, 3_000_000
ORDER = 4
MODELS_OWN = (
    "pseudo_perplexity",
    "truncated",
)  # read off what the model did, which its baselines' records only carry on
HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+(?:['’-][^\W{HAN}]+)*|[^\w\s]")


def compare_baselines(
    task: Task, train: Rows, test: Encoded, records: Sequence[Record], options: Eval
) -> dict[str, BaselineScore]:
    """Return every baseline of the task with its metrics, and how much better the model is.

    Args:
        test: the rows the model was evaluated on. records: what it said.
    """
    return {
        name: _score(answers, records, task, options)
        for name, answers in BASELINES[task.name](task, train, test, records).items()
    }


def _score(
    answers: Sequence[Record], records: Sequence[Record], task: Task, options: Eval
) -> BaselineScore:
    """Score the answers of a baseline, and compare them with the model's."""
    metric, seed = headline(task.name, task.metrics), task.recipe.seed
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


def check_baselines(task: str, has_train: bool) -> None:
    """Refuse ``eval.baseline`` where there is nothing to learn one from."""
    if task not in BASELINES:
        raise RecipeError(
            f"there is no baseline for {task}", place="eval.baseline", remedy="leave it out"
        )
    if not has_train:
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


# ---------------------------------------------------------------------------------- classification


def _classification(task: Task, train: Rows, test: Encoded, records: Sequence[Record]) -> Answers:
    rows = _first(train)
    fields = [
        field.name
        for field in task.fields_of(task.recipe, task.facts, None)
        if field.kind == "text"
    ]
    texts, wanted = ([_joined(row, fields) for row in found] for found in (rows, test.rows))
    gold: list[Any] = [row["label"] for row in rows]
    if isinstance(gold[0], float):
        mean = sum(gold) / len(gold)
        return {
            "mean": _answer(records, [mean] * len(records)),
            "tfidf_ridge_regression": _answer(records, ridge_regression(texts, gold, wanted)),
        }
    if isinstance(gold[0], list):
        counts = Counter(label for labels in gold for label in labels)
        usual = sorted(label for label, count in counts.items() if 2 * count >= len(gold))
        by_label = {
            label: logistic_regression(texts, [str(label in labels) for labels in gold], wanted)
            for label, count in counts.items()
            if count < len(gold)
        }
        answers = [
            [
                label
                for label in task.facts["labels"]
                if label in counts and by_label.get(label, ["True"] * len(wanted))[i] == "True"
            ]
            for i in range(len(wanted))
        ]
        return {
            "usual_labels": _answer(records, [usual or _commonest(counts)] * len(records)),
            "tfidf_logistic_regression": _answer(records, answers),
        }
    found = {"majority_class": _answer(records, _commonest(Counter(gold)) * len(records))}
    if len(set(gold)) > 1:
        found["tfidf_logistic_regression"] = _answer(
            records, logistic_regression(texts, gold, wanted)
        )
    return found


def _commonest(counts: Counter[str]) -> list[str]:
    """The commonest one, the first by the alphabet of several."""
    return [max(sorted(counts), key=counts.__getitem__)]


def _joined(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    return "\n".join(row[name] for name in fields if row.get(name))


def _tfidf(texts: Sequence[str]) -> Any:
    """tf-idf of words and pairs of them; of characters where words are not spaced."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    sample = "".join(texts[:500])
    unspaced = len(re.findall(f"[{HAN}\u0e00-\u0eff]", sample)) > 0.2 * len(sample)
    units: dict[str, Any] = (
        {"analyzer": "char", "ngram_range": (1, 3)}
        if unspaced
        else {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"}
    )
    return TfidfVectorizer(
        sublinear_tf=True, min_df=2 if len(texts) > 1000 else 1, max_features=30_000, **units
    )


def logistic_regression(
    texts: Sequence[str], labels: Sequence[str], wanted: Sequence[str]
) -> list[str]:
    """Labels by logistic regression on tf-idf."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    vectors = _tfidf(texts)
    model = LogisticRegression(C=10, max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # good enough is good enough here
        model.fit(vectors.fit_transform(texts), labels)
    return [str(label) for label in model.predict(vectors.transform(wanted))]


def ridge_regression(
    texts: Sequence[str], numbers: Sequence[float], wanted: Sequence[str]
) -> list[float]:
    """Numbers by ridge regression on tf-idf."""
    from sklearn.linear_model import Ridge

    vectors = _tfidf(texts)
    model = Ridge(alpha=1.0).fit(vectors.fit_transform(texts), numbers)
    return [float(number) for number in model.predict(vectors.transform(wanted))]


# ---------------------------------------------------------------------------------- tagging


def _tagging(task: Task, train: Rows, test: Encoded, records: Sequence[Record]) -> Answers:
    rows = _first(train)
    tags = most_frequent_tags(
        [(row["tokens"], row["tags"]) for row in rows],
        [row["tokens"] for row in test.rows],
        labels=task.facts["labels"],
    )
    return {"most_frequent_tag": _answer(records, tags)}


def most_frequent_tags(
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    wanted: Sequence[Sequence[str]],
    *,
    labels: Sequence[str],
) -> list[list[str]]:
    """Each word with the tag it has most often; unknown ones with ``O``, or without an ``O`` with the commonest tag.

    An ``I-X`` that continues nothing becomes ``B-X``, which is how conlleval reads it.

    >>> most_frequent_tags([(["in", "New", "York"], ["O", "B-LOC", "I-LOC"])], [["York", "York", "x"]], labels=["O"])
    [['B-LOC', 'I-LOC', 'O']]
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in sentences:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    everything = sum(counts.values(), Counter())
    unknown = "O" if "O" in labels else max(sorted(everything), key=everything.__getitem__)
    best = {word: max(sorted(found), key=found.__getitem__) for word, found in counts.items()}
    is_entities = marks_entities({*labels, *everything})
    answers = []
    for words in wanted:
        answer: list[str] = []
        for word in words:
            tag = best.get(word, unknown)
            if (
                is_entities
                and tag[0] == "I"
                and (not answer or answer[-1] == "O" or answer[-1][1:] != tag[1:])
            ):
                tag = "B" + tag[1:]
            answer.append(tag)
        answers.append(answer)
    return answers


# ---------------------------------------------------------------------------------- translation


def _translation(task: Task, train: Rows, test: Encoded, records: Sequence[Record]) -> Answers:
    pairs = [(row["source"], row["target"]) for row in _first(train)]
    sources = [row["source"] for row in test.rows]
    return {
        "source_copy": _answer(records, sources),
        "nearest_training_pair": _answer(records, nearest_targets(pairs, sources)),
        "word_by_word": _answer(records, word_by_word(pairs, sources)),
    }


def nearest_targets(pairs: Sequence[tuple[str, str]], sources: Sequence[str]) -> list[str]:
    """For each source the target of the training pair whose source is most like it: cosine of tf-idf word vectors.

    >>> nearest_targets([("a cat", "un gato"), ("a dog", "un perro")], ["the dog"])
    ['un perro']
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(token_pattern=None, tokenizer=WORD.findall)
    known = vectors.fit_transform([source for source, _ in pairs]).T
    found = []
    for start in range(0, len(sources), 256):
        likeness = vectors.transform(sources[start : start + 256]) @ known
        found += [pairs[best][1] for best in likeness.toarray().argmax(axis=1)]
    return found


def word_by_word(pairs: Sequence[tuple[str, str]], sources: Sequence[str]) -> list[str]:
    """Each word by its likeliest translation after five rounds of IBM model 1 (Brown et al. 1993); unknown words copied.

    >>> word_by_word([("a cat", "un gato"), ("a dog", "un perro"), ("the dog", "el perro")], ["the cat."])
    ['el gato.']
    """
    dictionary = ibm_model_1(pairs)
    answers = []
    for source in sources:
        words = [dictionary.get(word.lower(), word) for word in WORD.findall(source)]
        text = re.sub(r"(?<=[¿¡(]) | (?=[.,;:!?%)…。，、？！])", "", " ".join(words))
        text = re.sub(rf"(?<=[{HAN}]) (?=[{HAN}])", "", text)
        answers.append(text[:1].upper() + text[1:] if source[:1].isupper() else text)
    return answers


def ibm_model_1(pairs: Sequence[tuple[str, str]], *, rounds: int = 5) -> dict[str, str]:
    """Lower-cased source words -> their likeliest translation, of lower-cased targets."""
    numbers: tuple[dict[str, int], dict[str, int]] = (
        {"": 0},
        {},
    )  # "" is the word that unexplained ones come from
    sources, targets, owners = [], [], []
    first = links = 0
    for pair in pairs:
        source, target = (
            np.array(
                [known.setdefault(word.lower(), len(known)) for word in WORD.findall(text)],
                np.int64,
            )
            for known, text in zip(numbers, pair, strict=True)
        )
        source = np.append(source, 0)
        sources.append(np.tile(source, len(target)))
        targets.append(np.repeat(target, len(source)))
        owners.append(np.repeat(first + np.arange(len(target)), len(source)))
        first += len(target)
        links += len(sources[-1])
        if links > MOST_LINKS:
            break
    width = max(1, len(numbers[1]))
    kinds, kind = np.unique(
        np.concatenate(sources) * width + np.concatenate(targets), return_inverse=True
    )
    owner, of_source = np.concatenate(owners), kinds // width
    probability = np.ones(len(kinds))
    for _ in range(rounds):
        share = probability[kind]
        share /= np.bincount(owner, share)[owner]
        expected = np.bincount(kind, share, minlength=len(kinds))
        probability = expected / np.bincount(of_source, expected)[of_source]
    order = np.lexsort((-probability, of_source))
    best = order[np.unique(of_source[order], return_index=True)[1]]
    names = [list(known) for known in numbers]
    return {
        names[0][kinds[i] // width]: names[1][kinds[i] % width] for i in best if kinds[i] >= width
    }


# ---------------------------------------------------------------------------------- language models


def _language_model(task: Task, train: Rows, test: Encoded, records: Sequence[Record]) -> Answers:
    """The n-gram model over the model's tokens, asked for the tokens that the model is asked for.

    For a masked model these are the hidden ones, from what is to be seen on their left; for a decoder that fills gaps
    those that it writes, from what it wrote before.
    """
    vocabulary = len(task.tokenizer)

    def asked(
        seen: Sequence[int], labels: Sequence[int], *, causal: bool = task.name == "clm"
    ) -> Any:
        return grams(seen, labels, order=ORDER, causal=causal, pad=vocabulary)

    def written(labels: Sequence[int]) -> Any:
        return asked([vocabulary, *labels[:-1]], labels, causal=True)

    learned = encode(train, task, tokenizer_hash(task.tokenizer))
    parts, tokens = [], 0
    for number, piece in enumerate(learned.pieces):
        if task.generates:
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
            [written(labels) if task.generates else asked(seen, labels) for seen, labels in lines]
        )
        probability, likeliest = model.predict(wanted)
        sums = {
            "nll": float(-np.log(probability).sum()),
            "items": len(wanted),
            "correct": int((likeliest == wanted[:, -1]).sum()),
        }
        answers.append(Record({**record, **sums}))
    return {f"kneser_ney_{ORDER}_gram": answers}


BASELINES: dict[str, Callable[[Task, Rows, Encoded, Sequence[Record]], Answers]] = {
    "classification": _classification,
    "ner": _tagging,
    "translation": _translation,
    "mlm": _language_model,
    "clm": _language_model,
    "denoise": _language_model,
}
