"""The keys of a recipe: a frozen tree of typed values, and the only place where defaults live.

No behaviour and no torch in here. ``docs/recipes.md`` shows the descriptions (``make reference``).
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from lmkit.recipe.section import (
    AboveZero,
    Interval,
    Name,
    Parallel,
    Positive,
    Section,
    Share,
    Source,
    about,
)
from lmkit.recipe.task_sections import Classification, Generation, Masking, Tagging, Translation

__all__ = [
    "Classification",
    "Data",
    "Eval",
    "Generation",
    "Hardware",
    "Logging",
    "Lora",
    "Masking",
    "Model",
    "Recipe",
    "Tagging",
    "Tokenizer",
    "TokenizerTraining",
    "Train",
    "Translation",
]


class Model(Section, frozen=True, kw_only=True):
    base: Annotated[str | None, about("weights from: a run, a directory or a hub id")] = None
    revision: Annotated[str | None, about("branch, tag or commit of a hub id")] = None
    preset: Annotated[str | None, about("random weights: FAMILY-SIZE, for example bert-mini")] = (
        None
    )
    config: Annotated[
        dict[str, Any],
        about(
            "fields of the Hugging Face config to replace; with model_type and neither base nor preset, the whole config"
        ),
    ] = field(default_factory=dict)
    trust_remote_code: Annotated[bool, about("run code that comes with the model")] = False


class TokenizerTraining(Section, frozen=True, kw_only=True):
    algorithm: Annotated[
        Literal["wordpiece", "bpe", "unigram"],
        about("wordpiece and unigram split at words, bpe is byte-level and knows every text"),
    ] = "wordpiece"
    vocab_size: Annotated[int, Meta(ge=64), about("tokens, special ones included")] = 16000
    lowercase: Annotated[bool, about("lower-case all text")] = False
    files: Annotated[Source | None, about("text to learn from, if not data.train")] = None
    joint: Annotated[
        bool, about("translation: one vocabulary for both languages; false: one for each (marian)")
    ] = True


class Tokenizer(Section, frozen=True, kw_only=True):
    base: Annotated[
        str | None, about("a directory, run or hub id; default: the one that comes with model.base")
    ] = None
    train: Annotated[TokenizerTraining | None, about("learn one from data.train")] = None
    add_tokens: Annotated[
        list[Annotated[str, Meta(min_length=1)]],
        about(
            "texts that become one token each; a base's embeddings grow by the mean of their pieces'"
        ),
    ] = field(default_factory=list)


class Data(Section, frozen=True, kw_only=True):
    train: Annotated[
        Source | Parallel | None,
        about(
            "rows to learn from: path, list, glob, directory or hub id; or text files by role, line by line: {source: train.en, target: train.de}"
        ),
    ] = None
    validation: Annotated[
        Source | Parallel | None, about("rows that choose the best checkpoint")
    ] = None
    validation_fraction: Annotated[
        Share | None, about("share of data.train to set aside, by content hash")
    ] = None
    test: Annotated[Source | Parallel | None, about("rows for lmkit eval")] = None
    columns: Annotated[
        dict[str, Name],
        about(
            "which column of the file plays which role; a dot leads into an object (translation.en), numbers count columns without a header"
        ),
    ] = field(default_factory=dict)
    labels: Annotated[
        list[Name] | None, about("all labels, where the training rows do not show them all")
    ] = None
    document: Annotated[
        Literal["line", "paragraph", "file"],
        about(
            "what is one document in a .txt file: a line, lines up to an empty one, or the whole file"
        ),
    ] = "line"
    max_length: Annotated[int, Meta(ge=4), about("tokens a model reads at once")] = 256
    overlap: Annotated[
        float,
        Meta(ge=0, le=0.75),
        about("share of max_length that neighbouring windows of a long text have in common"),
    ] = 0.25
    long_text: Annotated[
        Literal["windows", "head", "head_tail", "error"],
        about(
            "longer texts: read in overlapping windows; cut after max_length, or in the middle (a quarter of the room for the head), counted and said; or refused. Translation knows head and error, ner no head_tail"
        ),
    ] = "windows"
    on_bad_row: Annotated[
        Literal["error", "skip"],
        about(
            "a row that cannot be used: stop, or leave it out, count it and keep it in rejects.jsonl"
        ),
    ] = "error"
    max_rows: Annotated[Positive | None, about("use the first rows of each split only")] = None
    folds: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        about(
            "cross-validation: train and evaluate so many runs, each row of data.train once in test"
        ),
    ] = None
    fold: Annotated[
        Annotated[str, Meta(pattern=r"^[1-9]\d*/[1-9]\d*$")] | None,
        about(
            "one run of a cross-validation: 2/5 tests on the second fifth of data.train, by content hash"
        ),
    ] = None


class Lora(Section, frozen=True, kw_only=True):
    rank: Annotated[Positive, about("rank of the update")] = 16
    alpha: Annotated[AboveZero, about("scale: the update is multiplied by alpha / rank")] = 32
    dropout: Annotated[Share, about("dropout before the update")] = 0.05
    targets: Annotated[
        str | Annotated[list[str], Meta(min_length=1)],
        about(
            "auto (PEFT's choice for the architecture, else all-linear), all-linear, one module name or several"
        ),
    ] = "auto"
    variant: Annotated[
        Literal["lora", "rslora", "dora"],
        about(
            "kind of update: lora, rslora (scale alpha / sqrt(rank)), dora (magnitude and direction apart)"
        ),
    ] = "lora"
    learning_rate_ratio: Annotated[
        AboveZero | None,
        about("LoRA+: learning rate of B over that of A, for example 16; null: the same"),
    ] = None
    quantize: Annotated[
        Literal["4bit", "8bit"] | None,
        about("QLoRA: the frozen base in 4 (nf4) or 8 bits; needs a CUDA GPU and lmkit[qlora]"),
    ] = None


class Train(Section, frozen=True, kw_only=True):
    epochs: Annotated[
        AboveZero | None,
        about("passes over the data; default 3 where neither max_steps nor max_minutes is given"),
    ] = None
    max_steps: Annotated[Positive | None, about("optimiser steps")] = None
    max_minutes: Annotated[
        AboveZero | None, about("stop after so many minutes, the schedule fitted to them")
    ] = None
    batch_size: Annotated[
        Positive,
        about(
            "examples per optimiser step over all devices (pretraining: sequences of max_length tokens)"
        ),
    ] = 32
    group_by_length: Annotated[
        bool,
        about(
            "examples of alike length make a step: less padding in translation, whose texts do not share rows, and steps that are less alike"
        ),
    ] = False
    learning_rate: Annotated[AboveZero, about("peak of the schedule")] = 5e-5
    schedule: Annotated[
        Literal["linear", "cosine", "constant", "wsd"],
        about("shape of the learning rate after warm-up"),
    ] = "linear"
    warmup: Annotated[
        float, Meta(ge=0), about("share of the steps if below 1, else a number of steps")
    ] = 0.06
    optimizer: Annotated[
        Literal["adamw", "adafactor", "muon", "adamw8bit", "schedule_free"],
        about(
            "adamw; adafactor: next to no state; muon: for the layers' matrices, adamw for the rest; adamw8bit: a quarter of the state (lmkit[adamw8bit]); schedule_free: AdamW that averages instead of decaying its rate (lmkit[schedule_free])"
        ),
    ] = "adamw"
    weight_decay: Annotated[float, Meta(ge=0), about("not for norms and biases")] = 0.01
    decay_embeddings: Annotated[bool, about("weight decay for embeddings, too")] = True
    beta1: Annotated[Share, about("AdamW's; not Adafactor's or Muon's")] = 0.9
    beta2: Annotated[Share, about("AdamW's; not Adafactor's or Muon's")] = 0.999
    epsilon: Annotated[AboveZero, about("AdamW's; not Adafactor's or Muon's")] = 1e-8
    ema: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        about(
            "evaluate and keep a moving average of the weights with this decay, for example 0.999 (less in the first steps); null: off"
        ),
    ] = None
    max_grad_norm: Annotated[
        AboveZero | None, about("gradients are scaled down to this norm; null: never")
    ] = 1.0
    on_spike: Annotated[
        Literal["skip", "stop"] | None,
        about(
            "a gradient norm above spike_factor times the median of the last 100: leave the step out, or stop; null: go on"
        ),
    ] = None
    spike_factor: Annotated[
        float, Meta(gt=1), about("from which share of the median on a norm is a spike")
    ] = 10.0
    label_smoothing: Annotated[
        Share, about("share of the target probability that is spread over all classes")
    ] = 0.0
    eval_every: Annotated[
        AboveZero, about("share of an epoch if at most 1, else a number of steps")
    ] = 1.0
    select_best: Annotated[
        str | None,
        about(
            "metric that chooses the checkpoint kept as the model; default by task; 'last' keeps the last"
        ),
    ] = None
    early_stopping: Annotated[
        Positive | None, about("evaluations without improvement before stopping; null: off")
    ] = None
    dropout: Annotated[
        Share | None, about("all dropout rates of the model; null: the model's own")
    ] = None
    average_checkpoints: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        about(
            "the model is the mean of the weights at the last so many evaluations, up to the best one; null: off"
        ),
    ] = None
    layer_decay: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        about(
            "learning rate of each layer over that of the layer above; the head has the full one; null: off"
        ),
    ] = None
    freeze_embeddings: Annotated[bool, about("leave the embeddings as they are")] = False
    freeze_layers: Annotated[
        int,
        Meta(ge=0),
        about("leave the first n layers as they are, of the encoder and of the decoder"),
    ] = 0


class Hardware(Section, frozen=True, kw_only=True):
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        about("auto: bf16 where the chip computes it natively, else fp32"),
    ] = "auto"
    micro_batch_tokens: Annotated[
        Positive | Literal["auto"],
        about(
            "tokens per forward pass on one device; auto: by trying on a GPU, 4096 on a CPU; halved where memory ends"
        ),
    ] = "auto"
    processes: Annotated[Positive | Literal["auto"], about("auto: one per GPU, one without")] = (
        "auto"
    )
    workers: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["auto"],
        about(
            "processes that prepare batches beside each training process; auto: none, or one or two where the first steps show that it waits for them and there are more than two cores for it"
        ),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool,
        about(
            "compute activations again in the backward pass: less memory, more time, the same gradients"
        ),
    ] = False
    fast: Annotated[
        Literal["auto", "off"],
        about(
            "auto: whatever computes the same faster; off: none of it, each text in a row of its own, the same result up to rounding"
        ),
    ] = "auto"
    packing: Annotated[
        Literal["auto", "off"],
        about(
            "short documents share a row where the model keeps them apart exactly; off: one per row"
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "sdpa", "flash"],
        about(
            "of rows that texts share: sdpa, with a mask; flash: FlashAttention, each text alone, on a GPU in bf16 or fp16 (experimental: its kernels have not run yet); auto: flash where it is shown to compute the same on this model"
        ),
    ] = "auto"
    kernels: Annotated[
        Literal["auto", "torch", "liger"],
        about(
            "of norms and gated layers: torch, or liger on a GPU (lmkit[liger]; experimental: it has not run on a GPU yet); auto: liger where it is installed and shown to compute the same on this model"
        ),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"],
        about(
            "compiled layers (torch.compile) in training; auto: where a trial at the start of a long run shows that they are faster"
        ),
    ] = "auto"
    checkpoint_every: Annotated[
        Interval,
        about(
            'steps, or minutes as "10min"; null: only where an evaluation improves and at the end'
        ),
    ] = "10min"
    keep_checkpoints: Annotated[
        Positive, about("how many of the newest stay; the best stays besides")
    ] = 2


class Eval(Section, frozen=True, kw_only=True):
    confidence: Annotated[float, Meta(gt=0, lt=1), about("level of the intervals")] = 0.95
    resamples: Annotated[int, Meta(ge=0), about("bootstrap resamples; 0: no intervals")] = 1000
    slices: Annotated[
        list[Name],
        about(
            "metrics on parts of the data: length, unknown, fragmentation, label, or any column of the file"
        ),
    ] = field(default_factory=lambda: ["length"])
    temperature: Annotated[
        bool,
        about(
            "classification: fit a temperature on the validation split, and report calibration before and after"
        ),
    ] = False
    stride: Annotated[
        Positive | None,
        about(
            "clm: windows slide by so many tokens and score only those, so each has context; null: blocks"
        ),
    ] = None
    pseudo_perplexity: Annotated[
        bool, about("mlm: mask every token once, one at a time; a forward pass per token")
    ] = False
    interval: Annotated[
        Literal["percentile", "bca"],
        about("bounds: quantiles of the resamples, or corrected for bias and skewness (BCa)"),
    ] = "percentile"
    baseline: Annotated[
        bool,
        about(
            "lmkit eval also learns simple baselines from data.train, in seconds, and compares the model with them"
        ),
    ] = False
    metrics: Annotated[
        list[str],
        about(
            "further metrics: modules of the evaluate library, by local path, hub id or lmkit_classification, lmkit_tagging, lmkit_translation"
        ),
    ] = field(default_factory=list)


class Logging(Section, frozen=True, kw_only=True):
    every: Annotated[Positive, about("steps between lines of log.jsonl")] = 10
    to: Annotated[list[str], about("any of Accelerate's trackers")] = field(default_factory=list)


class Recipe(Section, frozen=True, kw_only=True):
    """All settings of one run."""

    name: Annotated[Name, about("default: the name of the file")] = ""
    task: Annotated[str, about("mlm, clm, denoise; classification, ner, translation")] = ""
    seed: Annotated[int, Meta(ge=0), about("of the weights, the order and the masks")] = 13
    seeds: Annotated[
        Positive, about("train and evaluate so many runs, with seed, seed + 1, ...")
    ] = 1
    model: Model = field(default_factory=Model)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    data: Data = field(default_factory=Data)
    masking: Annotated[Masking, about("mlm and denoise")] = field(default_factory=Masking)
    classification: Annotated[Classification, about("classification only")] = field(
        default_factory=Classification
    )
    tagging: Annotated[Tagging, about("ner only")] = field(default_factory=Tagging)
    lora: Annotated[Lora | None, about("train low-rank updates only; null: all weights")] = None
    train: Train = field(default_factory=Train)
    hardware: Hardware = field(default_factory=Hardware)
    translation: Annotated[
        Translation, about("translation; of it denoise knows source_language")
    ] = field(default_factory=Translation)
    generation: Generation = field(default_factory=Generation)
    eval: Eval = field(default_factory=Eval)
    logging: Logging = field(default_factory=Logging)
    output: Annotated[str, about("run directory")] = "runs/{name}"
