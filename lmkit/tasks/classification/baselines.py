"""Simple classifiers that need rows alone: the commonest answer, and linear models over tf-idf."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lmkit.batch import Row
from lmkit.tasks.base import Baseline
from lmkit.tasks.words import HAN

TEXTS = ("text", "text_pair")


def baselines_of(kind: str, labels: Sequence[str]) -> tuple[Baseline, ...]:
    """Return the baselines for a kind of gold."""
    if kind == "regression":
        return (Baseline("mean", mean), Baseline("tfidf_ridge_regression", ridge_of_rows))
    if kind == "multi_label":

        def decide(train: Sequence[Row], rows: Sequence[Row]) -> list[list[str]]:
            return label_sets(train, rows, labels)

        return (
            Baseline("usual_labels", usual_labels),
            Baseline("tfidf_logistic_regression", decide),
        )
    return (
        Baseline("majority_class", majority_class),
        Baseline("tfidf_logistic_regression", logistic_of_rows),
    )


def majority_class(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Answer every row with the commonest label."""
    return _commonest(Counter(row["label"] for row in train)) * len(rows)


def logistic_of_rows(train: Sequence[Row], rows: Sequence[Row]) -> list[str] | None:
    """Answer by logistic regression on tf-idf; None where there is one label alone."""
    gold = [row["label"] for row in train]
    if len(set(gold)) < 2:
        return None
    return logistic_regression(_texts(train), gold, _texts(rows))


def usual_labels(train: Sequence[Row], rows: Sequence[Row]) -> list[list[str]]:
    """Answer every row with the labels that half of the training rows have, or with the commonest one."""
    counts = _count(train)
    usual = sorted(label for label, count in counts.items() if 2 * count >= len(train))
    return [usual or _commonest(counts)] * len(rows)


def label_sets(train: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> list[list[str]]:
    """Answer by a logistic regression for each label; a label that all training rows have is always given."""
    texts, wanted, counts = _texts(train), _texts(rows), _count(train)
    answers: list[list[str]] = [[] for _ in rows]
    for label in labels:
        if label not in counts:
            continue
        decisions = ["True"] * len(rows)
        if counts[label] < len(train):
            gold = [str(label in row["label"]) for row in train]
            decisions = logistic_regression(texts, gold, wanted)
        for answer, decision in zip(answers, decisions, strict=True):
            if decision == "True":
                answer.append(label)
    return answers


def mean(train: Sequence[Row], rows: Sequence[Row]) -> list[float]:
    """Answer every row with the mean of the training rows."""
    return [sum(row["label"] for row in train) / len(train)] * len(rows)


def ridge_of_rows(train: Sequence[Row], rows: Sequence[Row]) -> list[float]:
    """Answer by ridge regression on tf-idf."""
    return ridge_regression(_texts(train), [row["label"] for row in train], _texts(rows))


def _texts(rows: Sequence[Row]) -> list[str]:
    """Return both texts of a pair as one."""
    return ["\n".join(row[name] for name in TEXTS if row.get(name)) for row in rows]


def _count(rows: Sequence[Row]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row["label"])
    return counts


def _commonest(counts: Counter[str]) -> list[str]:
    """Return the commonest one, the first by the alphabet of several."""
    return [max(sorted(counts), key=counts.__getitem__)]


def _tfidf(texts: Sequence[str]) -> Any:
    """Weigh by tf-idf words and pairs of them; of characters where words are not spaced."""
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
    """Predict labels by logistic regression on tf-idf."""
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
    """Predict numbers by ridge regression on tf-idf."""
    from sklearn.linear_model import Ridge

    vectors = _tfidf(texts)
    model = Ridge(alpha=1.0).fit(vectors.fit_transform(texts), numbers)
    return [float(number) for number in model.predict(vectors.transform(wanted))]
