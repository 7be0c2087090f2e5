"""Two processes behind DeepSpeed's ZeRO, each with a part of the moments, learn what one process learns; all they write is plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.recipe.load import dump_recipe
from lmkit.run import Run
from lmkit.tasks.registry import task_class
from lmkit.train.checkpoint import MOMENTS, WEIGHTS, name_of
from lmkit.train.launch import ProcessFailed, launch

pytest.importorskip("deepspeed")

SCRIPT = Path(__file__).with_name("as_one_of_several.py")
TROUBLE = Path(__file__).with_name("with_trouble_on_one_rank.py")
STEPS = 4
KINDS: dict[str, tuple[int, str, dict[str, Any]]] = {  # stage, task, sections
    "mlm": (2, "mlm", {"hardware": {"gradient_checkpointing": True}}),
    "mlm by stage 1": (1, "mlm", {}),
    "clm in bf16": (2, "clm", {"hardware": {"precision": "bf16"}}),
    "classification by LoRA": (2, "classification", {"lora": {"rank": 2, "dropout": 0.0}}),
    "classification over a frozen layer": (
        1,
        "classification",
        {"train": {"freeze_layers": 1, "average_checkpoints": 2}},
    ),
    "regression": (2, "regression", {"train": {"layer_decay": 0.9, "max_grad_norm": None}}),
    "translation": (2, "translation", {}),
}
TOLERANCE = {"clm in bf16": 5e-3}  # what is almost the same may come out 1/256 apart


def recipe_of(tiny: Any, kind: str, *, processes: int, **more: Any) -> Any:
    """Steps of three examples and of fewer than there are ranks; rounding is not blown up by a tiny epsilon."""
    train = {
        "max_steps": STEPS,
        "batch_size": 3,
        "epsilon": 1e-4,
        "learning_rate": 1e-2,
        "eval_every": 2,
        "select_best": "loss",
    }
    _, task, sections = KINDS[kind]
    sections = sections | {
        "train": train | {"max_grad_norm": 0.5} | sections.get("train", {}) | more,
        "hardware": {"processes": processes, "micro_batch_tokens": 64}
        | sections.get("hardware", {}),
        "data": {"max_rows": 7},  # the third step of an epoch has one
    }
    if "lora" in sections:
        sections["base"] = tiny.base("mlm")
    return tiny.recipe(task, **sections)


def launch_zero(arguments: list[str], stage: int) -> None:
    """Two processes with what ``recipes/accelerate/deepspeed.yaml`` comes to."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        }.items():
            patch.setenv(name, value)
        launch(arguments, processes=2)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Write a recipe; returns what the scripts are told."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(recipe: Any) -> str:
        file = folder / f"{len(list(folder.iterdir()))}.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        return f"{task_class(recipe.task).stage}={file}"

    return write


@pytest.fixture(scope="module")
def runs(tiny: Any, written: Any) -> dict[str, tuple[Run, Run]]:
    """Each kind by one process and by two; a launch for each stage."""
    alone = {kind: tiny.fit(recipe_of(tiny, kind, processes=1)) for kind in KINDS}
    together = {kind: recipe_of(tiny, kind, processes=2) for kind in KINDS}
    for stage in (1, 2):
        launch_zero(
            [
                str(SCRIPT),
                *(written(recipe) for kind, recipe in together.items() if KINDS[kind][0] == stage),
            ],
            stage,
        )
    return {kind: (alone[kind], Run(together[kind].output)) for kind in KINDS}


def assert_alike(one: Path, other: Path, tolerance: float) -> None:
    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_behind_deepspeed_follow_the_curve_of_one(
    runs: dict[str, tuple[Run, Run]], kind: str
) -> None:
    one, two = runs[kind]
    assert (one.manifest["hardware"]["zero_stage"], two.manifest["hardware"]["zero_stage"]) == (
        None,
        KINDS[kind][0],
    )
    exact, rounded = (
        ("step", "epoch", "learning_rate", "tokens"),
        ("loss", "grad_norm", "validation_loss"),
    )
    for mine, theirs in zip(one.log_lines(), two.log_lines(), strict=True):
        assert [mine.get(key) for key in exact] == [theirs.get(key) for key in exact]
        assert [mine.get(key, 0) for key in rounded] == pytest.approx(
            [theirs.get(key, 0) for key in rounded], abs=TOLERANCE.get(kind, 1e-5)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_they_write_the_checkpoints_and_the_model_of_one(
    runs: dict[str, tuple[Run, Run]], kind: str
) -> None:
    one, two = runs[kind]
    folders = [(run.checkpoints / name_of(STEPS), run.model) for run in (one, two)]
    for mine, theirs in zip(*folders, strict=True):
        assert sorted(path.name for path in mine.iterdir()) == sorted(
            path.name for path in theirs.iterdir()
        )
        for file in mine.glob("*.safetensors"):
            assert_alike(file, theirs / file.name, 2 * TOLERANCE.get(kind, 5e-6))
    assert one.metrics("validation")["loss"] == pytest.approx(
        two.metrics("validation")["loss"], abs=TOLERANCE.get(kind, 1e-5)
    )


# ---------------------------------------------------------------------------------- resumed, and in trouble


@pytest.fixture(scope="module")
def stories(tiny: Any, written: Any) -> dict[str, Run]:
    """Straight through; halfway and on, by two processes or by two and one in turn."""

    def half(*, processes: int, **more: Any) -> tuple[Any, Any]:
        first = recipe_of(
            tiny,
            "mlm",
            processes=processes,
            **{"schedule": "constant", "dropout": 0.1} | more | {"max_steps": 2},
        )
        return first, first.model_copy(
            update={"train": first.train.model_copy(update={"max_steps": STEPS})}
        )

    def on(recipe: Any, processes: int) -> Any:
        return recipe.model_copy(
            update={"hardware": recipe.hardware.model_copy(update={"processes": processes})}
        )

    straight, again, calm = (
        half(processes=2)[1],
        half(processes=2),
        half(processes=1, dropout=0.0)[1],
    )
    apart, together = half(processes=2, dropout=0.0), half(processes=1, dropout=0.0)
    tiny.fit(calm)
    tiny.fit(together[0])
    launch_zero([str(SCRIPT), *map(written, (straight, *again, apart[0], on(together[1], 2)))], 2)
    tiny.fit(on(apart[1], 1), resume=True)
    recipes = {
        "straight": straight,
        "again": again[1],
        "calm": calm,
        "apart": apart[1],
        "together": together[1],
    }
    return {name: Run(recipe.output) for name, recipe in recipes.items()}


def test_a_run_behind_deepspeed_resumes_bit_for_bit(stories: dict[str, Run]) -> None:
    one, other = (stories[name].checkpoints / name_of(STEPS) for name in ("straight", "again"))
    for name in (WEIGHTS, MOMENTS):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert [line["step"] for line in stories["again"].log_lines() if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["apart", "together"])
def test_its_checkpoint_serves_one_process_and_the_other_way_round(
    stories: dict[str, Run], name: str
) -> None:
    for kind in (WEIGHTS, MOMENTS):
        assert_alike(
            *(stories[each].checkpoints / name_of(STEPS) / kind for each in ("calm", name)), 1e-5
        )


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, "hardware.micro_batch_tokens=32"),
        ({"learning_rate": 1e38}, "step 2: the loss is not finite"),
    ],
    ids=["memory that ends", "a loss that is not finite"],
)
def test_trouble_ends_the_run_with_a_message(
    tiny: Any, written: Any, sections: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tiny, "classification over a frozen layer", processes=2, **sections)
    with pytest.raises(ProcessFailed) as failed:
        launch_zero([str(TROUBLE), "none" if sections else "memory", written(recipe)], stage=2)
    assert failed.value.status == 1
    assert said in capfd.readouterr().err
