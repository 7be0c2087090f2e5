"""What tasks that write a text have in common: the options of the search, and what a decoder reads while it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmkit.batch import IGNORE
from lmkit.errors import RecipeError

if TYPE_CHECKING:
    import torch

    from lmkit.recipe.schema import Generation

# what a base model's generation config may keep: special tokens, and what its makers found necessary
KEPT = (
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "no_repeat_ngram_size", "repetition_penalty",
    "renormalize_logits",
)  # fmt: skip


def check_beams(options: Generation) -> None:
    """Refuse a length penalty that has no effect (RecipeError)."""
    if options.num_beams == 1 and options.length_penalty != 1:
        raise RecipeError(
            "has no effect with one beam",
            place="generation.length_penalty",
            remedy="leave it out, or raise generation.num_beams",
        )


def write_in_transformers() -> str:
    """Return Python that opens an encoder-decoder without lmkit and has it write; DIR stands for its place."""
    return """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("DIR"), AutoModelForSeq2SeqLM.from_pretrained("DIR")
tokenizer.batch_decode(model.generate(**tokenizer("a sentence", return_tensors="pt")), skip_special_tokens=True)"""


def set_generation(model: Any, options: Generation) -> None:
    """Make the options the model's generation config; of its own only what is in ``KEPT`` stays.

    Nothing is written beyond the decoder's positions, whatever ``max_new_tokens`` is.
    """
    from transformers import GenerationConfig

    from lmkit.heads import num_positions

    kept = {name: getattr(model.generation_config, name, None) for name in KEPT}
    model.generation_config = GenerationConfig(
        **{name: value for name, value in kept.items() if value is not None},
        do_sample=False,
        num_beams=options.num_beams,
        max_new_tokens=min(options.max_new_tokens, num_positions(model) or options.max_new_tokens),
    )
    if options.num_beams > 1:
        model.generation_config.length_penalty = options.length_penalty


def shift(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return what the decoder reads while it learns to write ``labels`` ``(rows, length)``: its start, and all but the last.

    Each architecture has its own start, and most know how to shift; M2M-100 does so inside its loss only.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        # mBART takes the last label to the front, and fails where none counts, as in a rank without examples
        nothing = (labels == IGNORE).all(dim=1, keepdim=True)
        labels = labels.masked_fill(nothing, int(model.config.pad_token_id == 0))
        shifted: torch.Tensor = model.prepare_decoder_input_ids_from_labels(labels)
        return shifted
    shifted = labels.roll(1, dims=1).masked_fill(
        labels.roll(1, dims=1) == IGNORE, model.config.pad_token_id
    )
    shifted[:, 0] = model.config.decoder_start_token_id
    return shifted


# tokens by sentence, and with several beams the score of each
Written = tuple[list[list[int]], list[float] | None]


def generate(model: Any, batch: dict[str, torch.Tensor], encoded: Any) -> Written:
    """Let transformers write what the model's ``generation_config`` says.

    Args:
        batch: ``input_ids`` and ``attention_mask``, ``(sentences, length)``.
        encoded: what the encoder made of them.

    Returns:
        Tokens by sentence, without the decoder's start, the end mark included where there is one; and
        with several beams the scores of the best, log-probabilities over ``length ** length_penalty``.
    """
    from transformers.modeling_outputs import BaseModelOutput

    beams = model.generation_config.num_beams
    output = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.last_hidden_state),
        return_dict_in_generate=True,
        output_scores=beams > 1,
    )
    ends = ends_of(model.generation_config)
    texts = []
    for ids in output.sequences[:, 1:].tolist():  # padded at the end
        length = next((at for at, token in enumerate(ids, 1) if token in ends), len(ids))
        texts.append(ids[:length])
    return texts, output.sequences_scores.tolist() if beams > 1 else None


def ends_of(options: Any) -> list[int]:
    """Return the marks that end a sentence."""
    ends = options.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
