"""Every optimizer: what it trains how, that it resumes bit for bit, and keys that it would ignore."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.errors import RecipeError
from lmkit.preflight import check_model_keys
from lmkit.recipe.schema import Train
from lmkit.run import Run
from lmkit.train import optim
from lmkit.train.averages import averaged_weights, update_ema
from lmkit.train.optim import build_optimizer, check_optimizer

LIBRARY = {"adamw8bit": "bitsandbytes", "schedule_free": "schedulefree"}
STEPS = 6


def recipe_of(tiny: Any, **train: Any) -> Any:
    if library := LIBRARY.get(train.get("optimizer", "adamw")):
        pytest.importorskip(library)
    return tiny.recipe(
        "classification",
        train={
            "max_steps": STEPS,
            "batch_size": 3,
            "dropout": 0.1,
            "eval_every": 3,
            "select_best": "loss",
            "warmup": 2,
        }
        | train,
        hardware={"checkpoint_every": 2, "keep_checkpoints": 9},
    )


CHOICES = [
    {"optimizer": "adafactor"},
    {"optimizer": "muon"},
    {"optimizer": "adamw8bit"},
    {"optimizer": "schedule_free", "schedule": "constant"},
    {"ema": 0.9},
    {"optimizer": "muon", "ema": 0.9, "on_spike": "skip", "spike_factor": 1.01},
]


@pytest.mark.parametrize("train", CHOICES, ids=lambda train: "-".join(map(str, train.values())))
def test_every_optimizer_resumes_bit_for_bit(
    tiny: Any, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.fit(recipe_of(tiny, **train))
    recipe, append = recipe_of(tiny, **train), Run.append_log

    def fall(run: Run, line: dict[str, Any]) -> None:
        if line["step"] == 5:
            raise KeyboardInterrupt
        append(run, line)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_log", fall)
        with pytest.raises(KeyboardInterrupt):
            tiny.fit(recipe)
    broken = tiny.fit(recipe, resume=True)
    for place in (
        "checkpoints/step-00000006/model.safetensors",
        "checkpoints/step-00000006/optimizer.safetensors",
    ):
        ours, theirs = load_file(whole.path / place), load_file(broken.path / place)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), place
    states = [
        json.loads((run.path / "checkpoints/step-00000006/state.json").read_text())
        for run in (whole, broken)
    ]
    for state in states:  # times differ
        del state["seconds"], state["since_line"]["seconds"], state["since_line"]["waited"]
    assert states[0] == states[1]
    start = load_file(whole.path / "checkpoints/step-00000002/model.safetensors")
    assert all(
        not torch.equal(start[name], weight)
        for name, weight in load_file(whole.path / "model/model.safetensors").items()
        if "query.weight" in name
    )
    losses = [
        [line["loss"] for line in run.log_lines() if "loss" in line] for run in (whole, broken)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


def test_muon_trains_the_matrices_of_the_layers_and_adamw_the_rest(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("classification"))
    muon, adamw = build_optimizer(model, Train(optimizer="muon", weight_decay=0.1)).parts
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden = [name_of[id(p)] for group in muon.param_groups for p in group["params"]]
    others = [name_of[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted(hidden + others) == sorted(name_of.values())
    assert all(
        ".layer." in name and name.endswith("weight") and "LayerNorm" not in name for name in hidden
    )
    assert (
        len(hidden) == 12
    )  # two layers of query, key, value, output and two of the feed-forward network
    assert {
        "classifier.weight",
        "bert.embeddings.word_embeddings.weight",
        "bert.pooler.dense.weight",
    } <= set(others)


def test_muon_and_adamw_take_the_steps_they_take_alone() -> None:
    def layers() -> torch.nn.Module:
        torch.manual_seed(1)
        return torch.nn.ModuleDict(
            {"layers": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "head": torch.nn.Linear(4, 2)}
        )

    together, alone = layers(), layers()
    train = Train(optimizer="muon", learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer(together, train)
    weight, *others = alone.parameters()
    optimizer.load_state_dict(optimizer.state_dict())  # as Accelerate does: the parts must follow
    references = [
        torch.optim.Muon([weight], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in others if p.ndim == 2], lr=0.1, weight_decay=0.5),
        torch.optim.AdamW([p for p in others if p.ndim < 2], lr=0.1, weight_decay=0.0),
    ]
    for step in range(3):
        for parameters in zip(together.parameters(), alone.parameters(), strict=True):
            gradient = torch.full_like(parameters[0], 0.1 * (step + 1)) + parameters[1].detach()
            for parameter in parameters:
                parameter.grad = gradient.clone()
        for each in (optimizer, *references):
            each.step()
    for ours, theirs in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_embeddings_are_left_without_decay_where_the_recipe_says_so(tiny: Any) -> None:
    model = tiny.model(tiny.recipe("classification"))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}

    def decayed(**train: Any) -> set[str]:
        groups = build_optimizer(model, Train(weight_decay=0.1, **train)).param_groups
        return {
            name_of[id(p)] for group in groups if group["weight_decay"] for p in group["params"]
        }

    embeddings = {
        f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }
    assert decayed() - decayed(decay_embeddings=False) == embeddings


def test_the_average_follows_the_weights_and_changes_places_without_rounding() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.AdamW([weight], fused=True)
    expected = None
    for step, value in enumerate([0.1, 0.7, 0.3]):
        weight.grad = torch.ones(1)
        optimizer.step()
        with torch.no_grad():
            weight.fill_(value)
        update_ema(optimizer, 0.5, step=step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        with averaged_weights(optimizer):
            assert weight.item() == pytest.approx(expected)
        assert torch.equal(weight.detach(), torch.tensor([value]))


def test_the_averaged_weights_are_what_is_saved_and_evaluated(tiny: Any) -> None:
    averaged = tiny.fit(recipe_of(tiny, ema=0.999, dropout=0.0, learning_rate=1e-2))
    plain = tiny.fit(recipe_of(tiny, dropout=0.0, learning_rate=1e-2))
    lines = [list(run.log_lines()) for run in (averaged, plain)]
    assert [a["loss"] for a in lines[0] if "loss" in a] == [
        b["loss"] for b in lines[1] if "loss" in b
    ]  # training is the same
    assert lines[0][-1]["validation_loss"] != lines[1][-1]["validation_loss"]
    stored, model = (
        load_file(file)
        for file in (
            averaged.checkpoints
            / f"step-{averaged.manifest['best_step']:08d}"
            / "model.safetensors",
            averaged.model / "model.safetensors",
        )
    )
    assert all(torch.equal(stored[name], model[name]) for name in model)


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"optimizer": "adafactor", "beta1": 0.8}, r"train\.beta1: adafactor has no beta1"),
        ({"optimizer": "adafactor", "epsilon": 1e-6}, r"train\.epsilon: adafactor has no epsilon"),
        ({"spike_factor": 3}, r"train\.spike_factor: has no effect without train\.on_spike"),
        (
            {"decay_embeddings": False, "freeze_embeddings": True},
            r"train\.decay_embeddings: has no effect beside",
        ),
        (
            {"decay_embeddings": False, "weight_decay": 0},
            r"train\.decay_embeddings: has no effect where",
        ),
        ({"optimizer": "schedule_free"}, r"train\.schedule: schedule-free has a constant rate"),
        (
            {"optimizer": "schedule_free", "schedule": "constant", "ema": 0.9},
            r"train\.ema: schedule-free averages",
        ),
    ],
)
def test_keys_that_the_optimizer_would_ignore_are_refused(
    tiny: Any, train: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "_LIBRARIES", {})
    with pytest.raises(RecipeError, match=problem):
        check_model_keys(tiny.recipe("classification", train=train), None)


def test_muon_and_lora_are_refused_together(tiny: Any) -> None:
    with pytest.raises(RecipeError, match=r"train\.optimizer: muon updates whole matrices"):
        check_optimizer(
            tiny.recipe("classification", lora={"rank": 2}, train={"optimizer": "muon"})
        )


def test_a_missing_library_is_named_with_its_extra(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "_LIBRARIES", {"schedule_free": "no_such_library"})
    with pytest.raises(
        RecipeError,
        match=r"no_such_library is not installed\n.*pip install 'lmkit\[schedule_free\]'",
    ):
        check_optimizer(
            tiny.recipe(
                "classification", train={"optimizer": "schedule_free", "schedule": "constant"}
            )
        )
