"""A model that reads padding is known before anything is learned that depends on the batch, and no other is taken for one."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from lmkit.fast.unpadding import choose_packing
from lmkit.models.padding import warn_of_padding
from lmkit.tasks.registry import problem

SIZE = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16}
HEADS = {"num_attention_heads": 2}
XLNET = {"vocab_size": 40, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 16}


def made(name: str, **values: Any) -> Any:
    cls = getattr(transformers, name)
    return cls(cls.config_class(**values))


def test_fnet_mixes_padding_into_texts_which_is_said(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe("classification")
    assert (
        choose_packing(
            recipe, problem("classification"), made("FNetForSequenceClassification", **SIZE)
        )
        is None
    )
    assert "this fnet reads padding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("BertForSequenceClassification", SIZE | HEADS),
        ("BertForTokenClassification", SIZE | HEADS),
        ("BertForMaskedLM", SIZE | HEADS),
        ("XLNetForSequenceClassification", XLNET),
        ("XLNetForTokenClassification", XLNET),
        ("GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 8, "n_layer": 1, "n_head": 2}),
    ],
)
def test_nothing_is_said_of_a_model_that_masks_padding(
    name: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_padding(made(name, **values))
    assert not capsys.readouterr().err


def test_bigbird_is_not_tried_for_its_attention_would_change_for_good() -> None:
    model = made("BigBirdForSequenceClassification", **SIZE, **HEADS, attention_type="block_sparse")
    warn_of_padding(model)
    assert model.config.attention_type == "block_sparse"
