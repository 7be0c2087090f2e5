"""What only makes a run faster changes nothing: without it the same is learned and said, to rounding, over every task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmkit.errors import RecipeError
from lmkit.recipe import load_recipe
from lmkit.run import Run

TASKS = (
    "mlm",
    "clm",
    "denoise",
    "classification",
    "multi_label",
    "regression",
    "ner",
    "translation",
)


def losses(run: Run) -> list[float]:
    lines = (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def predictions(run: Run) -> list[Any]:
    file = run.eval_folder("validation") / "predictions.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def approximately(value: Any) -> Any:
    """Compare JSON up to the rounding of its numbers."""
    if isinstance(value, dict):
        return {key: approximately(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [approximately(inner) for inner in value]
    return pytest.approx(value, rel=1e-3, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("task", TASKS)
def test_without_fast_paths_the_same_is_learned(tiny: Any, task: str) -> None:
    fast, plain = (
        tiny.fit(tiny.recipe(task, hardware={"fast": switch})) for switch in ("auto", "off")
    )
    assert losses(fast) == approximately(losses(plain))
    assert predictions(fast) == approximately(predictions(plain))


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention", "flash"), ("kernels", "liger"), ("compile", "on")],
)
def test_off_beside_a_fast_path_by_name_is_a_mistake(key: str, value: str) -> None:
    with pytest.raises(RecipeError) as found:
        load_recipe({"task": "mlm", "hardware": {"fast": "off", key: value}})
    assert f"hardware.{key}: {value}" in str(found.value)
    assert "hardware.fast: off" in str(found.value)


def test_off_executes_no_file_of_the_fast_paths(tiny: Any) -> None:
    recipe = tiny.recipe("classification", hardware={"fast": "off"})
    code = f"""
import json, sys
import lmkit
lmkit.finetune(json.loads({json.dumps(recipe.model_dump())!r}))
print([name for name in sys.modules if name.startswith("lmkit.fast.")])
"""
    assert run_python(code) == "[]"


SNAPSHOT = """
import json, os, random, sys, gc, threading
import numpy, torch, transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

def functions(module):
    return {name: id(value) for name, value in vars(module).items() if callable(value)}

def snapshot():
    return {
        "attention": {name: id(value) for name, value in ALL_ATTENTION_FUNCTIONS.items()},
        "masks": {name: id(value) for name, value in ALL_MASK_ATTENTION_FUNCTIONS.items()},
        "functions": functions(torch.nn.functional),
        "torch": functions(torch),
        "models": functions(transformers.modeling_utils),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "environment": dict(os.environ),
        "random": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "precision": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
        "solver": id(sys.modules.get("scipy.optimize")) if "scipy.optimize" in sys.modules else None,
    }
"""


@pytest.mark.parametrize("task", ["classification", "ner", "translation", "mlm", "clm"])
def test_a_model_that_is_loaded_leaves_the_process_as_it_was(tiny: Any, task: str) -> None:
    run = tiny.fit(tiny.recipe(task))
    texts = {"mlm": ["a [MASK] text"]}.get(task, ["a text", "another one"])
    code = f"""{SNAPSHOT}
import lmkit
torch.set_num_threads(3)
torch.rand(1), numpy.random.rand(), random.random()
import transformers.models.auto, scipy.optimize
before = snapshot()
assert lmkit.load({str(run.path)!r}).predict({texts!r})
after = snapshot()
def others(values):
    # an attention of lmkit's own has names of its own
    return {{name: value for name, value in values.items() if not name.startswith("lmkit_")}}
for name in before:
    if name in ("attention", "masks"):
        before[name], after[name] = others(before[name]), others(after[name])
print([name for name in before if before[name] != after[name]])
"""
    assert run_python(code, OMP_NUM_THREADS=None, ACCELERATE_USE_CPU=None) == "[]"


def run_python(code: str, **environment: str | None) -> str:
    """Run code in a fresh process; None takes a variable out."""
    import os

    values = {key: value for key, value in os.environ.items() if key not in environment}
    values |= {key: value for key, value in environment.items() if value is not None}
    values["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=values, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]
