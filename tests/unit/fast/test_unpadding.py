"""Texts that share rows in the backbone: where their tokens go, and on which models that is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from lmkit.batch import IGNORE, Batch
from lmkit.data.plan import rows_to_share
from lmkit.fast.packing import Packing
from lmkit.fast.unpadding import find_unpadding, shared_rows
from lmkit.models.trials import TOLERANCE

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
    "pad_token_id": 0,
}
SHARES = ("bert", "roberta", "electra", "modernbert", "xlm-roberta")


def tiny_model(
    family: str, auto: Any = AutoModelForSequenceClassification, **changes: Any
) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(
        AutoConfig.for_model(family, **TINY, num_labels=3, **changes)
    )
    return model.eval()


def padded(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Different tokens in every place."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.arange(mask.numel()).view(mask.shape) % 80 + 5
    return {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "token_type_ids": (tokens % 2) * mask,
    }


def sharing(inputs: dict[str, torch.Tensor], lengths: list[int]) -> Batch:
    """The inputs as a batch whose texts are to share rows."""
    labels = torch.full_like(inputs["attention_mask"], IGNORE)
    return Batch(inputs, labels, shared=torch.from_numpy(rows_to_share(lengths)))


@pytest.mark.parametrize(
    "auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification]
)
@pytest.mark.parametrize("family", SHARES)
def test_encoders_share_rows(family: str, auto: Any) -> None:
    assert find_unpadding(tiny_model(family, auto), longest=60) is not None


def test_a_model_that_takes_no_positions_does_not_share_rows() -> None:
    assert find_unpadding(tiny_model("deberta-v2"), longest=60) is None


def test_a_pooler_that_is_not_called_on_all_states_does_not_share_rows() -> None:
    assert find_unpadding(tiny_model("albert", embedding_size=16), longest=60) is None


def test_a_model_that_asserts_the_shape_of_its_mask_does_not_share_rows() -> None:
    assert (
        find_unpadding(
            tiny_model("flaubert", emb_dim=32, n_layers=1, n_heads=2, n_words=90), longest=60
        )
        is None
    )


def test_a_model_that_a_short_text_would_change_is_not_tried() -> None:
    assert (
        find_unpadding(
            tiny_model(
                "big_bird", attention_type="block_sparse", block_size=4, num_random_blocks=1
            ),
            longest=60,
        )
        is None
    )


def test_an_encoder_decoder_does_not_share_rows() -> None:
    assert (
        find_unpadding(
            tiny_model("bart", d_model=32, encoder_layers=1, decoder_layers=1), longest=60
        )
        is None
    )


def test_a_decoder_that_classifies_shares_rows_and_still_reads_its_last_token() -> None:
    model = tiny_model("llama", num_key_value_heads=2)
    packing = find_unpadding(model, longest=60)
    assert packing is not None
    assert packing.causal


def test_positions_that_begin_elsewhere_are_found() -> None:
    packing = find_unpadding(tiny_model("roberta", max_position_embeddings=70), longest=60)
    assert packing is not None
    assert packing.first_position == 1  # behind the padding's


@pytest.mark.parametrize("family", SHARES)
def test_logits_and_gradients_are_those_of_the_padded_batch(family: str) -> None:
    model = tiny_model(family)
    packing = find_unpadding(model, longest=60)
    lengths = [9, 3, 30, 4, 5]
    batch = padded(lengths)
    if family not in ("bert", "electra"):
        del batch["token_type_ids"]
    model(**batch).logits.square().sum().backward()
    apart = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    logits = model(**batch).logits
    model.zero_grad()
    with shared_rows(model, packing, sharing(batch, lengths)) as given:
        assert given.shared is None
        together = model(**given.inputs).logits
    together.square().sum().backward()
    torch.testing.assert_close(together, logits)
    for parameter, wanted in zip(model.parameters(), apart, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-6, rtol=1e-5)


def test_a_mask_that_lets_texts_see_each_other_is_found_out() -> None:
    class SeesAll(Packing):
        def _mask(self, segments: torch.Tensor) -> Any:
            return torch.ones_like(super()._mask(segments))

    model, lengths = tiny_model("bert"), [9, 3, 30, 4, 5]
    batch = padded(lengths)
    with shared_rows(model, SeesAll(causal=False), sharing(batch, lengths)) as given:
        together = model(**given.inputs).logits
    alone = model(**batch).logits
    assert (together - alone).abs().max() > 100 * TOLERANCE * alone.abs().max()


def test_the_backbone_is_as_before_once_rows_are_no_longer_shared() -> None:
    model, lengths = tiny_model("bert"), [9, 3, 30, 4, 5]
    batch = padded(lengths)
    before = model(**batch).logits
    with shared_rows(model, Packing(causal=False), sharing(batch, lengths)) as given:
        model(**given.inputs)
    torch.testing.assert_close(model(**batch).logits, before, atol=0, rtol=0)
