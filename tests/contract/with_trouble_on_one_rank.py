"""Train recipes as one of several processes, the second of which has trouble; started by test_trouble.py.

usage: python with_trouble_on_one_rank.py TROUBLE STAGE=RECIPE ...
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator

from lmkit import cli
from lmkit.commands.train import train
from lmkit.errors import DataError
from lmkit.tasks.classification.task import Classification
from lmkit.train import checkpoint, session, writer


def out_of_memory(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def limit_memory() -> None:
    """Room for one example of a backward pass on the second rank."""
    loss = Classification.loss

    def limited(task: Any, model: Any, batch: Any) -> Any:
        found = loss(task, model, batch)
        if model.training and len(batch.labels) > 1 and os.environ["RANK"] == "1":
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


def fill_disk() -> None:
    """The second rank finds no room for the third step's checkpoint where there is one after each step."""
    write = checkpoint.write_parts

    def filling(run: Any, step: int, *rest: Any) -> Any:
        if step != 3 or os.environ["RANK"] != "1":
            return write(run, step, *rest)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(safetensors.torch, "save_file", no_room)
            return write(run, step, *rest)

    writer.write_parts = filling


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


if __name__ == "__main__":
    {"memory": limit_memory, "failure": fail, "disk": fill_disk, "none": lambda: None}[
        sys.argv[1]
    ]()
    Accelerator.end_training = lambda self: None  # the process group serves the next recipe too
    for argument in sys.argv[2:]:
        stage, _, recipe = argument.partition("=")
        cli.app = lambda stage=stage, recipe=recipe, **_: train(stage, recipe, resume=True) and None
        if status := cli._status():
            sys.exit(status)
