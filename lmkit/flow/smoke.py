"""``--smoke``: the same recipe end to end in seconds, on a tiny model of the same architecture."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.data.splits import Splits, load_splits
from lmkit.errors import ModelError, RunError
from lmkit.flow.evaluation import evaluate_subject
from lmkit.models.presets import preset_config, shrink
from lmkit.models.source import ModelSource, find_model
from lmkit.preflight import check_choice, check_model_keys
from lmkit.recipe import Recipe, load_recipe
from lmkit.recipe.schema import TokenizerTraining
from lmkit.records import Metrics
from lmkit.run import Run
from lmkit.subject import find_subject
from lmkit.tasks.registry import problem

ROWS, STEPS = 32, 4


@dataclass(frozen=True)
class SmokeSummary:
    """A recipe that was run end to end in small.

    Args:
        evaluation: metrics whose numbers mean nothing.
    """

    task: str
    steps: int
    seconds: float
    evaluation: Metrics

    def to_json(self) -> dict[str, Any]:
        return {
            "smoke": True,
            "task": self.task,
            "steps": self.steps,
            "seconds": self.seconds,
            "evaluation": self.evaluation.to_json(),
        }


def smoke_run(recipe: Recipe) -> SmokeSummary:
    """Check all rows; train, save, reload, evaluate and predict on a few, in a folder that is removed.

    Where ``model.base`` is not there yet (the run of an earlier recipe), a tiny random model of the task's
    usual family stands in, and that is said.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "one process is enough for it",
            place="--smoke",
            remedy="the same command without the launcher",
        )
    # a base that is not there yet is no mistake here; keys that contradict each other are
    if recipe.model.base is None or recipe.model.preset:
        check_model_keys(recipe, None)
    splits = load_splits(recipe, problem(recipe.task), wanted=("train", "validation", "test"))
    check_choice(recipe, splits)
    from lmkit.train.fit import fit

    splits = few_rows(splits)
    with tempfile.TemporaryDirectory(prefix="lmkit-smoke-") as folder:
        tiny = tiny_recipe(recipe, splits, Path(folder))
        source = find_model(tiny.model.base) if tiny.model.base else None
        check_model_keys(tiny, source)
        run = Run(Path(folder) / "run")
        trained = {split: rows for split, rows in splits.rows.items() if split != "test"}
        summary = fit(tiny, Splits(trained, splits.facts), source, run, resume=False)
        # on the training rows, where there are no others
        evaluation = evaluate_subject(find_subject(run.path), splits=splits)
        assert evaluation is not None  # there is one process
    console.say(
        f"smoke: {recipe.name} trains, saves, reloads and evaluates; the numbers mean nothing"
    )
    return SmokeSummary(recipe.task, summary.steps, summary.seconds, evaluation)


def few_rows(splits: Splits) -> Splits:
    """Return the first rows of every split, with what was learned of all."""
    few = {}
    for split, rows in splits.rows.items():
        few[split] = rows.select(range(min(ROWS, len(rows))))
    return Splits(few, splits.facts)


def tiny_recipe(recipe: Recipe, splits: Splits, folder: Path) -> Recipe:
    """Return the recipe with a tiny model of the same architecture and a few short steps."""
    values = recipe.model_dump()
    values["output"] = str(folder / "run")
    values["train"] |= {
        "max_steps": STEPS,
        "epochs": None,
        "max_minutes": None,
        "batch_size": min(4, recipe.train.batch_size),
        "eval_every": STEPS // 2,
    }
    values["train"]["freeze_layers"] = min(1, recipe.train.freeze_layers)
    values["hardware"] |= {"processes": "auto", "checkpoint_every": None}
    if "generation" in problem(recipe.task).keys:
        values["generation"] |= {
            "max_new_tokens": 8,
            "num_beams": min(2, recipe.generation.num_beams),
        }
    values["eval"] |= {"resamples": min(50, recipe.eval.resamples)}
    values["logging"] |= {"every": 1, "to": []}
    if recipe.tokenizer.train is not None:
        values["tokenizer"]["train"]["vocab_size"] = min(1000, recipe.tokenizer.train.vocab_size)
        values["tokenizer"]["train"]["files"] = None
    if recipe.model.base is None:
        config = recipe.model.config
        if recipe.model.preset:
            config = preset_config(recipe.model.preset, max_length=recipe.data.max_length) | config
        values["model"] |= {"preset": None, "config": shrink(config)}
    else:
        values["model"] = {
            "base": str(_tiny_base(recipe, splits, folder / "base")),
            "trust_remote_code": recipe.model.trust_remote_code,
        }
        values["tokenizer"] = {"add_tokens": recipe.tokenizer.add_tokens}
    return load_recipe(values)


def _tiny_base(recipe: Recipe, splits: Splits, folder: Path) -> Path:
    """Save a model directory like ``model.base``, with its tokenizer, tiny and random."""
    import transformers

    from lmkit.models.config import load_config
    from lmkit.models.tokenizer import num_tokens, save_tokenizer
    from lmkit.train.prepare import build_tokenizer

    plain = recipe.tokenizer.model_copy(update={"add_tokens": []})
    recipe = recipe.model_copy(update={"tokenizer": plain})
    base = recipe.model.base or ""
    try:
        source: ModelSource = find_model(base)
    except ModelError as error:
        if not base.startswith("runs/") and os.sep not in base:
            raise
        family = problem(recipe.task).smoke_preset
        console.warn(f"{str(error).splitlines()[0]}; a tiny random {family} stands in for it")
        tokenizer = build_tokenizer(_stand_in(recipe, family), splits, None)
        values = preset_config(f"{family}-nano", max_length=recipe.data.max_length)
        values |= {"decoder_vocab_size": len(tokenizer)}
    else:
        tokenizer = build_tokenizer(recipe, splits, source)
        values = shrink(load_config(source, recipe).to_dict())
    values |= {
        "vocab_size": num_tokens(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    values.setdefault("decoder_start_token_id", tokenizer.pad_token_id)
    config = transformers.CONFIG_MAPPING[values.pop("model_type")](**values)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def _stand_in(recipe: Recipe, family: str) -> Recipe:
    """Return the recipe with a tiny model and a tokenizer of its own, instead of a base that is not there."""
    training = TokenizerTraining(algorithm="bpe", vocab_size=1000)
    model = recipe.model.model_copy(update={"base": None, "preset": f"{family}-nano"})
    tokenizer = recipe.tokenizer.model_copy(update={"base": None, "train": training})
    return recipe.model_copy(update={"model": model, "tokenizer": tokenizer})
