"""What a recipe may say: a frozen tree of typed values, and the only place where defaults live.

No behaviour and no torch in here. The first sentence of each ``Field`` description is what
``docs/recipes.md`` shows (made by ``python docs/make_reference.py``).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _as_text(value: Any) -> Any:
    """Columns and labels may be numbers in YAML: ``columns: {text: 0}``, ``labels: [1, 2]``."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_interval(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"(\d+|\d*\.\d+)\s*min", value):
        raise ValueError('expected a number of steps, or minutes as "10min"')
    return value


Name = Annotated[str, BeforeValidator(_as_text)]
Source = Annotated[str | list[str], Field(description="path, list, glob, directory or hub id")]


class Section(BaseModel):
    """A frozen mapping in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        """``tokenizer:`` with nothing, or only comments, below it stands for the defaults."""
        if not isinstance(values, dict):
            return values
        made = {name for name, field in cls.model_fields.items() if field.default_factory is not None}
        return {key: value for key, value in values.items() if not (value is None and key in made)}


class Model(Section):
    base: str | None = Field(None, description="weights from: a run, a directory or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    preset: str | None = Field(None, description="random weights: FAMILY-SIZE, for example bert-mini")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of the Hugging Face config to replace; with model_type and neither base nor preset, the whole config",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class TokenizerTraining(Section):
    algorithm: Literal["wordpiece", "bpe", "unigram"] = Field(
        "wordpiece", description="wordpiece and unigram split at words, bpe is byte-level and knows every text"
    )
    vocab_size: Annotated[int, Field(ge=64)] = Field(16000, description="tokens, special ones included")
    lowercase: bool = Field(False, description="lower-case all text")
    files: Source | None = Field(None, description="text to learn from, if not data.train")


class Tokenizer(Section):
    base: str | None = Field(None, description="a directory, run or hub id; default: the one that comes with model.base")
    train: TokenizerTraining | None = Field(None, description="learn one from data.train")


class Data(Section):
    train: Source | None = Field(None, description="rows to learn from: path, list, glob, directory or hub id")
    validation: Source | None = Field(None, description="rows that choose the best checkpoint")
    validation_fraction: Share | None = Field(None, description="share of data.train to set aside, by content hash")
    test: Source | None = Field(None, description="rows for lmkit eval")
    columns: dict[str, Name] = Field(default_factory=dict, description="which column of the file plays which role")
    labels: list[Name] | None = Field(None, description="all labels, where the training rows do not show them all")
    document: Literal["line", "paragraph", "file"] = Field(
        "line", description="what is one document in a .txt file: a line, lines up to an empty one, or the whole file"
    )
    max_length: Annotated[int, Field(ge=4)] = Field(256, description="tokens a model reads at once")
    overlap: Annotated[float, Field(ge=0, le=0.75)] = Field(
        0.25, description="share of max_length that neighbouring windows of a long text have in common"
    )
    long_text: Literal["windows", "head", "error"] = Field(
        "windows",
        description="longer texts: read in overlapping windows, cut after max_length (counted and said), or refused; translation knows head and error",
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="a row that cannot be used: stop, or leave it out, count it and keep it in rejects.jsonl"
    )
    max_rows: Positive | None = Field(None, description="use the first rows of each split only")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="cross-validation: train and evaluate so many runs, each row of data.train once in test"
    )
    fold: Annotated[str, Field(pattern=r"^[1-9]\d*/[1-9]\d*$")] | None = Field(
        None, description="one run of a cross-validation: 2/5 tests on the second fifth of data.train, by content hash"
    )


class Masking(Section):
    share: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of the tokens to predict")
    whole_words: bool = Field(False, description="mask all tokens of a word together")


class Lora(Section):
    rank: Positive = Field(16, description="rank of the update")
    alpha: Annotated[float, Field(gt=0)] = Field(32, description="scale: the update is multiplied by alpha / rank")
    dropout: Share = Field(0.05, description="dropout before the update")
    targets: str | list[str] = Field(
        "auto", description="auto (PEFT's choice for the architecture, else all-linear), all-linear, or module names"
    )
    variant: Literal["lora"] = Field("lora", description="kind of update")


class Train(Section):
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="passes over the data; default 3 where neither max_steps nor max_minutes is given"
    )
    max_steps: Positive | None = Field(None, description="optimiser steps")
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="stop after so many minutes, the schedule fitted to them"
    )
    batch_size: Positive = Field(
        32, description="examples per optimiser step over all devices (pretraining: sequences of max_length tokens)"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="peak of the schedule")
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        "linear", description="shape of the learning rate after warm-up"
    )
    warmup: Annotated[float, Field(ge=0)] = Field(0.06, description="share of the steps if below 1, else a number of steps")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW's, not for norms and biases")
    beta1: Share = Field(0.9, description="AdamW's")
    beta2: Share = Field(0.999, description="AdamW's")
    epsilon: Annotated[float, Field(gt=0)] = Field(1e-8, description="AdamW's")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="gradients are scaled down to this norm; null: never"
    )
    label_smoothing: Share = Field(0.0, description="share of the target probability that is spread over all classes")
    eval_every: Annotated[float, Field(gt=0)] = Field(1.0, description="share of an epoch if at most 1, else a number of steps")
    select_best: str | None = Field(
        None, description="metric that chooses the checkpoint kept as the model; default by task; 'last' keeps the last"
    )
    early_stopping: Positive | None = Field(None, description="evaluations without improvement before stopping; null: off")
    dropout: Share | None = Field(None, description="all dropout rates of the model; null: the model's own")


class Hardware(Section):
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the chip computes it natively, else fp32"
    )
    micro_batch_tokens: Positive | Literal["auto"] = Field("auto", description="tokens per forward pass on one device")
    processes: Positive | Literal["auto"] = Field("auto", description="auto: one per GPU, one without")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that prepare batches beside each training process")
    packing: Literal["auto", "off"] = Field(
        "auto", description="short documents share a row where the model keeps them apart exactly; off: one per row"
    )
    checkpoint_every: Annotated[str | Positive | None, BeforeValidator(_as_interval)] = Field(
        "10min", description='steps, or minutes as "10min"; null: only where an evaluation improves and at the end'
    )
    keep_checkpoints: Positive = Field(2, description="how many of the newest stay; the best stays besides")


class Generation(Section):
    num_beams: Positive = Field(4, description="beams of the search; 1: greedy")
    max_new_tokens: Positive = Field(128, description="longest output in tokens")
    length_penalty: float = Field(1.0, description="above 1 favours longer outputs")


class Eval(Section):
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="level of the intervals")
    resamples: Annotated[int, Field(ge=0)] = Field(1000, description="bootstrap resamples; 0: no intervals")
    interval: Literal["percentile", "bca"] = Field(
        "percentile", description="bounds: quantiles of the resamples, or corrected for bias and skewness (BCa)"
    )
    baseline: bool = Field(
        False, description="lmkit eval also learns simple baselines from data.train, in seconds, and compares the model with them"
    )
    metrics: list[str] = Field(
        default_factory=list,
        description="further metrics: modules of the evaluate library, by local path, hub id or lmkit_classification, lmkit_tagging, lmkit_translation",
    )


class Logging(Section):
    every: Positive = Field(10, description="steps between lines of log.jsonl")
    to: list[str] = Field(default_factory=list, description="any of Accelerate's trackers")


class Recipe(Section):
    """Everything lmkit is told about one run."""

    name: Name = Field("", description="default: the name of the file")
    task: str = Field("", description="mlm, clm; classification, ner, translation")
    seed: Annotated[int, Field(ge=0)] = Field(13, description="of the weights, the order and the masks")
    seeds: Positive = Field(1, description="train and evaluate so many runs, with seed, seed + 1, ...")
    model: Model = Field(default_factory=Model)
    tokenizer: Tokenizer = Field(default_factory=Tokenizer)
    data: Data = Field(default_factory=Data)
    masking: Masking = Field(default_factory=Masking, description="mlm only")
    lora: Lora | None = Field(None, description="train low-rank updates only; null: all weights")
    train: Train = Field(default_factory=Train)
    hardware: Hardware = Field(default_factory=Hardware)
    generation: Generation = Field(default_factory=Generation)
    eval: Eval = Field(default_factory=Eval)
    logging: Logging = Field(default_factory=Logging)
    output: str = Field("runs/{name}", description="run directory")
