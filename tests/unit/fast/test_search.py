"""The search writes what transformers' ``generate`` writes for each sentence alone, and computes less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import EncoderDecoderCache, GenerationConfig

from lmkit.fast import search as searching
from lmkit.fast.attention import CpuAttention
from lmkit.fast.search import search

VOCABULARY, END, PAD = 48, 2, 1
SHAPE = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END}
BART = SHAPE | {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "bos_token_id": 0,
    "decoder_start_token_id": END, "scale_embedding": False,
}  # fmt: skip
T5 = SHAPE | {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": PAD,
}
# class, config, and what the end mark's logit has to be for ends here and there
FAMILIES: dict[str, tuple[str, dict[str, Any], float]] = {
    "Marian": ("MarianMTModel", BART, 3.5),
    "Bart": ("BartForConditionalGeneration", BART, 9.0),
    "MBart": ("MBartForConditionalGeneration", BART, 3.5),
    "M2M100": ("M2M100ForConditionalGeneration", BART, 9.0),
    "T5": ("T5ForConditionalGeneration", T5, 2.5),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "greedy, changed logits": {"num_beams": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "two beams": {"num_beams": 2},
    "four beams": {"num_beams": 4},
    "short is better": {"num_beams": 4, "length_penalty": -1.0},
    "long is better": {"num_beams": 3, "length_penalty": 2.5},
    "length does not matter": {"num_beams": 3, "length_penalty": 0.0},
    "language first": {"num_beams": 4, "forced_bos_token_id": 7},
    "two ends": {"num_beams": 3, "eos_token_id": [END, 9]},
    "no end": {"num_beams": 3, "suppress_tokens": [END]},
    "half as many beams as tokens": {"num_beams": VOCABULARY // 2, "max_new_tokens": 3},
    "more beams than that": {"num_beams": VOCABULARY // 2 + 1, "max_new_tokens": 3},
    "one token": {"num_beams": 4, "max_new_tokens": 1},
    "changed logits": {
        "num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "bad_words_ids": [[5], [6, 8]],
        "begin_suppress_tokens": [END], "renormalize_logits": True,
    },
}  # fmt: skip


def model_of(family: str, **options: Any) -> Any:
    """A random model that ends its sentences at different lengths."""
    name, shape, bias = FAMILIES[family]
    cls: Any = getattr(transformers, name)
    model = cls(cls.config_class(**shape)).eval()
    model.lm_head = torch.nn.Linear(16, VOCABULARY)
    torch.nn.init.zeros_(model.lm_head.bias)
    torch.manual_seed(8)
    for weight in model.parameters():
        if weight.dim() > 1:  # normalisation as it is
            torch.nn.init.normal_(weight)
    model.lm_head.bias.data[END] = bias
    start = model.config.decoder_start_token_id
    given = {
        "num_beams": 1,
        "max_new_tokens": 24,
        "decoder_start_token_id": start,
        "pad_token_id": PAD,
        "eos_token_id": END,
    }
    model.generation_config = GenerationConfig(**given | options)
    return model


def sources(count: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [
        [*torch.randint(3, VOCABULARY, (1 + number % 7,), generator=generator).tolist(), END]
        for number in range(count)
    ]


def written(model: Any, texts: list[list[int]]) -> tuple[list[list[int]], list[float] | None]:
    longest = max(map(len, texts))
    batch = {
        "input_ids": torch.tensor([text + [PAD] * (longest - len(text)) for text in texts]),
        "attention_mask": torch.tensor(
            [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
        ),
    }
    with torch.inference_mode():
        return search(model, batch, model.get_encoder()(**batch))


def generated(model: Any, text: list[int]) -> tuple[list[int], float | None]:
    beams = model.generation_config.num_beams > 1
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([text]),
            attention_mask=torch.ones(1, len(text), dtype=torch.long),
            return_dict_in_generate=True,
            output_scores=beams,
        )
    return output.sequences[0, 1:].tolist(), output.sequences_scores.item() if beams else None


@pytest.fixture(params=["attention of transformers", "attention on CPUs"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The attention that a search has; with the second one beams share what they read of a source."""
    if request.param == "attention of transformers":
        monkeypatch.setattr(CpuAttention, "available", lambda *_: "not here")
    name: str = request.param
    return name


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentence_of_a_batch_is_what_generate_writes_for_it_alone(
    family: str, options: str, attention: str
) -> None:
    model = model_of(family, **OPTIONS[options])
    texts = sources()
    found, scores = written(model, texts)
    expected = [generated(model, text) for text in texts]
    assert found == [ids for ids, _ in expected]
    if scores is None:
        assert model.generation_config.num_beams == 1
    else:
        assert scores == pytest.approx([score for _, score in expected], rel=1e-5, abs=1e-5)
    if options in ("greedy", "four beams"):
        assert (
            len(set(map(len, found))) > 2
        )  # so that sentences leave the batch one after the other


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_read_the_keys_of_their_source_together_where_the_architecture_allows_it(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, kept = model_of(family, num_beams=4), []
    repeat = EncoderDecoderCache.batch_repeat_interleave
    monkeypatch.setattr(
        EncoderDecoderCache,
        "batch_repeat_interleave",
        lambda cache, beams: kept.append(beams) or repeat(cache, beams),
    )
    written(model, sources())
    assert kept == ([] if attention == "attention on CPUs" and family != "T5" else [4])


@pytest.mark.parametrize("beams", [1, 4])
def test_when_sentences_leave_the_batch_changes_nothing(
    beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = model_of("MBart", num_beams=beams), sources()
    expected, scores = written(model, texts)
    for leaving in (0.0, 1.0):
        monkeypatch.setattr(searching, "LEAVING", leaving)
        found, again = written(model, texts)
        assert found == expected
        assert again == (None if scores is None else pytest.approx(scores, rel=1e-5, abs=1e-5))


@pytest.mark.parametrize("beams", [1, 4])
def test_nothing_is_computed_for_sentences_that_have_ended(
    beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = model_of("MBart", num_beams=beams), sources()
    monkeypatch.setattr(searching, "LEAVING", 1.0)
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda _, given, named: rows.append(len(named["decoder_input_ids"])), with_kwargs=True
    )
    found, _ = written(model, texts)
    assert rows[0] == len(texts)  # all beams of a sentence begin alike
    if beams == 1:
        assert rows == [
            sum(len(text) > step for text in found) for step in range(max(map(len, found)))
        ]
    else:
        assert rows[1:] == sorted(rows[1:], reverse=True)
        assert rows[-1] < beams * len(texts)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_with_another_cache_is_left_to_generate(
    beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = model_of("Bart", num_beams=beams), sources()
    expected, scores = written(model, texts)
    monkeypatch.setattr(searching, "_search", lambda *_, **__: None)
    found, again = written(model, texts)
    assert found == expected
    assert again == (None if scores is None else pytest.approx(scores, rel=1e-5, abs=1e-5))
