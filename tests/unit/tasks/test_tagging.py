"""The section ``tagging``: what is decoded, what a CRF learns and keeps, and which keys are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchcrf import CRF
from transformers import AutoModelForTokenClassification

from lmkit.batch import IGNORE
from lmkit.errors import ModelError, RecipeError
from lmkit.evaluation.forward import Forward
from lmkit.evaluation.suspicions import never_predicted
from lmkit.heads import crf_of
from lmkit.metrics.tagging import chunks
from lmkit.models.build import build_model
from lmkit.models.load import load_trained
from lmkit.models.save import save_model
from lmkit.models.source import find_model
from lmkit.run import Run
from lmkit.tasks.ner import problem as ner
from lmkit.tasks.ner.problem import TAGGING
from lmkit.tasks.ner.task import WordTagging, sequence_losses
from lmkit.train.checkpoint import checkpoint_steps
from lmkit.train.optim import build_optimizer, set_learning_rate

LABELS = ["O", "B-A", "I-A", "B-B", "I-B"]


def task_of(tiny: Any, **tagging: Any) -> WordTagging:
    return TAGGING.task(
        tiny.recipe("ner", tagging=tagging), {"labels": LABELS, "word_split": "space"}, None
    )


def parts_of(*windows: tuple[list[int], list[list[float]]], **more: Any) -> list[dict[str, Any]]:
    """Windows as (words, probabilities of the first tags; the rest share what is left)."""
    parts = []
    for words, probabilities in windows:
        full = [
            [*known, *[(1 - sum(known)) / (5 - len(known))] * (5 - len(known))]
            for known in probabilities
        ]
        emissions = [[math.log(p) for p in word] for word in full]
        parts.append({"words": words, "emissions": emissions, "nll": 0.0, "items": 0} | more)
    return parts


# ---------------------------------------------------------------------------------- decoding


def test_viterbi_takes_the_best_legal_sequence_across_windows(tiny: Any) -> None:
    """The second window begins with I-A, which only the first window's word can allow."""
    row = {"id": 0, "tokens": ["a", "b", "c"]}
    parts = parts_of(([0, 1], [[0.9, 0.05, 0.01], [0.45, 0.35, 0.1]]), ([2], [[0.02, 0.08, 0.8]]))
    argmax, best = (
        task_of(tiny).combine(row, parts),
        task_of(tiny, decoding="viterbi").combine(row, parts),
    )
    assert argmax["prediction"] == ["O", "O", "I-A"]
    assert best["prediction"] == ["O", "B-A", "I-A"]
    assert best["score"] == pytest.approx([0.9, 0.35, 0.8])  # still the word's own probability
    assert argmax["score"] == pytest.approx([0.9, 0.45, 0.8])


def test_a_crf_decodes_with_what_it_learned_and_what_iob2_allows(tiny: Any) -> None:
    row = {"id": 0, "tokens": ["a", "b"]}
    emissions = ([0, 1], [[0.4, 0.3, 0.1, 0.1], [0.3, 0.1, 0.2, 0.1]])
    nothing = [[0.0] * 5, [[0.0] * 5 for _ in range(5)], [0.0] * 5]
    likes_inside = [[0.0] * 5, [[0.0, 0.0, 9.0, 0.0, 0.0] for _ in range(5)], [0.0] * 5]
    for transitions, decoding, tags in [
        (nothing, None, ["O", "O"]),
        (likes_inside, None, ["B-A", "I-A"]),
        (likes_inside, "argmax", ["O", "I-A"]),
    ]:
        task = task_of(tiny, crf=True, decoding=decoding)
        assert task.combine(row, parts_of(emissions, transitions=transitions))["prediction"] == tags
    marginal = task.combine(row, parts_of(emissions, transitions=likes_inside))["score"]
    assert marginal[0] == pytest.approx(0.4)  # what comes after does not depend on the first tag
    assert marginal[1] > 0.99


def test_a_word_that_was_not_read_is_outside_whatever_decodes(tiny: Any) -> None:
    row = {"id": 0, "tokens": ["a", "\u200b", "b"]}
    parts = parts_of(([0, 2], [[0.05, 0.9, 0.01], [0.05, 0.15, 0.75]]))
    zero = [[0.0] * 5, [[0.0] * 5 for _ in range(5)], [0.0] * 5]
    assert task_of(tiny, decoding="viterbi").combine(row, parts)["prediction"] == [
        "B-A",
        "O",
        "B-A",
    ]
    record = task_of(tiny, crf=True).combine(row, [part | {"transitions": zero} for part in parts])
    assert (record["prediction"], record["score"][1]) == (["B-A", "O", "B-A"], 0.0)
    assert task_of(tiny, decoding="viterbi").combine({"id": 0, "tokens": ["\u200b"]}, [])[
        "prediction"
    ] == ["O"]


def test_every_decoded_document_is_legal(tiny: Any) -> None:
    """An untrained model, long documents in windows of 9 tokens: argmax breaks IOB2, Viterbi never."""
    recipe = tiny.recipe("ner", data={"max_length": 9})
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    for decoding, legal in (("argmax", False), ("viterbi", True)):
        task = tiny.prepared(tiny.merged(recipe, tagging={"decoding": decoding})).task
        records = list(
            Forward(task, model, tiny.processes, 64).predictions(prepared.encoded["validation"])
        )
        assert len({len(record["tokens"]) for record in records}) > 1
        assert (
            all(chunks(r["prediction"]) == chunks(r["prediction"], strict=True) for r in records)
            is legal
        )


@pytest.mark.parametrize("tagging", [{}, {"decoding": "viterbi"}, {"crf": True}])
def test_entities_without_types_are_entities_all_the_way(
    tiny: Any, tmp_path: Path, tagging: dict[str, Any]
) -> None:
    """Recognised, selected by f1, decoded, measured and predicted; the words of a keyphrase begin with k."""
    sentence = "a/O k1/B k2/I b/O k3/B".replace("/", " ").split()
    block = "".join(
        f"{word} {tag}\n" for word, tag in zip(sentence[::2], sentence[1::2], strict=True)
    )
    path = tmp_path / "a.conll"
    path.write_text("\n".join([block] * 8))
    recipe = tiny.recipe(
        "ner",
        tagging=tagging,
        data={"train": str(path), "validation": str(path)},
        train={"select_best": "f1"},
    )
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    task = prepared.task
    assert task.labels == ["O", "B", "I"]
    measures = [metric.name for metric in task.problem.metrics(task.facts)]
    assert measures[:2] == ["f1", "f1_strict"]
    records = list(
        Forward(task, model, tiny.processes, 64).predictions(prepared.encoded["validation"])
    )
    assert set(measures) - {"loss"} <= task.problem.score(task.facts, records).values().keys()
    if tagging:
        assert all(chunks(r["prediction"]) == chunks(r["prediction"], strict=True) for r in records)
    gold = [{**record, "prediction": record["gold"]} for record in records]
    answer = task.answer
    assert answer.kind == "entities"
    assert task.problem.score(task.facts, gold).values()["f1_strict"] == 1
    assert task.problem.score(task.facts, gold).label_values()["_"]["support"] == 16
    assert never_predicted([{**record, "prediction": ["O"] * 5} for record in gold], answer) == [
        "_"
    ]
    shown = task.problem.show(gold[0], task.facts)["entities"]
    assert [(each["text"], each["label"], each["start"], each["end"]) for each in shown] == [
        ("k1 k2", "_", 2, 7),
        ("k3", "_", 10, 12),
    ]


# ---------------------------------------------------------------------------------- the CRF


def crf_recipe(tiny: Any, *, lora: bool = False, **sections: Any) -> Any:
    options: dict[str, Any] = {"base": tiny.base("mlm"), "lora": {"rank": 2}} if lora else {}
    return tiny.recipe("ner", tagging={"crf": True}, **options, **sections)


def test_the_loss_is_that_of_the_labelled_words_alone() -> None:
    torch.manual_seed(0)
    crf, logits = CRF(5, batch_first=True), torch.randn(3, 4, 5)
    labels = torch.tensor([[IGNORE, 2, IGNORE, 1], [IGNORE] * 4, [0, IGNORE, IGNORE, IGNORE]])
    found = sequence_losses(crf, logits, labels)
    yes = torch.ones(1, 2, dtype=torch.bool)
    assert found[0].item() == pytest.approx(
        -crf(logits[:1, [1, 3]], torch.tensor([[2, 1]]), yes).item(), abs=1e-5
    )
    assert found[1] == 0
    assert found[2].item() == pytest.approx(
        -crf(logits[2:, :1], torch.tensor([[0]]), yes[:, :1]).item(), abs=1e-5
    )
    nothing = sequence_losses(crf, logits[1:2].requires_grad_(), labels[1:2]).sum()
    nothing.backward()  # a rank with nothing that counts still takes part in the step
    assert all(p.grad is None or not p.grad.any() for p in crf.parameters())


def test_the_loss_of_a_crf_does_not_depend_on_the_batches(tiny: Any) -> None:
    recipe = crf_recipe(tiny, data={"max_length": 9})
    prepared, model = tiny.prepared(recipe), tiny.model(recipe)
    encoded, task = prepared.encoded["validation"], prepared.task
    assert len(encoded.pieces) > len(encoded)  # some rows have several windows
    losses = [
        Forward(task, model, tiny.processes, budget).mean_loss(encoded) for budget in (1, 10_000)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    records = list(Forward(task, model, tiny.processes, 64).predictions(encoded))
    assert sum(r["nll"] for r in records) / sum(r["items"] for r in records) == pytest.approx(
        losses[0], abs=1e-5
    )


@pytest.mark.parametrize("lora", [False, True])
def test_a_crf_is_saved_beside_a_plain_model_and_loaded_again(
    tiny: Any, lora: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = crf_recipe(tiny, lora=lora)
    prepared = tiny.prepared(recipe)
    built = build_model(recipe, prepared.task, prepared.source)
    assert built.new[-1] == "crf"
    assert all(parameter.requires_grad for parameter in crf_of(built.model).parameters())
    save_model(built.model.eval(), prepared.task, tmp_path)
    assert set(load_file(tmp_path / "crf.safetensors")) == {
        "start_transitions",
        "transitions",
        "end_transitions",
    }
    assert not [
        name for name in load_file(next(tmp_path.glob("*model.safetensors"))) if "crf" in name
    ]
    source = find_model(str(tmp_path))
    assert source.description["recipe"]["tagging"]["crf"] is True
    fresh = load_trained(source, prepared.task)
    batch = prepared.task.collate([prepared.encoded["validation"].example(i) for i in range(4)])
    with torch.inference_mode():
        assert prepared.task.loss(fresh, batch) == prepared.task.loss(built.model, batch)
        if not lora:
            plain, info = AutoModelForTokenClassification.from_pretrained(
                tmp_path, output_loading_info=True
            )
            assert not info["missing_keys"] | info["unexpected_keys"]
            torch.testing.assert_close(
                plain.eval()(
                    input_ids=batch.inputs["input_ids"],
                    attention_mask=batch.inputs["attention_mask"],
                ).logits,
                prepared.task.logits(fresh, batch)[0],
            )
    (tmp_path / "crf.safetensors").unlink()
    with pytest.raises(ModelError, match=r"this model has no CRF: there is no crf.safetensors"):
        load_trained(source, prepared.task)


@pytest.mark.parametrize("lora", [False, True])
def test_a_crf_is_trained_proven_and_resumed_bit_for_bit(
    tiny: Any, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {
        "train": {"max_steps": 4, "dropout": 0.2, "learning_rate": 1e-3, "select_best": "last"},
        "hardware": {"checkpoint_every": 2},
    }
    whole = tiny.fit(crf_recipe(tiny, lora=lora, **sections))
    recipe = crf_recipe(tiny, lora=lora, **sections)
    append = Run.append_log

    def fall(run: Run, line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise ZeroDivisionError  # after a KeyboardInterrupt nobody waits for the checkpoint that is being written
        append(run, line)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_log", fall)
        with pytest.raises(ZeroDivisionError):
            tiny.fit(recipe)
    assert checkpoint_steps(Run(recipe.output)) == [2]
    resumed = tiny.fit(recipe, resume=True)
    (first,) = whole.log_lines()[:1]
    assert first["learning_rate"] == pytest.approx(1e-3)
    for file in ("crf.safetensors", "adapter_model.safetensors" if lora else "model.safetensors"):
        ours, theirs = load_file(whole.model / file), load_file(resumed.model / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    records = [
        json.loads(line)
        for line in (whole.eval_folder("validation") / "predictions.jsonl").read_text().splitlines()
    ]
    assert all(chunks(r["prediction"]) == chunks(r["prediction"], strict=True) for r in records)


def test_transitions_have_a_rate_of_their_own(tiny: Any) -> None:
    recipe = crf_recipe(tiny, train={"learning_rate": 1e-4})
    model = tiny.model(recipe)
    optimizer = build_optimizer(model, recipe.train, crf_rate=0.01)
    set_learning_rate(optimizer, 5e-5)  # half of the peak
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    assert {rates[id(p)] for p in crf_of(model).parameters()} == {(5e-5 * 100, 0.0)}
    assert rates[id(model.classifier.weight)] == (5e-5, 0.01)


def test_a_run_takes_the_rate_of_the_transitions_from_the_recipe(tiny: Any) -> None:
    """They begin within 0.1, and Adam's first step is as long as its rate."""
    recipe = tiny.merged(
        crf_recipe(tiny, train={"max_steps": 1, "schedule": "constant"}),
        tagging={"crf_learning_rate": 0.5},
    )
    transitions = load_file(tiny.fit(recipe).model / "crf.safetensors")["transitions"]
    assert 0.4 < transitions.abs().max() < 0.61


def test_a_crf_goes_on_from_that_of_its_base_where_the_labels_are_the_same(
    tiny: Any, tmp_path: Path
) -> None:
    first = crf_recipe(tiny)
    model = tiny.model(first)
    save_model(model, tiny.prepared(first).task, tmp_path)
    again = tiny.recipe("ner", base=str(tmp_path), tagging={"crf": True}, seed=99)
    built = build_model(again, tiny.prepared(again).task, find_model(str(tmp_path)))
    assert built.new == []
    assert torch.equal(crf_of(built.model).transitions, crf_of(model).transitions)


def test_fit_fails_where_the_saved_transitions_are_others(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmkit.train import fit

    def careless(model: Any, task: Any, folder: Path) -> None:
        save_model(model, task, folder)
        with torch.no_grad():
            crf_of(model).transitions.add_(torch.eye(len(task.labels)))

    monkeypatch.setattr(fit, "save_model", careless)
    with pytest.raises(
        ModelError, match="the saved model computes something else than the trained one"
    ):
        tiny.fit(crf_recipe(tiny))


# ---------------------------------------------------------------------------------- keys that cannot have an effect


@pytest.mark.parametrize(
    ("tagging", "labels", "problem"),
    [
        (
            {"decoding": "viterbi"},
            ["B", "I", "N", "O"],
            "tagging.decoding: every sequence of these tags is allowed",
        ),
        (
            {"decoding": "viterbi"},
            ["DET", "NOUN"],
            "tagging.decoding: every sequence of these tags is allowed",
        ),
        (
            {"crf_learning_rate": 0.1},
            LABELS,
            "tagging.crf_learning_rate: has no effect without a CRF",
        ),
    ],
)
def test_keys_without_effect_are_refused(
    tiny: Any, tagging: dict[str, Any], labels: list[str], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        TAGGING.task(tiny.recipe("ner", tagging=tagging), {"labels": labels}, None)
    TAGGING.task(tiny.recipe("ner", tagging=tagging | {"crf": True}), {"labels": labels}, None)


def test_a_crf_has_no_label_smoothing(tiny: Any) -> None:
    with pytest.raises(RecipeError, match=r"train.label_smoothing: has no effect with tagging.crf"):
        TAGGING.task(
            tiny.recipe("ner", tagging={"crf": True}, train={"label_smoothing": 0.1}),
            {"labels": LABELS},
            None,
        )


def test_without_the_library_it_is_said_how_to_get_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ner, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"tagging.crf: .*pytorch-crf, is not installed\n  pip install"
    ):
        task_of(tiny, crf=True)
    task_of(tiny)


def test_other_tasks_refuse_the_section(tiny: Any) -> None:
    from lmkit.preflight import check_stage

    check_stage(tiny.recipe("classification"), "finetune")
    with pytest.raises(RecipeError, match="tagging: has no effect on classification"):
        check_stage(tiny.recipe("classification", tagging={"repair": True}), "finetune")


def test_a_trained_run_keeps_its_crf_but_may_decode_in_another_way(tiny: Any) -> None:
    from lmkit.commands.evaluate import evaluate
    from lmkit.subject import find_subject

    run = tiny.fit(crf_recipe(tiny))
    for key in ("tagging.crf=false", "tagging.crf_learning_rate=1"):
        with pytest.raises(RecipeError, match="has no effect on a run that is trained"):
            find_subject(str(run.path), [key])
    found = evaluate(str(run.path), ["tagging.decoding=argmax", "eval.resamples=0"])
    assert found is not None
    assert found.metrics.keys() >= {"f1", "f1_strict"}
