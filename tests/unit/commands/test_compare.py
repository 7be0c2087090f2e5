"""What ``lmkit compare`` reads, refuses and says; directories as ``lmkit eval`` leaves them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmkit import console
from lmkit.commands.compare import Comparison, Format, Test, latex
from lmkit.commands.compare import compare as run_comparison
from lmkit.errors import LmkitError, RunError

GOLD = ["yes", "no"] * 60


def evaluated(
    folder: Path,
    records: list[dict[str, Any]],
    *,
    task: str = "classification",
    split: str = "test",
) -> str:
    """A directory with the evaluation of a split."""
    place = folder / "eval" / split
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps({"task": task, "split": split}))
    (place / "predictions.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
    return str(folder)


def classified(
    wrong: set[int], gold: list[str] = GOLD, *, loss: float = 0.5
) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "text": f"text {i}",
            "gold": label,
            "prediction": {"yes": "no", "no": "yes"}[label] if i in wrong else label,
        }
        | {"nll": loss + (i in wrong), "items": 1}
        for i, label in enumerate(gold)
    ]


def compare(
    names: list[str],
    *,
    metric: str | None = None,
    split: str | None = None,
    style: Format = "table",
    **test: Any,
) -> dict[str, Any]:
    """What ``lmkit compare --json`` prints; the table is printed, too."""
    comparison: Comparison = run_comparison(names, Test(**test), metric=metric, split=split)
    console.say(comparison.to_text(style))
    return comparison.to_json()


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """b has right what a has wrong, but for three."""
    return [
        evaluated(tmp_path / "a", classified(set(range(24)))),
        evaluated(tmp_path / "b", classified({0, 1, 2, 100, 101, 102})),
    ]


def test_answer_is_the_contracts(two: list[str]) -> None:
    found = compare(two, metric="accuracy")
    assert list(found)[:8] == [
        "metric",
        "a",
        "b",
        "difference",
        "low",
        "high",
        "p_value",
        "verdict",
    ]
    assert (found["metric"], found["a"], found["b"]) == ("accuracy", 0.8, 0.95)
    assert found["difference"] == pytest.approx(0.15)
    assert 0 < found["low"] < 0.15 < found["high"]
    assert found["p_value"] < 0.01
    assert found["verdict"] == "b is better"
    assert found["mcnemar_p_value"] == pytest.approx(
        2 * (1 + 24 + 276 + 2024) / 2**24
    )  # 3 against 21
    assert (found["examples"], found["split"], found["runs"]) == (120, "test", two)


def test_default_metric_is_the_tasks_own(two: list[str]) -> None:
    assert compare(two)["metric"] == "f1_macro"


def test_lower_loss_is_better(two: list[str]) -> None:
    found = compare(two[::-1], metric="loss")
    assert found["difference"] == pytest.approx(0.15)
    assert found["verdict"] == "a is better"


def test_permutation_says_the_same_here(two: list[str]) -> None:
    found = compare(two, metric="f1_macro", method="permutation", resamples=999)
    assert (found["p_value"], found["verdict"]) == (0.001, "b is better")


def test_run_against_itself_is_not_distinguishable(two: list[str]) -> None:
    assert compare([two[0], two[0]])["verdict"] == "not distinguishable"


def test_small_difference_is_not_distinguishable(two: list[str], tmp_path: Path) -> None:
    close = evaluated(tmp_path / "c", classified(set(range(1, 24))))
    assert compare([two[0], close])["verdict"] == "not distinguishable"


def test_several_are_compared_in_pairs_with_holms_correction(
    two: list[str], tmp_path: Path
) -> None:
    third = evaluated(tmp_path / "c", classified({5, 6, 7, 100, 101, 102}))
    found = compare([*two, third], metric="accuracy")
    assert [pair["runs"] for pair in found["pairs"]] == [two, [two[0], third], [two[1], third]]
    assert [pair["verdict"] for pair in found["pairs"]] == [
        "b is better",
        "b is better",
        "not distinguishable",
    ]
    smallest = min(pair["p_value"] for pair in found["pairs"])
    assert min(pair["p_holm"] for pair in found["pairs"]) == pytest.approx(3 * smallest)


def test_seeds_of_a_side_are_read_from_a_list_or_a_summary(two: list[str], tmp_path: Path) -> None:
    for seed, wrong in enumerate([range(20), range(28)], 13):
        evaluated(tmp_path / "many" / f"seed-{seed}", classified(set(wrong)))
    summary = {"over": "seeds", "runs": [{"run": "seed-13"}, {"run": "seed-14"}]}
    (tmp_path / "many" / "summary.json").write_text(json.dumps(summary))
    listed = f"{tmp_path}/many/seed-13,{tmp_path}/many/seed-14"
    found = compare([listed, two[1]], metric="accuracy")
    assert found["a"] == pytest.approx(1 - 24 / 120)
    by_summary = compare([str(tmp_path / "many"), two[1]], metric="accuracy")
    assert {key: by_summary[key] for key in ("a", "low", "p_value")} == {
        key: found[key] for key in ("a", "low", "p_value")
    }
    alone = compare(two, metric="accuracy")
    assert found["high"] - found["low"] > alone["high"] - alone["low"]
    with pytest.raises(RunError, match="several seeds"):
        compare([listed, two[1]], method="permutation")


def test_folds_are_put_together(two: list[str], tmp_path: Path) -> None:
    whole = classified(set(range(24)))
    for fold in (1, 2):
        evaluated(tmp_path / "folds" / f"fold-{fold}", whole[60 * (fold - 1) : 60 * fold])
    (tmp_path / "folds" / "summary.json").write_text(
        json.dumps({"over": "folds", "runs": [{"run": "fold-1"}, {"run": "fold-2"}]})
    )
    found = compare([str(tmp_path / "folds"), two[1]], metric="accuracy")
    assert (found["a"], found["examples"]) == (0.8, 120)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"text": "another"},
            'line 4 is another example than in .*: text is "another", there "text 3"',
        ),
        ({"gold": "yes"}, 'line 4 is another example .*: gold is "yes", there "no"'),
        ({"id": 7}, "line 4 is another example .*: id is 7, there 3"),
    ],
)
def test_other_examples_are_refused_with_the_first_line(
    two: list[str], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    records = classified(set())
    records[3] |= change
    records[9] |= {"text": "another, too"}
    with pytest.raises(RunError, match=said):
        compare([two[0], evaluated(tmp_path / "c", records)])


def test_fewer_examples_are_refused(two: list[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"119 examples, and .* has 120"):
        compare([two[0], evaluated(tmp_path / "c", classified(set(), GOLD[:-1]))])


def test_other_task_is_refused(two: list[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"different tasks: .* is classification, this is ner"):
        compare([two[0], evaluated(tmp_path / "c", [], task="ner")])


def test_unevaluated_run_is_refused_with_the_command_that_helps(
    two: list[str], tmp_path: Path
) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(RunError, match=r"not evaluated on test\n  lmkit eval "):
        compare([two[0], str(tmp_path / "c")])
    with pytest.raises(RunError, match=r"not evaluated on validation; there are: test \(--split\)"):
        compare(two, split="validation")
    with pytest.raises(RunError, match="did you mean"):
        compare([two[0], two[1] + "b"])


def test_validation_is_compared_where_not_all_have_a_test(two: list[str], tmp_path: Path) -> None:
    other = evaluated(tmp_path / "c", classified(set()), split="validation")
    evaluated(tmp_path / "a" / "..", classified({1}), split="validation")  # beside it, not in it
    evaluated(Path(two[0]), classified({3, 4}), split="validation")
    assert compare([two[0], other])["split"] == "validation"


def test_unknown_metric_is_refused_with_those_there_are(two: list[str]) -> None:
    with pytest.raises(LmkitError, match="did you mean 'f1_macro'"):
        compare(two, metric="f1macro")


def spoken(nll: float, items: int) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "text": "some words",
            "nll": nll + i % 3,
            "items": items,
            "correct": 1,
            "bytes": 10,
        }
        for i in range(40)
    ]


def test_losses_over_other_tokens_are_refused_and_bits_per_byte_are_not(tmp_path: Path) -> None:
    runs = [
        evaluated(tmp_path / f"{n}", spoken(nll, n), task="clm") for n, nll in ((2, 9.0), (3, 8.0))
    ]
    with pytest.raises(RunError, match="different tokens"):
        compare(runs, metric="perplexity")
    found = compare(runs)
    assert (found["metric"], found["verdict"]) == ("bits_per_byte", "b is better")


def test_entity_tags_and_translations_are_scored_without_their_models(tmp_path: Path) -> None:
    tags = [["B-LOC", "I-LOC", "O"]] * 30
    tagged = [
        [{"id": i, "tokens": ["a", "b", "c"], "gold": gold, "prediction": gold if i < good else ["B-PER", "O", "O"]}
         for i, gold in enumerate(tags)]
        for good in (10, 25)
    ]  # fmt: skip
    found = compare(
        [evaluated(tmp_path / f"n{i}", each, task="ner") for i, each in enumerate(tagged)]
    )
    assert (found["metric"], found["verdict"]) == ("f1", "b is better")
    assert found["b"] == pytest.approx(25 / 30)
    pairs = [
        [{"id": i, "source": "x", "gold": f"the house number {i} is red", "prediction": f"the house number {i} is {end}"}
         for i in range(30)]
        for end in ("red", "blue")
    ]  # fmt: skip
    found = compare(
        [evaluated(tmp_path / f"t{i}", each, task="translation") for i, each in enumerate(pairs)],
        metric="ter",
    )
    assert found["verdict"] == "a is better"


def test_tables_for_papers(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    compare(two, style="markdown")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "| a | b | f1_macro of a | of b | difference | 95 % interval | p | verdict |"
    )
    assert set(lines[1]) == {"|", "-"}
    assert lines[2].endswith("| b is better |")
    compare(two, style="latex")
    written = capsys.readouterr().out
    assert r"f1\_macro of a" in written
    assert written.count(r"\\") == 2
    assert latex(["50 %"], []).count(r"\%") == 1


def test_no_torch_is_needed(two: list[str]) -> None:
    program = f"import sys; from lmkit.commands.compare import compare; compare({two!r}); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0
    )


def numbered(errors: list[float], second: str = "") -> list[dict[str, Any]]:
    gold = [0.5 + (7 * i) % 40 for i in range(len(errors))]
    return [
        {
            "id": i,
            "text": f"text {i}",
            "gold": g,
            "prediction": g + error,
            "score": None,
            "nll": error**2,
            "items": 1,
        }
        | ({"text_pair": second} if second else {})
        for i, (g, error) in enumerate(zip(gold, errors, strict=True))
    ]


def test_numbers_without_their_model_are_scored_as_they_are_alone(tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    sides = [[(-1) ** i * 9.0 for i in range(60)], [(-1) ** (i // 2) * 3.0 for i in range(60)]]
    records = [numbered(errors) for errors in sides]
    found = compare(
        [evaluated(tmp_path / name, side) for name, side in zip("ab", records, strict=True)]
    )
    expected = [
        spearmanr([r["gold"] for r in side], [r["prediction"] for r in side]).statistic
        for side in records
    ]
    assert found["metric"] == "spearman"
    assert [found["a"], found["b"]] == pytest.approx(expected)


def test_several_labels_without_their_model_are_compared(tmp_path: Path) -> None:
    rows = [{"id": i, "text": str(i), "gold": ["a"], "nll": 0.1, "items": 2} for i in range(40)]
    right, wrong = (
        [row | {"prediction": labels} for row in rows] for labels in (["a"], ["a", "b"])
    )
    found = compare(
        [evaluated(tmp_path / "a", right), evaluated(tmp_path / "b", wrong)], metric="f1_micro"
    )
    assert (found["a"], found["verdict"]) == (1.0, "a is better")


def test_other_second_texts_are_other_examples(tmp_path: Path) -> None:
    sides = [
        evaluated(tmp_path / name, numbered([1.0] * 30, second=name)) for name in ("one", "two")
    ]
    with pytest.raises(
        RunError, match=r'line 1 is another example .*text_pair is "two", there "one"'
    ):
        compare(sides)


def test_pseudo_perplexity_is_compared_where_both_were_evaluated_with_it(tmp_path: Path) -> None:
    def masked(nll: float, *, pseudo: bool = True) -> list[dict[str, Any]]:
        return [
            {"id": i, "text": f"text {i}", "nll": 2.0, "items": 2, "correct": 1, "bytes": 9}
            | ({"pseudo_nll": nll + i % 3, "pseudo_items": 4} if pseudo else {})
            for i in range(60)
        ]

    a, b = (
        evaluated(tmp_path / name, masked(nll), task="mlm")
        for name, nll in (("a", 8.0), ("b", 4.0))
    )
    found = compare([a, b], metric="pseudo_perplexity", resamples=200)
    assert (found["a"], found["verdict"]) == (pytest.approx(2.718281828459045**2.25), "b is better")
    plain = evaluated(tmp_path / "c", masked(0, pseudo=False), task="mlm")
    with pytest.raises(LmkitError, match="mlm has no metric 'pseudo_perplexity'"):
        compare([a, plain], metric="pseudo_perplexity")


def test_metrics_that_a_recipe_brought_along_are_compared(two: list[str], tmp_path: Path) -> None:
    from lmkit.metrics.custom import SHIPPED

    module = {"module": str(SHIPPED / "lmkit_classification"), "key": "accuracy"}
    for place in two:
        file = Path(place) / "eval/test/metrics.json"
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"modules": {"mine.accuracy": module}})
        )
    found = compare(two, metric="mine.accuracy")
    assert (found["a"], found["b"], found["verdict"], found["resamples"]) == (
        0.8,
        0.95,
        "b is better",
        200,
    )
    with pytest.raises(RunError, match="use --method bootstrap"):
        compare(two, metric="mine.accuracy", method="permutation")
