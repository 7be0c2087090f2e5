"""A run that is stopped and resumed is the run that never stopped, bit for bit [transformers#11323, #33336]."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmkit.errors import RunError
from lmkit.run import Run
from lmkit.train import checkpoint, fit, resume, session
from lmkit.train.checkpoint import checkpoint_steps
from lmkit.train.signals import Interrupted

STEPS = 6
TIMES = {"seconds", "tokens_per_second", "data_wait"}


def recipe_of(tiny: Any, kind: str, *, workers: int = 0, **more: Any) -> Any:
    """Dropout is on, masks are drawn anew in every epoch, and an evaluation chooses the model."""
    sections: dict[str, Any] = {
        "train": {
            "max_steps": STEPS,
            "batch_size": 3,
            "dropout": 0.2,
            "eval_every": 3,
            "select_best": "loss",
            "warmup": 0.3,
        },
        "hardware": {
            "checkpoint_every": 2,
            "keep_checkpoints": 9,
            "micro_batch_tokens": 64,
            "workers": workers,
        },
    }
    if kind == "translation":
        sections["generation"] = {"num_beams": 1, "max_new_tokens": 1}
    if kind == "lora":
        return tiny.recipe(
            "classification", base=tiny.base("mlm"), lora={"rank": 2, "dropout": 0.1}, **sections
        )
    return tiny.recipe(kind, **sections | more)


class Killed(BaseException):
    """As if the power went out."""


def log_of(run: Run) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIMES} for line in run.log_lines()
    ]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    (file,) = run.model.glob("*.safetensors")
    return load_file(file)


def assert_same_run(run: Run, other: Run) -> None:
    assert log_of(run) == log_of(other)
    assert [line["step"] for line in log_of(run) if "loss" in line] == list(range(1, STEPS + 1))
    ours, theirs = weights_of(run), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for key in ("steps", "best_step", "tokens_seen"):
        assert run.manifest[key] == other.manifest[key]


@pytest.fixture(scope="module")
def uninterrupted(tiny: Any) -> Any:
    runs: dict[str, Run] = {}

    def find(kind: str) -> Run:
        if kind not in runs:
            runs[kind] = tiny.fit(recipe_of(tiny, kind))
        return runs[kind]

    return find


@pytest.mark.parametrize(
    ("kind", "workers"), [("mlm", 0), ("mlm", 2), ("lora", 0), ("translation", 0)]
)
def test_a_run_that_was_killed_goes_on_as_if_it_were_not(
    tiny: Any, uninterrupted: Any, kind: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny, kind, workers=workers)
    append = Run.append_log

    def fall(run: Run, line: dict[str, Any]) -> None:
        if line["step"] == 4:
            raise Killed
        append(run, line)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_log", fall)
        with pytest.raises(Killed):
            tiny.fit(recipe)
    assert checkpoint_steps(Run(recipe.output))[-1] < 4
    assert not (Run(recipe.output).model).exists()
    assert_same_run(tiny.fit(recipe, resume=True), uninterrupted(kind))


@pytest.mark.parametrize("step", [2, 3, STEPS])
def test_a_run_that_was_interrupted_goes_on_as_if_it_were_not(
    tiny: Any, uninterrupted: Any, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the step of an evaluation, and at the last one."""
    recipe = recipe_of(tiny, "mlm")
    steps = session.train_steps

    def with_a_signal(*arguments: Any, **options: Any) -> Any:
        for found in steps(*arguments, **options):
            yield found
            if found.number == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(session, "train_steps", with_a_signal)
        with pytest.raises(Interrupted) as stopped:
            tiny.fit(recipe)
    assert stopped.value.status == 128 + signal.SIGTERM
    assert checkpoint_steps(Run(recipe.output))[-1] == step
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert_same_run(tiny.fit(recipe, resume=True), uninterrupted("mlm"))


def fails_at(step: int, monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    """Have training do something once a step is done."""
    steps = session.train_steps

    def until(*arguments: Any, **options: Any) -> Any:
        for found in steps(*arguments, **options):
            yield found
            if found.number == step:
                how()

    monkeypatch.setattr(session, "train_steps", until)


def killed() -> None:
    raise Killed


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("how", "ends"), [(killed, Killed), (terminated, Interrupted)])
def test_lines_of_several_steps_tell_of_the_same_steps_after_resuming(
    tiny: Any, how: Any, ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where checkpoints do not fall on the lines of the log."""
    logging = {"every": 4}
    whole = tiny.fit(recipe_of(tiny, "mlm", logging=logging))
    recipe = recipe_of(tiny, "mlm", logging=logging)
    with monkeypatch.context() as patch:
        fails_at(2, patch, how)
        with pytest.raises(ends):
            tiny.fit(recipe)
    assert log_of(tiny.fit(recipe, resume=True)) == log_of(whole)
    assert [line["step"] for line in log_of(whole) if "loss" in line] == [4, STEPS]


def test_an_evaluation_after_a_signal_is_logged_once(
    tiny: Any, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the resumed run is killed before its next checkpoint."""
    recipe = recipe_of(tiny, "mlm")
    for step, how, ends in ((2, terminated, Interrupted), (3, killed, Killed)):
        with monkeypatch.context() as patch:
            if how is killed:
                patch.setattr(session, "train_steps", lambda *_, **__: killed())
            else:
                fails_at(step, patch, how)
            with pytest.raises(ends):
                tiny.fit(recipe, resume=how is killed)
    assert_same_run(tiny.fit(recipe, resume=True), uninterrupted("mlm"))


def test_a_run_that_is_done_is_not_changed_by_resuming(tiny: Any, uninterrupted: Any) -> None:
    recipe = recipe_of(tiny, "mlm")
    first = tiny.fit(recipe)
    before, log, files = weights_of(first), log_of(first), sorted(first.checkpoints.iterdir())
    again = tiny.fit(recipe, resume=True)
    assert log_of(again) == log
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(again).items())
    assert sorted(again.checkpoints.iterdir()) == files


def test_resuming_without_a_checkpoint_starts_at_the_beginning(
    tiny: Any, uninterrupted: Any
) -> None:
    assert_same_run(tiny.fit(recipe_of(tiny, "mlm"), resume=True), uninterrupted("mlm"))


def test_patience_is_not_renewed_by_resuming(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.9, 0.9, 0.9, 0.9, 0.9])
    monkeypatch.setattr(session, "validate", lambda *arguments, **options: next(values))
    train = {"max_steps": 2, "eval_every": 0.1, "select_best": "loss", "early_stopping": 3}
    recipe = tiny.recipe("classification", train=train)
    tiny.fit(recipe)
    run = tiny.fit(tiny.merged(recipe, train={"max_steps": 9}), resume=True)
    assert (run.manifest["steps"], run.manifest["best_step"]) == (4, 1)


# ---------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_whole_or_absent(
    tiny: Any, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    save, calls = safetensors.torch.save_file, []

    def fall_in_the_second_file_of_the_second_checkpoint(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            Path(arguments[1]).write_bytes(b"half")
            raise Killed
        save(*arguments, **options)

    recipe = recipe_of(tiny, "mlm")
    with monkeypatch.context() as patch:
        patch.setattr(
            safetensors.torch, "save_file", fall_in_the_second_file_of_the_second_checkpoint
        )
        with pytest.raises(Killed):
            tiny.fit(recipe)
    run = Run(recipe.output)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000002"]
    # what a process that was killed outright leaves behind
    (run.checkpoints / ".step-00000003.77.tmp").mkdir()
    (run.checkpoints / ".step-00000003.77.tmp" / "model.safetensors").write_bytes(b"half")
    assert checkpoint_steps(run) == [2]
    assert_same_run(tiny.fit(recipe, resume=True), uninterrupted("mlm"))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_by_name(
    tiny: Any, uninterrupted: Any, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tiny, "mlm")
    run = tiny.fit(recipe)
    shutil.rmtree(run.model)
    damaged = run.checkpoints / f"step-{STEPS:08d}" / file
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert checkpoint.newest_whole(run) == 4
    assert_same_run(tiny.fit(recipe, resume=True), uninterrupted("mlm"))
    assert str(damaged) in capsys.readouterr().err
    assert checkpoint.newest_whole(run) == STEPS
    assert (run.checkpoints / f"damaged-step-{STEPS:08d}" / file).is_file()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (2, 4, 6, 8):
        (run.checkpoints / checkpoint.name_of(step)).mkdir(parents=True)
    checkpoint.drop_old(run, keep=2, best=2)
    assert checkpoint_steps(run) == [2, 6, 8]
    checkpoint.drop_old(run, keep=1, best=None)
    assert checkpoint_steps(run) == [8]


def test_a_damaged_checkpoint_that_was_passed_over_keeps_no_place(tmp_path: Path) -> None:
    """Of a run that was resumed at step 2, with those of steps 4 and 8 damaged; the next one is of step 5."""
    run = Run(tmp_path)
    for step in (2, 4, 8):
        (run.checkpoints / checkpoint.name_of(step)).mkdir(parents=True)
    (run.checkpoints / "damaged-step-00000008").mkdir()  # of an earlier time
    checkpoint.set_aside_after(run, 2)
    (run.checkpoints / checkpoint.name_of(5)).mkdir()
    checkpoint.drop_old(run, keep=2, best=None)
    assert checkpoint_steps(run) == [2, 5]
    assert len(list(run.checkpoints.glob("damaged-step-*"))) == 2


def test_a_checkpoint_holds_no_pickle(uninterrupted: Any) -> None:
    folder = uninterrupted("mlm").checkpoints / "step-00000002"
    files = ["SHA256SUMS", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert json.loads((folder / "state.json").read_text())["step"] == 2


def test_an_adapter_is_all_that_a_checkpoint_of_lora_holds(uninterrupted: Any) -> None:
    weights = load_file(uninterrupted("lora").checkpoints / "step-00000002" / "model.safetensors")
    assert all("lora_" in name or "modules_to_save" in name for name in weights)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"train": {"learning_rate": 5e-3}}, "train.learning_rate"),
        ({"train": {"batch_size": 2}}, "train.batch_size"),
        ({"seed": 14}, "seed"),
        ({"masking": {"share": 0.3}}, "masking.share"),
        ({"data": {"max_rows": 9}}, "data.max_rows, data.train, data.validation"),
        ({"data": {"train": "sample:tatoeba_en_es/test.tsv.gz"}}, "data.train, tokenizer"),
        ({"tokenizer": {"train": {"vocab_size": 300}}}, "tokenizer.train.vocab_size"),
    ],
)
def test_a_changed_recipe_is_refused_by_the_name_of_the_key(
    tiny: Any, uninterrupted: Any, sections: dict[str, Any], named: str
) -> None:
    run = uninterrupted("mlm")
    changed = tiny.merged(recipe_of(tiny, "mlm"), output=str(run.path), **sections)
    before = log_of(run)
    with pytest.raises(RunError, match="this run was started with other ") as refused:
        tiny.fit(changed, resume=True)
    assert named in str(refused.value)
    assert log_of(run) == before


def test_a_data_file_and_a_tokenizer_with_other_content_are_noticed(
    tiny: Any, tmp_path: Path
) -> None:
    """Under the same path."""
    file = tmp_path / "texts.txt"
    file.write_text("the whale\nthe ship\nthe sea\n" * 9)
    base = tiny.base("mlm")
    copied = shutil.copytree(base, tmp_path / "base")
    data = {"train": str(file), "validation": None, "columns": None}
    recipe = tiny.recipe("mlm", base=str(copied), data=data)
    tiny.fit(recipe)
    file.write_text("the whale\nthe ship\nthe bay\n" * 9)
    with pytest.raises(RunError, match=r"other data\.train\n"):
        tiny.fit(recipe, resume=True)
    file.write_text("the whale\nthe ship\nthe sea\n" * 9)
    tokenizer = copied / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(RunError, match="other tokenizer"):
        tiny.fit(recipe, resume=True)


def test_a_key_that_is_newer_than_the_checkpoint_is_no_change_at_its_default(tiny: Any) -> None:
    recipe = recipe_of(tiny, "lora")
    run = tiny.fit(recipe)
    step = checkpoint_steps(run)[-1]
    state = checkpoint.load_state(run, step)
    recipes = state["fingerprint"]["recipe"]
    del recipes["train"]["label_smoothing"], recipes["lora"]["variant"], recipes["tagging"]
    assert (
        resume._differences(
            resume._with_newer_keys(state["fingerprint"]),
            resume.fingerprint(recipe, tiny.prepared(recipe)),
        )
        == []
    )
    del recipes["lora"]["rank"]  # not the default
    recipes["of_old"] = 1
    named = resume._differences(
        resume._with_newer_keys(state["fingerprint"]),
        resume.fingerprint(recipe, tiny.prepared(recipe)),
    )
    assert {"lora.rank", "of_old"} <= set(named)


def test_the_hardware_may_change(tiny: Any, uninterrupted: Any) -> None:
    run = uninterrupted("mlm")
    other = {"hardware": {"workers": 2, "micro_batch_tokens": 999}, "logging": {"every": 5}}
    tiny.fit(tiny.merged(recipe_of(tiny, "mlm"), output=str(run.path), **other), resume=True)


def test_a_second_process_is_kept_out_of_the_run(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first was killed, and the processes that it had started go on."""
    recipe = recipe_of(tiny, "mlm")
    steps = session.train_steps

    def beside(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(session, "train_steps", steps)
        with pytest.raises(RunError, match="another process is training into this directory"):
            tiny.fit(recipe, resume=True)
        return steps(*arguments, **options)

    monkeypatch.setattr(fit, "LOCKED_SECONDS", 0)
    monkeypatch.setattr(session, "train_steps", beside)
    assert tiny.fit(recipe).is_finished
