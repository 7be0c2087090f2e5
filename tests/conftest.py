"""What the tests share: a few shipped rows for every task, tiny random models, and one cache for the whole session.

Everything runs in fp32 on one CPU thread, offline.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile

# before any library reads them
os.environ |= {
    "HF_HOME": tempfile.mkdtemp(prefix="lmkit-tests-"),  # the user's may hold anything
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "true",
    "DS_ACCELERATOR": "cpu",  # where DeepSpeed is installed, transformers imports it, and it writes a line to stdout
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lmkit.data.splits import Splits
    from lmkit.recipe.schema import Recipe
    from lmkit.run import Run
    from lmkit.train.parallelism.replicated import Single
    from lmkit.train.prepare import Prepared
    from lmkit.train.setup import Setup

settings.register_profile(
    "steady", deadline=None, derandomize=True
)  # the same examples, on slow machines too
settings.load_profile("steady")

# the recipe of a task in small: a new task needs a line here, and the contract suite runs over it
TEXTS = {
    "train": "sample:tatoeba_en_es/train.tsv.gz",
    "validation": "sample:tatoeba_en_es/validation.tsv.gz",
    "columns": {"text": 0},
}
RECIPES: dict[str, dict[str, Any]] = {
    "mlm": {"tokenizer": {"train": {"algorithm": "wordpiece"}}, "data": TEXTS},
    "clm": {"tokenizer": {"train": {"algorithm": "bpe"}}, "data": TEXTS},
    "denoise": {"tokenizer": {"train": {"algorithm": "unigram"}}, "data": TEXTS},
    "classification": {
        "tokenizer": {"train": {"algorithm": "wordpiece"}},
        "data": {
            "train": "sample:vader_tweets2/train.jsonl.gz",
            "validation": "sample:vader_tweets2/validation.jsonl.gz",
            "columns": {"label": "label_name"},
            "labels": ["negative", "positive"],  # the first rows are all positive
        },
    },
    "ner": {
        "tokenizer": {"train": {"algorithm": "wordpiece"}},
        "data": {
            "train": "sample:usaddress_ner/train.conll.gz",
            "validation": "sample:usaddress_ner/train.conll.gz",
        },
    },
    "translation": {
        "tokenizer": {"train": {"algorithm": "unigram"}},
        "data": {
            "train": "sample:tatoeba_en_es/train.tsv.gz",
            "validation": "sample:tatoeba_en_es/validation.tsv.gz",
            "columns": {"source": 0, "target": 1},
            "max_length": 64,
        },
    },
}
# the other kinds of gold that classification knows; their file is made of addresses: text, text_pair, the parts there are
CLASSIFIED = {"train": "{folder}/addresses.jsonl", "validation": "{folder}/addresses.jsonl"}
RECIPES |= {
    "multi_label": RECIPES["classification"]
    | {"task": "classification", "data": CLASSIFIED | {"columns": {"label": "parts"}}},
    "pairs": RECIPES["classification"]
    | {"task": "classification", "data": CLASSIFIED | {"columns": {"text_pair": "beside"}}},
    "regression": RECIPES["classification"]
    | {
        "task": "classification",
        "data": {
            **RECIPES["classification"]["data"],
            "columns": {"label": "score"},
            "labels": None,
        },
    },
}
SHARED: dict[str, Any] = {
    "tokenizer": {"train": {"vocab_size": 320}},
    "data": {"max_rows": 10, "max_length": 32},
    "train": {"max_steps": 2, "batch_size": 4, "warmup": 0, "learning_rate": 1e-3, "dropout": 0.0},
    "hardware": {"precision": "fp32"},
    "eval": {"resamples": 20},
    "logging": {"every": 1},
}

# architectures that lmkit has no preset of, in small
_ENCODER = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "roberta": _ENCODER,
    "electra": _ENCODER | {"embedding_size": 16},
    "deberta-v2": _ENCODER,
    "xlnet": {"n_layer": 2, "d_model": 32, "n_head": 2, "d_inner": 64},
    "distilbert": {"n_layers": 2, "dim": 32, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    "qwen3": _ENCODER | {"num_key_value_heads": 1, "head_dim": 16},
    "gemma2": _ENCODER | {"num_key_value_heads": 1, "head_dim": 16},
    "granite": _ENCODER | {"num_key_value_heads": 1, "logits_scaling": 8.0},
    "cohere": _ENCODER | {"num_key_value_heads": 1},
    "bart": {
        "d_model": 32,
        **{
            f"{side}_{key}": size
            for side in ("encoder", "decoder")
            for key, size in [("layers", 2), ("attention_heads", 2), ("ffn_dim", 64)]
        },
    },
}
ARCHITECTURES["mbart"] = ARCHITECTURES["bart"]


class Tiny:
    """Recipes, data and models of seconds; what is slow to make is made once a session."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._write_addresses()
        self._prepared: dict[str, Any] = {}
        self._count = 0

    def recipe(
        self,
        task: str,
        architecture: str | None = None,
        *,
        base: str | None = None,
        **sections: Any,
    ) -> Recipe:
        """A task's small recipe: random weights of an architecture (default: the task's), or those of ``base``.

        Args:
            sections: merged in; None takes a key out.
        """
        from lmkit.recipe import load_recipe
        from lmkit.tasks.registry import problem

        kind, task = task, RECIPES[task].get("task", task)
        name = architecture or problem(task).smoke_preset
        model = (
            {"config": {"model_type": name, **ARCHITECTURES[name]}}
            if name in ARCHITECTURES
            else {"preset": f"{name}-nano"}
        )
        values = merge(merge(SHARED, {"task": task, "name": task, "model": model}), RECIPES[kind])
        if task in ("translation", "clm", "denoise"):
            values["generation"] = {"num_beams": 2, "max_new_tokens": 4}
        if base is not None:
            values |= {"model": {"base": base}, "tokenizer": {}}
        values = merge(values, sections)
        self._count += 1
        for split, source in values["data"].items():
            if isinstance(source, str):
                values["data"][split] = source.replace("{folder}", str(self.folder))
        return load_recipe({"output": str(self.folder / f"run-{self._count}"), **values})

    def _write_addresses(self) -> None:
        """Real addresses, each with the kinds of its parts, its neighbour, and whether the two have the same parts."""
        with gzip.open(
            Path(__file__).parents[1] / "lmkit" / "samples" / "usaddress_ner" / "train.conll.gz",
            "rt",
        ) as file:
            rows = [
                [line.split("\t") for line in block.split("\n")]
                for block in file.read().strip().split("\n\n")
            ][:40]
        texts = [" ".join(word for word, _ in row) for row in rows]
        parts = [sorted({tag[2:].lower() for _, tag in row if tag != "O"}) for row in rows]
        with (self.folder / "addresses.jsonl").open("w", encoding="utf-8") as out:
            for i, text in enumerate(texts):
                alike = "yes" if parts[i] == parts[i - 1] else "no"
                row = {"text": text, "beside": texts[i - 1], "parts": parts[i], "label": alike}
                out.write(json.dumps(row) + "\n")

    def merged(self, recipe: Recipe, **sections: Any) -> Recipe:
        """The recipe with sections merged in."""
        from lmkit.recipe import load_recipe

        return load_recipe(merge(recipe.model_dump(), sections))

    def splits(self, recipe: Recipe) -> Splits:
        from lmkit.data.splits import load_splits
        from lmkit.tasks.registry import problem

        return load_splits(recipe, problem(recipe.task), wanted=("train", "validation"))

    def prepared(self, recipe: Recipe) -> Prepared:
        """Task and tokens; made once for equal recipes."""
        from lmkit.models.source import find_model
        from lmkit.train.prepare import prepare

        key = json.dumps(recipe.model_dump(exclude={"output", "hardware", "logging", "eval"}))
        if key not in self._prepared:
            source = find_model(recipe.model.base) if recipe.model.base else None
            self._prepared[key] = prepare(recipe, self.splits(recipe), source)
        found: Prepared = self._prepared[key]
        return found

    def model(self, recipe: Recipe) -> Any:
        """A new model, in evaluation mode."""
        from lmkit.models.build import build_model

        prepared = self.prepared(recipe)
        return build_model(recipe, prepared.task, prepared.source).model.eval()

    def fit(self, recipe: Recipe, *, resume: bool = False) -> Run:
        """Train the recipe into its output directory."""
        from lmkit.models.source import find_model
        from lmkit.run import Run
        from lmkit.train.fit import fit

        run = Run(recipe.output)
        run.start(resume=resume, overwrite=False)
        fit(
            recipe,
            self.splits(recipe),
            find_model(recipe.model.base) if recipe.model.base else None,
            run,
            resume=resume,
        )
        return run

    def base(self, task: str, architecture: str | None = None, **sections: Any) -> str:
        """The directory of a saved random model with its tokenizer, to start from as ``model.base``."""
        from lmkit.models.save import save_model

        recipe = self.recipe(task, architecture, **sections)
        folder = Path(recipe.output)
        if not folder.exists():
            folder.mkdir(parents=True)
            save_model(self.model(recipe), self.prepared(recipe).task, folder)
        return str(folder)

    def setup(
        self,
        recipe: Recipe,
        model: Any = None,
        *,
        optimizer: Any = None,
        budget: int = 64,
        packing: Any = None,
        total: int | None = None,
    ) -> Setup:
        """What a training step needs, with this model and optimizer; for an epoch, or so many steps."""
        from lmkit.data.plan import Plan
        from lmkit.train.batches import StepBatches
        from lmkit.train.optim import build_optimizer
        from lmkit.train.setup import Computation, Setup

        prepared, parallelism = self.prepared(recipe), self.processes
        encoded = prepared.encoded["train"]
        plan = Plan(len(encoded), recipe.train.batch_size, recipe.seed)
        model = parallelism.prepare(self.model(recipe) if model is None else model)
        if optimizer is None:
            optimizer = build_optimizer(model, recipe.train)
        return Setup(
            recipe=recipe,
            prepared=prepared,
            plan=plan,
            total=plan.steps_per_epoch if total is None else total,
            parallelism=parallelism,
            model=model,
            optimizer=parallelism.prepare_optimizer(optimizer),
            computation=Computation(recipe.hardware.fast != "off", packing),
            batches=StepBatches(
                encoded, plan, prepared.task, budget=budget, packed=packing is not None
            ),
        )

    @property
    def processes(self) -> Single:
        from lmkit.train.parallelism.replicated import Single

        return Single(self.accelerator)

    @property
    def accelerator(self) -> Accelerator:
        from lmkit.recipe.schema import Hardware
        from lmkit.train.device import build_accelerator

        return build_accelerator(Hardware(precision="fp32"))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, the second's values winning; None takes a key out."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = (
            merge(merged.get(key) or {}, value)
            if isinstance(value, Mapping) and key != "columns"
            else value
        )
    return {key: value for key, value in merged.items() if value is not None}


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LMKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    import torch

    torch.set_num_threads(1)
    return Tiny(tmp_path_factory.mktemp("tiny"))
