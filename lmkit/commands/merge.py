"""``lmkit merge``: base + adapter -> one plain Hugging Face model."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.errors import ModelError, RunError
from lmkit.models.adapters import TASK_TYPES, adapter_config, base_of
from lmkit.models.source import DESCRIPTION, ModelSource, find_model, is_model_directory
from lmkit.recipe import Recipe, load_recipe
from lmkit.run import Run, atomic_directory, is_run
from lmkit.tasks.registry import problem, problems

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

TOLERANCE = 1e-5  # largest difference of logits, fp32


@dataclass(frozen=True)
class MergedModel:
    """A merged model.

    Args:
        logits_difference: the largest difference between its logits and the adapter's.
    """

    model: str
    task: str
    adapter: str
    base: str
    parameters: int
    logits_difference: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        difference = f"{self.logits_difference:.1e}"
        return f"merged: {self.model}; its logits differ from the adapter's by at most {difference}"


def merge(source: str, output: str, *, overwrite: bool = False) -> MergedModel:
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
    adapter = find_model(source, key="RUN")
    _check_adapter(adapter)
    base, task, target = base_of(adapter), _task_of(adapter), Path(output).expanduser()
    _check_target(target, [Path(adapter.location), Path(base)], overwrite=overwrite)
    recipe = load_recipe(Run(adapter.run).recipe_file) if adapter.run is not None else Recipe()

    from lmkit.models.build import count_parameters
    from lmkit.models.tokenizer import save_tokenizer
    from lmkit.train.card import merged_card

    tokenizer = _tokenizer(adapter, base, task, recipe)
    made = {"adapter": str(Path(adapter.location).resolve()), "base": base}
    with atomic_directory(target) as folder:
        expected = _save_merged(adapter, task, recipe, folder)
        save_tokenizer(tokenizer, folder)
        model, difference = _prove_same(adapter, task, recipe, folder, expected)
        described = adapter.description or {"task": task, "recipe": {"task": task}}
        values = {key: value for key, value in described.items() if key != "quantize"}
        values["merged"] = made
        _write(folder / DESCRIPTION, json.dumps(values, ensure_ascii=False, indent=2) + "\n")
        card = merged_card(target.name, problem(task), model.config, tokenizer, made, difference)
        _write(folder / "README.md", card)
    parameters = count_parameters(model)[1]
    return MergedModel(str(target), task, made["adapter"], base, parameters, difference)


def _check_adapter(model: ModelSource) -> None:
    """Refuse what is a whole model, or not here."""
    if model.is_adapter:
        return
    if Path(model.location).is_dir():
        raise ModelError(
            "no adapter, but a whole model: there is nothing to merge",
            place=model.location,
            remedy="it can be used as it is",
        )
    raise ModelError(
        "not a directory with an adapter",
        place=model.location,
        remedy="download it first, and name the directory with adapter_config.json",
    )


def _tokenizer(
    adapter: ModelSource, base: str, task: str, recipe: Recipe
) -> PreTrainedTokenizerBase:
    """Load the adapter's tokenizer, or where it has none that of its base."""
    from lmkit.models.tokenizer import load_tokenizer

    files = ("tokenizer.json", "tokenizer_config.json")
    is_own = any((Path(adapter.location) / name).is_file() for name in files)
    return load_tokenizer(
        adapter.location if is_own else base,
        trust_remote_code=recipe.model.trust_remote_code,
        slow=problem(task).architecture == "encoder-decoder",
    )


def _save_merged(adapter: ModelSource, task: str, recipe: Recipe, folder: Path) -> Tensor:
    """Save the base with the adapter's weights added to its own; return the adapter's logits."""
    from lmkit.models.adapters import load_adapter, merged, probe_logits
    from lmkit.models.crf import FILE as CRF_FILE

    adapted = load_adapter(adapter, problem(task).auto_class, recipe, quantized=False)
    expected: Tensor = probe_logits(adapted)
    merged(adapted).save_pretrained(folder)
    # the adapter's: transitions, the first token of an output
    for name in (CRF_FILE, "generation_config.json"):
        if (Path(adapter.location) / name).is_file():
            shutil.copy(Path(adapter.location) / name, folder / name)
    return expected


def _prove_same(
    adapter: ModelSource, task: str, recipe: Recipe, folder: Path, expected: Tensor
) -> tuple[Any, float]:
    """Load the saved model, and refuse it unless it has the adapter's logits."""
    from lmkit.models.adapters import probe_logits
    from lmkit.models.pretrained import from_pretrained
    from lmkit.recipe.schema import Model

    section = Model(trust_remote_code=recipe.model.trust_remote_code)
    model, _ = from_pretrained(problem(task).auto_class, str(folder), section, {})
    difference = (probe_logits(model) - expected).abs().max().item()
    largest = expected.abs().max().item()
    if not difference <= TOLERANCE * max(1.0, largest):  # which nan is not, either
        raise ModelError(
            f"the merged model computes something else than the adapter (logits of up to {largest:.3g} differ by {difference:.3g})",
            place=adapter.location,
            remedy="nothing was written; the adapter itself works as it did: use that",
        )
    return model, difference


def _task_of(adapter: ModelSource) -> str:
    if "task" in adapter.description:
        return str(adapter.description["task"])
    named = adapter_config(adapter).get("task_type")
    for solved in sorted(problems(), key=lambda solved: solved.stage != "finetune"):
        if named is not None and TASK_TYPES.get(solved.auto_class) == named:
            return solved.name
    raise ModelError(
        f"an adapter of task_type {named!r}",
        place=adapter.location,
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
