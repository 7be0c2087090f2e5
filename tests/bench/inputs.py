"""The inputs of tests/bench/speed.py: texts of synthetic words, tokenizers and models, the same for both sides.

    python tests/bench/inputs.py DIR

Words are random letters drawn by Zipf's law and are one wordpiece or two; everything follows a seed. ``clm``, ``mlm``,
``bert``, ``classifier`` and ``marian`` are model directories with random weights, the ``.jsonl`` files beside them the
rows. What is there already stays.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = 400
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
SPECIAL = {
    "encoder": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "decoder": {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    },
    "encoder-decoder": {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"},
}
LABELS = 8
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
BERT = {
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
MINI = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4}
LLAMA = {
    "intermediate_size": 672,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


class Words:
    """A vocabulary of pieces, and words of them in the order of their frequency."""

    def __init__(self, size: int, role: str, seed: int = 1):
        rng = np.random.default_rng(seed)
        self.special = SPECIAL[role]
        stems = _strings(rng, size - len(self.special) - SUFFIXES, 5)
        endings = _strings(rng, SUFFIXES, 3)
        self.pieces = [*self.special.values(), *stems, *(f"##{ending}" for ending in endings)]
        tails = [endings[rng.integers(SUFFIXES)] if rng.random() < 0.3 else "" for _ in stems]
        self.words = np.array([stem + tail for stem, tail in zip(stems, tails, strict=True)])
        weights = 1 / (np.arange(len(stems)) + 2.7)  # Zipf-Mandelbrot
        self.sums = np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Numbers of words."""
        return np.searchsorted(self.sums, rng.random(count)).clip(max=len(self.words) - 1)

    def tokenizer(self, role: str, longest: int = 512) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        vocabulary = {piece: number for number, piece in enumerate(self.pieces)}
        fast = Tokenizer(models.WordPiece(vocabulary, unk_token=self.special["unk_token"]))
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        first, last = {
            "encoder": ("[CLS] ", " [SEP]"),
            "decoder": ("<s> ", ""),
            "encoder-decoder": ("", " </s>"),
        }[role]
        marks = [(mark, vocabulary[mark]) for mark in (first.strip(), last.strip()) if mark]
        fast.post_processor = processors.TemplateProcessing(
            single=f"{first}$A{last}", special_tokens=marks
        )
        names = (
            ["input_ids", "token_type_ids", "attention_mask"]
            if role == "encoder"
            else ["input_ids", "attention_mask"]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=fast, model_max_length=longest, model_input_names=names, **self.special
        )


def _strings(rng: np.random.Generator, count: int, length: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found |= dict.fromkeys(
            "".join(row) for row in LETTERS[rng.integers(len(LETTERS), size=(count, length))]
        )
    return list(found)[:count]


def lengths(
    rng: np.random.Generator, count: int, mean: float, sigma: float, most: int
) -> np.ndarray:
    """Words a text, lognormal."""
    return (
        np.exp(rng.normal(np.log(mean) - sigma**2 / 2, sigma, count))
        .round()
        .clip(1, most)
        .astype(int)
    )


def make(folder: Path) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)

    def model(name: str, kind: str, config: Any, tokenizer: Any) -> None:
        if not (folder / name / "sizes.json").is_file():
            save(folder / name, kind, config, tokenizer)

    words = Words(16_000, "encoder")
    tokenizer = words.tokenizer("encoder")
    ids = {"pad_token_id": tokenizer.pad_token_id}
    _texts(folder / "mlm.jsonl", words, 20_000, seed=2)
    config = transformers.BertConfig(vocab_size=16_000, intermediate_size=1024, **MINI, **ids)
    model("mlm", "BertForMaskedLM", config, tokenizer)

    words = Words(16_000, "decoder")
    tokenizer = words.tokenizer("decoder")
    ids = {
        f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("pad", "bos", "eos")
    }
    _texts(folder / "clm.jsonl", words, 20_000, seed=3)
    model(
        "clm",
        "LlamaForCausalLM",
        transformers.LlamaConfig(vocab_size=16_000, **MINI, **LLAMA, **ids),
        tokenizer,
    )

    words = Words(30_522, "encoder")
    tokenizer = words.tokenizer("encoder")
    config = {"vocab_size": 30_522, "pad_token_id": tokenizer.pad_token_id, **BERT}
    model("bert", "BertModel", transformers.BertConfig(**config), tokenizer)
    labels = {
        "id2label": {i: str(i) for i in range(LABELS)},
        "label2id": {str(i): i for i in range(LABELS)},
    }
    model(
        "classifier",
        "BertForSequenceClassification",
        transformers.BertConfig(**config, **labels),
        tokenizer,
    )
    rng = np.random.default_rng(4)
    for name, count in (("classification", 20_000), ("eval", 10_000)):
        _write(
            folder / f"{name}.jsonl",
            [_labelled(rng, words, size) for size in lengths(rng, count, 9, 0.7, 90)],
        )
    _write(
        folder / "ner.jsonl",
        [_tagged(rng, words, size) for size in lengths(rng, 20_000, 20, 0.5, 90)],
    )

    words = Words(8_000, "encoder-decoder")
    tokenizer = words.tokenizer("encoder-decoder")
    sides = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in (("layers", 3), ("attention_heads", 4), ("ffn_dim", 1024))}  # fmt: skip
    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "forced_eos_token_id": None,
    }
    ends |= {"decoder_start_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = transformers.MarianConfig(
        vocab_size=8_000, decoder_vocab_size=8_000, d_model=256, max_position_embeddings=512, activation_function="swish",
        scale_embedding=True, init_std=1 / 16, **sides, **ends,
    )  # fmt: skip
    model("marian", "MarianMTModel", config, tokenizer)
    rng = np.random.default_rng(5)
    for name, count in (("translation", 40_000), ("generate", 1_000)):
        _write(
            folder / f"{name}.jsonl",
            [_pair(rng, words, size) for size in lengths(rng, count, 13, 0.5, 60)],
        )


def save(folder: Path, kind: str, config: Any, tokenizer: Any) -> None:
    """A model directory with random weights, and ``sizes.json`` once it is whole."""
    import transformers

    transformers.set_seed(1)
    model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "sizes.json").write_text(json.dumps(sizes(model)))


def sizes(model: Any) -> dict[str, Any]:
    """Weights of the layers that each token passes, by side, embeddings and tied output left out, and the shape."""
    config = model.config
    found = {"encoder": 0, "decoder": 0}
    for name, weight in model.named_parameters():
        if (
            weight.dim() == 2
            and not re.search(r"embed|\bwpe\b", name)
            and weight.shape[0] != config.vocab_size
        ):
            found["decoder" if ".decoder." in name else "encoder"] += weight.numel()
    layers = (
        getattr(config, "encoder_layers", 0) + getattr(config, "decoder_layers", 0)
    ) or config.num_hidden_layers
    return found | {"layers": layers, "width": config.hidden_size, "vocabulary": config.vocab_size}


def _texts(path: Path, words: Words, count: int, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    _write(
        path,
        [
            {"text": " ".join(words.words[words.draw(rng, size)])}
            for size in lengths(rng, count, 250, 0.8, 2000)
        ],
    )


def _labelled(rng: np.random.Generator, words: Words, size: int) -> dict[str, Any]:
    label = int(rng.integers(LABELS))
    numbers = words.draw(rng, size)
    numbers = np.where(
        rng.random(size) < 0.5, numbers // LABELS * LABELS + label, numbers
    )  # words that tell the label
    return {
        "text": " ".join(words.words[numbers.clip(max=len(words.words) - 1)]),
        "label": str(label),
    }


def _tagged(rng: np.random.Generator, words: Words, size: int) -> dict[str, Any]:
    numbers = words.draw(rng, size)
    kinds = [1 if number % 11 == 3 else 3 if number % 13 == 5 else 0 for number in numbers]
    tags = [
        TAGS[2] if kind == 1 and at and kinds[at - 1] == 1 else TAGS[kind]
        for at, kind in enumerate(kinds)
    ]
    return {"tokens": words.words[numbers].tolist(), "tags": tags}


def _pair(rng: np.random.Generator, words: Words, size: int) -> dict[str, Any]:
    """The target is the source: what is learned soonest, so that outputs end, and with their sources."""
    text = " ".join(words.words[words.draw(rng, size)])
    return {"source": text, "target": text}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not path.is_file():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
