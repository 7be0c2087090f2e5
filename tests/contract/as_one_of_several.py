"""Train recipes as one of several processes; started by test_two_processes.py.

usage: python as_one_of_several.py STAGE=RECIPE ...
"""

from __future__ import annotations

import sys

from accelerate import Accelerator

from lmkit.commands.train import train

if __name__ == "__main__":
    Accelerator.end_training = lambda self: None  # the process group serves the next recipe too
    for argument in sys.argv[1:]:
        stage, _, recipe = argument.partition("=")
        train(stage, recipe, resume=True)
