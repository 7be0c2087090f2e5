"""What was tried is kept in a checkpoint, and read from those of lmkit 0.1."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lmkit.train.checkpoint import checkpoint_steps, load_state, name_of
from lmkit.train.decisions import (
    ATTENTION,
    COMPILE,
    KERNELS,
    MICRO_BATCH,
    Decision,
    by_key,
    decisions_of,
)

PLACE = {"device": "cpu", "processes": 2}
OF_0_1: dict[str, Any] = {
    "micro_batch": {"asked": "auto", **PLACE, "tokens": 2048},
    "compiled": {"asked": "auto", **PLACE, "tokens": 4096, "on": False, "why": "on a cpu"},
    "attention": {
        "asked": "auto",
        **PLACE,
        "precision": "bf16",
        "on": "SDPA",
        "why": "it needs a GPU",
        "proof": {"torch": "2.13"},
    },
    "kernels": {
        "asked": "auto",
        **PLACE,
        "precision": "bf16",
        "on": "Liger's",
        "why": "shown",
        "proof": {"torch": "2.13"},
        "ways": {"norm": 1},
    },
}


def test_a_decision_holds_for_the_same_wish_in_the_same_place() -> None:
    decision = Decision(COMPILE, "auto", False, "tried", PLACE)
    assert decision.answers("auto", PLACE)
    assert not decision.answers("on", PLACE)
    assert not decision.answers("auto", PLACE | {"processes": 1})


def test_a_decision_is_the_same_after_json() -> None:
    decision = Decision(KERNELS, "auto", "Liger's", "shown", PLACE, {"ways": {"norm": 1}})
    state = json.loads(json.dumps({"decisions": [decision.to_json()]}))
    assert decisions_of(state) == by_key([decision])


def test_decisions_of_0_1_are_read() -> None:
    place = PLACE | {"precision": "bf16"}
    holds_for = {"torch": "2.13"}
    assert decisions_of(OF_0_1) == by_key(
        [
            Decision(MICRO_BATCH, "auto", 2048, "", PLACE),
            Decision(COMPILE, "auto", False, "on a cpu", PLACE, {"tokens": 4096}),
            Decision(ATTENTION, "auto", "SDPA", "it needs a GPU", place, {"holds_for": holds_for}),
            Decision(
                KERNELS,
                "auto",
                "Liger's",
                "shown",
                place,
                {"holds_for": holds_for, "ways": {"norm": 1}},
            ),
        ]
    )
    assert decisions_of({"micro_batch": {}, "compiled": {}}) == {}  # before the first was taken


def test_a_checkpoint_of_0_1_goes_on_with_the_size_that_it_had(tiny: Any) -> None:
    recipe = tiny.recipe("classification", train={"max_steps": 1})
    run = tiny.fit(recipe)
    (step,) = checkpoint_steps(run)
    folder = run.checkpoints / name_of(step)
    state = load_state(run, step)
    del state["decisions"]
    place = {"device": "cpu", "processes": 1}
    state["micro_batch"] = {"asked": "auto", **place, "tokens": 77}
    written = json.dumps(state).encode()
    sums = folder / "SHA256SUMS"
    before = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    after = hashlib.sha256(written).hexdigest()
    sums.write_text(sums.read_text().replace(before, after))
    (folder / "state.json").write_bytes(written)
    resumed = tiny.fit(tiny.merged(recipe, train={"max_steps": 2}), resume=True)
    assert resumed.manifest["micro_batch_tokens"] == 77
    decisions = {decision["key"]: decision for decision in resumed.manifest["decisions"]}
    assert decisions[MICRO_BATCH]["value"] == 77
    assert decisions.keys() == {MICRO_BATCH, COMPILE, ATTENTION, KERNELS}
    assert decisions[COMPILE]["why"].startswith("on a cpu it is not tried")


def test_without_fast_paths_nothing_is_tried_and_the_manifest_says_so(tiny: Any) -> None:
    run = tiny.fit(tiny.recipe("classification", train={"max_steps": 1}, hardware={"fast": "off"}))
    decisions = {decision["key"]: decision for decision in run.manifest["decisions"]}
    plain = {ATTENTION: "SDPA", KERNELS: "PyTorch's", COMPILE: False}
    for key, chosen in plain.items():
        assert (decisions[key]["value"], decisions[key]["why"]) == (chosen, "hardware.fast is off")
    assert run.manifest["attention"] == {"on": "SDPA", "why": "hardware.fast is off"}
