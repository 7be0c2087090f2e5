"""``lmkit merge``: base + adapter -> one plain Hugging Face model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lmkit import console
from lmkit.errors import ModelError, RunError
from lmkit.models.adapters import TASK_TYPES, adapter_config, base_of
from lmkit.models.source import DESCRIPTION, ModelSource, find_model, is_model_directory
from lmkit.recipe import Recipe, load_recipe
from lmkit.run import Run, atomic_directory, is_run
from lmkit.tasks.registry import problem, problems

TOLERANCE = 1e-5  # largest difference of logits, fp32


def merge(source: str, output: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Add an adapter to the weights of its base, and save the result with tokenizer, lmkit.json and model card.

    A base in 4 or 8 bits is taken in full precision. Nothing is left behind unless the saved model, loaded
    afresh, has the adapter's logits.

    Args:
        source: a run, its model directory, or a PEFT adapter that lmkit did not make.
        overwrite: the output may be a model directory of lmkit's, which is replaced.

    Raises:
        ModelError: this is no adapter, its base is gone, or the logits differ.
        RunError: the output directory is not empty.
    """
    found = find_model(source, key="RUN")
    if not found.is_adapter:
        local = Path(found.location).is_dir()
        raise ModelError(
            "no adapter, but a whole model: there is nothing to merge"
            if local
            else "not a directory with an adapter",
            place=found.location,
            remedy="it can be used as it is"
            if local
            else "download it first, and name the directory with adapter_config.json",
        )
    base, task, target = base_of(found), _task_of(found), Path(output).expanduser()
    _check_target(target, [Path(found.location), Path(base)], overwrite=overwrite)
    recipe = load_recipe(Run(found.run).recipe_file) if found.run is not None else Recipe()

    from lmkit.models.adapters import load_adapter, merged, probe_logits
    from lmkit.models.build import count_parameters
    from lmkit.models.crf import FILE as CRF_FILE
    from lmkit.models.load import from_pretrained
    from lmkit.models.tokenizer import load_tokenizer, save_tokenizer
    from lmkit.recipe.schema import Model
    from lmkit.train.card import merged_card

    own = any(
        (Path(found.location) / name).is_file()
        for name in ("tokenizer.json", "tokenizer_config.json")
    )
    solved = problem(task)
    tokenizer = load_tokenizer(
        found.location if own else base,
        trust_remote_code=recipe.model.trust_remote_code,
        slow=solved.architecture == "encoder-decoder",
    )
    model_class = solved.auto_class
    with atomic_directory(target) as folder:
        adapted = load_adapter(found, model_class, recipe, quantized=False)
        expected = probe_logits(adapted)
        model = merged(adapted)
        model.save_pretrained(folder)
        for name in (
            CRF_FILE,
            "generation_config.json",
        ):  # the adapter's: transitions, the first token of an output
            if (Path(found.location) / name).is_file():
                shutil.copy(Path(found.location) / name, folder / name)
        save_tokenizer(tokenizer, folder)
        fresh, _ = from_pretrained(
            model_class, str(folder), Model(trust_remote_code=recipe.model.trust_remote_code), {}
        )
        difference, largest = (
            (probe_logits(fresh) - expected).abs().max().item(),
            expected.abs().max().item(),
        )
        if not difference <= TOLERANCE * max(1.0, largest):
            raise ModelError(
                f"the merged model computes something else than the adapter (logits of up to {largest:.3g} differ by {difference:.3g})",
                place=found.location,
                remedy="nothing was written; the adapter itself works as it did: use that",
            )
        made = {"adapter": str(Path(found.location).resolve()), "base": base}
        described = found.description or {"task": task, "recipe": {"task": task}}
        kept = {key: value for key, value in described.items() if key != "quantize"}
        _write(
            folder / DESCRIPTION,
            json.dumps({**kept, "merged": made}, ensure_ascii=False, indent=2) + "\n",
        )
        _write(
            folder / "README.md",
            merged_card(target.name, solved, fresh.config, tokenizer, made, difference),
        )
    console.say(
        f"merged: {target}; its logits differ from the adapter's by at most {difference:.1e}"
    )
    return {
        "model": str(target),
        "task": task,
        **made,
        "parameters": count_parameters(fresh)[1],
        "logits_difference": difference,
    }


def _task_of(found: ModelSource) -> str:
    if "task" in found.description:
        return str(found.description["task"])
    named = adapter_config(found).get("task_type")
    for solved in sorted(problems(), key=lambda solved: solved.stage != "finetune"):
        if named is not None and TASK_TYPES.get(solved.auto_class) == named:
            return solved.name
    raise ModelError(
        f"an adapter of task_type {named!r}",
        place=found.location,
        remedy=f"lmkit merges {', '.join(TASK_TYPES.values())}, and its own",
    )


def _check_target(target: Path, sources: list[Path], *, overwrite: bool) -> None:
    """Refuse a directory that is not empty, unless it holds a model of lmkit's that may be replaced."""
    place = str(target)
    Run(target).check_place()
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise RunError(
            "the output directory is not empty",
            place=place,
            remedy="add --overwrite to replace it, or give another -o",
        )
    whole = target.resolve()
    is_merged = (
        is_model_directory(target)
        and (target / DESCRIPTION).is_file()
        and not is_run(target)
        and not is_run(whole.parent)
    )
    if not is_merged or any(path.resolve().is_relative_to(whole) for path in sources):
        raise RunError(
            "--overwrite only replaces a model directory of lmkit's that is neither a run's nor what is merged here",
            place=place,
            remedy="give another -o, or empty it yourself",
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
