"""The garbage collector of a program that calls lmkit is that program's."""

from __future__ import annotations

import subprocess
import sys


def test_objects_of_a_program_that_calls_lmkit_stay_in_the_garbage_collector_s_view() -> None:
    code = """
import gc, sys
from lmkit import console
from lmkit.startup import importing
start = gc.get_freeze_count()
with importing(): print(gc.isenabled())
before = gc.get_freeze_count() - start
console.own_process()
with importing(): print(gc.isenabled())
print(before, gc.get_freeze_count() > start, gc.isenabled())
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found == "True\nFalse\n0 True True\n"
