"""Train recipes as one of several processes, the second of which has trouble; started by test_trouble.py.

usage: python with_trouble_on_one_rank.py TROUBLE STAGE=RECIPE ...
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from accelerate import Accelerator

from lmkit import cli
from lmkit.commands.train import train
from lmkit.errors import DataError
from lmkit.tasks.classification import Classification
from lmkit.train import session


def out_of_memory(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def limit_memory() -> None:
    """Room for one example of a backward pass on the second rank."""
    loss = Classification.loss

    def limited(task: Any, model: Any, batch: Any) -> Any:
        found = loss(task, model, batch)
        if model.training and len(batch["labels"]) > 1 and os.environ["RANK"] == "1":
            found.register_hook(out_of_memory)
        return found

    Classification.loss = limited  # type: ignore[method-assign]


def fail() -> None:
    """The second rank finds a mistake at the third step."""
    steps = session.train_steps

    def failing(*arguments: Any, **options: Any) -> Any:
        for step in steps(*arguments, **options):
            if step.number == 3 and os.environ["RANK"] == "1":
                raise DataError("a row that the second rank cannot read", place="train.jsonl:7")
            yield step

    session.train_steps = failing


if __name__ == "__main__":
    {"memory": limit_memory, "failure": fail}[sys.argv[1]]()
    Accelerator.end_training = lambda self: None  # the process group serves the next recipe too
    for argument in sys.argv[2:]:
        stage, _, recipe = argument.partition("=")
        cli.app = lambda stage=stage, recipe=recipe, **_: train(stage, recipe, resume=True) and None
        if status := cli._status():
            sys.exit(status)
