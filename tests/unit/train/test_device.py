"""What a run is computed on."""

from __future__ import annotations

import pytest
import torch

from lmkit.errors import RecipeError
from lmkit.recipe.schema import Hardware
from lmkit.train import device
from lmkit.train.device import build_accelerator, choose_precision, micro_batch_tokens


def test_runs_of_one_python_process_may_differ_in_precision() -> None:
    found = [build_accelerator(Hardware(precision=precision)).mixed_precision for precision in ("fp32", "bf16", "bf16", "fp32")]  # type: ignore[arg-type]
    assert found == ["no", "bf16", "bf16", "no"]


def test_precision_auto_is_the_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(device, "native_bf16", lambda native=native: native)
        assert choose_precision(Hardware()) == expected
        assert choose_precision(Hardware(precision="fp32")) == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works there")
def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(RecipeError, match=r"hardware\.precision: fp16 needs a GPU"):
        choose_precision(Hardware(precision="fp16"))


def test_another_number_of_processes_than_asked_for_is_said() -> None:
    """Elsewhere two were asked for and one was quietly started."""
    with pytest.raises(RecipeError, match=r"hardware\.processes: 1 processes run, not 2"):
        build_accelerator(Hardware(precision="fp32", processes=2))


def test_tokens_of_a_pass_are_the_recipes_or_the_devices() -> None:
    cpu = torch.device("cpu")
    assert micro_batch_tokens(Hardware(micro_batch_tokens=77), cpu) == 77
    assert micro_batch_tokens(Hardware(), cpu) == 4096
