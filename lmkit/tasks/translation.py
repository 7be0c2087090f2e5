"""Translation with an encoder-decoder: teacher forcing in training, beam search in evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkit.tasks.base import IGNORE, MODEL_INPUTS, Batch, Columns, Piece, Row, Task, TooLong, flat, lay_out, pad
from lmkit.tasks.fields import Field

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lmkit.metrics.statistics import Statistics


class Translation(Task):
    name = "translation"
    stage = "finetune"
    model_class = "AutoModelForSeq2SeqLM"
    family = "marian"
    generates = True
    fields = (
        Field("source", "text", aliases=("src", "source_text")),
        Field("target", "text", aliases=("tgt", "target_text", "translation"), gold=True),
    )
    metrics = ("loss", "bleu", "chrf", "ter")

    def encode(self, rows: Sequence[Row]) -> Columns:
        sources = self.tokenizer([row["source"] for row in rows], verbose=False)["input_ids"]
        with_gold = bool(rows) and "target" in rows[0]
        targets = (
            self.tokenizer(text_target=[row["target"] for row in rows], verbose=False)["input_ids"]
            if with_gold
            else [[] for _ in rows]
        )
        longest = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
        long = [(position, length) for position, length in enumerate(longest) if length > self.max_length]
        if long and self.recipe.data.long_text != "head":
            raise TooLong(long, self.max_length)
        columns: Columns = {"input_ids": [self._head(ids) for ids in sources], "labels": [self._head(ids) for ids in targets]}
        columns["row"] = list(range(len(rows)))
        columns["length"] = [
            len(source) + len(target) for source, target in zip(columns["input_ids"], columns["labels"], strict=True)
        ]
        columns["cut"] = [int(length > self.max_length) for length in longest]
        return columns

    def _head(self, ids: list[int]) -> list[int]:
        """The first tokens, with the end mark kept (``long_text: head``)."""
        return ids if len(ids) <= self.max_length else [*ids[: self.max_length - 1], ids[-1]]

    def collate(self, examples: Sequence[Sequence[Piece]], *, epoch: int = 0, packed: bool = False) -> Batch:
        batch = lay_out(examples, columns={"input_ids": self.tokenizer.pad_token_id}, packed=False)
        batch["labels"] = pad([piece["labels"] for piece in flat(examples)], IGNORE)
        return batch

    def logits(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        from lmkit.models.heads import unwrap

        inputs = {key: value for key, value in batch.items() if key in MODEL_INPUTS}
        # each architecture has its own first decoder token; the model knows how to shift
        shifted = unwrap(model).prepare_decoder_input_ids_from_labels(batch["labels"])
        return model(**inputs, decoder_input_ids=shifted, use_cache=False).logits, batch["labels"]

    def predict(self, model: PreTrainedModel, batch: Batch, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        from torch.nn.functional import cross_entropy

        from lmkit.models.heads import unwrap

        nll, items = [0.0] * len(pieces), [0] * len(pieces)
        if batch["labels"].shape[1]:
            logits, labels = self.logits(model, batch)
            losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none")
            nll, items = losses.view_as(labels).sum(1).tolist(), (labels != IGNORE).sum(1).tolist()
        options = self.recipe.generation
        output = unwrap(model).generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            length_penalty=options.length_penalty,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=options.num_beams > 1,
        )
        texts = self.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        scores = output.sequences_scores.exp().tolist() if options.num_beams > 1 else [None] * len(texts)
        return [
            {"text": text.strip(), "score": score, "nll": loss, "items": count}
            for text, score, loss, count in zip(texts, scores, nll, items, strict=True)
        ]

    def combine(self, row: Row, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        (part,) = parts
        record = {
            "id": row["id"],
            "source": row["source"],
            "gold": row.get("target"),
            "prediction": part["text"],
            "score": part["score"],
        }
        return record | {key: part[key] for key in ("nll", "items")}

    def score(self, records: Sequence[Mapping[str, Any]]) -> Statistics:
        from lmkit.metrics.translation import translation_statistics

        hypotheses, references = [r["prediction"] for r in records], [r["gold"] for r in records]
        return translation_statistics(hypotheses, references, tokenize=tokenizer_for(references))

    def text_rows(self, texts: Sequence[str]) -> list[Row]:
        return [{"id": number, "source": text} for number, text in enumerate(texts)]

    def show(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"id": record["id"], "text": record["source"], "translation": record["prediction"], "score": record["score"]}


def tokenizer_for(references: Sequence[str]) -> str:
    """sacreBLEU's tokenizer for the language of the references: ``zh``, characters for Japanese and Korean, else ``13a``.

    13a takes an unspaced sentence for one word, so BLEU would be zero; the signature names the choice.
    """
    sample = "".join(references[:500])
    kana = sum("\u3040" <= c <= "\u30ff" or "\uac00" <= c <= "\ud7af" for c in sample)
    han = sum("\u4e00" <= c <= "\u9fff" for c in sample)
    if kana > 0.1 * len(sample):
        return "char"
    return "zh" if han > 0.2 * len(sample) else "13a"
