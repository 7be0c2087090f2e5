"""Writes the table of docs/correctness.md: ``python docs/make_correctness.py`` (minutes).

The proofs of ``lmkit doctor RECIPE``, over every task and model family that fits it.
"""

from __future__ import annotations

import datetime
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from lmkit.commands.proof import Proof, prove_splits, shrunk
from lmkit.models.presets import TINY
from lmkit.recipe import load_recipe
from lmkit.recipe.shipped import shipped_recipes
from lmkit.run import versions

PAGE = Path(__file__).with_name("correctness.md")
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
ENCODERS = ("bert", "modernbert", "roberta", "electra", "distilbert", "deberta-v2")
FAMILIES = {
    "mlm": ENCODERS,
    "clm": ("llama", "gpt2", "qwen3"),
    "denoise": ("t5", "bart"),
    "classification": (*ENCODERS, "gpt2"),
    "ner": ENCODERS,
    "translation": ("marian", "t5", "bart"),
}
PRESETS = ("bert", "modernbert", "llama", "marian", "t5")
ALGORITHM = {"clm": "bpe", "denoise": "unigram", "translation": "unigram"}


def recipe_of(task: str, family: str) -> Any:
    """The demo's recipe of a task, or the one that ships for it, on random weights of the family."""
    import transformers

    shipped = shipped_recipes()
    recipe = load_recipe(
        str(shipped.get(f"demo/{task}") or shipped[f"pretrain/{task}"])
    ).model_dump()
    if family in PRESETS:
        model: dict[str, Any] = {"preset": f"{family}-nano"}
    else:
        sizes = transformers.CONFIG_MAPPING[family]().to_dict().keys() & TINY.keys()
        model = {"config": {"model_type": family} | {name: TINY[name] for name in sizes}}
    learned = {"algorithm": ALGORITHM.get(task, "wordpiece"), "vocab_size": 500}
    recipe["train"]["freeze_layers"] = 0
    return load_recipe(recipe | {"model": model, "tokenizer": {"train": learned}, "lora": None})


def largest(proofs: list[Proof], *beginnings: str) -> str:
    """The largest difference of the proofs of one column."""
    chosen = [proof for proof in proofs if proof.varied.startswith(beginnings)]
    if any(proof.verdict == "FAILED" for proof in chosen):
        return "FAILED"
    values = [
        value for proof in chosen for value in (proof.loss, proof.gradients) if value is not None
    ]
    return f"{max(values):.0e}" if values else "-"


COLUMNS = {
    "micro-batch": ("micro-batch",),
    "packed": ("packed",),
    "2 loader workers": ("loader",),
    "2 processes": ("processes",),
    "evaluation batch": ("evaluation",),
}


def table() -> str:
    """A row per task and family."""
    lines = [f"| task | family | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for task, families in FAMILIES.items():
        for family in families:
            with tempfile.TemporaryDirectory() as folder:
                proofs = prove_splits(
                    shrunk(recipe_of(task, family), Path(folder), dropout=0.0), Path(folder)
                )
            lines.append(
                f"| {task} | {family} | {' | '.join(largest(proofs, *names) for names in COLUMNS.values())} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def machine() -> str:
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else torch.backends.cpu.get_cpu_capability()
    )
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"Measured on {datetime.date.today().isoformat()}, {platform.system()} {platform.machine()}, {device}; {found}."


if __name__ == "__main__":
    made = f"{BEGIN}\n{table()}\n\n{machine()}\n{END}"
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.DOTALL), encoding="utf-8"
    )
