"""A model that reads padding is refused before anything is learned that would depend on the batch."""

from __future__ import annotations

import pytest
import transformers

from lmkit.errors import ModelError
from lmkit.models.padding import check_padding
from lmkit.recipe.schema import Hardware

SIZE = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16}


def fnet() -> transformers.PreTrainedModel:
    return transformers.FNetForSequenceClassification(transformers.FNetConfig(**SIZE))


def test_fnet_is_refused_for_it_mixes_padding_into_texts() -> None:
    with pytest.raises(ModelError, match=r"this fnet reads padding.*\n.*micro_batch_tokens=1"):
        check_padding(fnet(), Hardware())


def test_fnet_is_taken_one_text_at_a_time() -> None:
    check_padding(fnet(), Hardware(micro_batch_tokens=1))


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"])
def test_a_model_that_masks_padding_is_taken(head: str) -> None:
    made = getattr(transformers, f"Bert{head}")(transformers.BertConfig(**SIZE, num_attention_heads=2))
    check_padding(made, Hardware())
