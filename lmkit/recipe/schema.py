"""What a recipe may say: a frozen tree of typed values, and the only place where defaults live.

No behaviour and no torch in here. The first sentence of each ``Field`` description is what
``docs/recipes.md`` shows (made by ``python docs/make_reference.py``).
"""

import re
from typing import Annotated, Any, Literal

from lmkit.recipe.section import Before, Field, Section

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _as_text(value: Any) -> Any:
    """Columns and labels may be numbers in YAML: ``columns: {text: 0}``, ``labels: [1, 2]``."""
    if isinstance(value, bool):
        return str(value).lower()  # as the rows' labels are written
    return str(value) if isinstance(value, int) else value


def _as_interval(value: Any) -> Any:
    is_minutes = isinstance(value, str) and re.fullmatch(r"(\d+|\d*\.\d+)\s*min", value)
    if (
        not is_minutes
        and value is not None
        and (
            not isinstance(value, (int, float)) or isinstance(value, bool) or value < 1 or value % 1
        )
    ):
        raise ValueError('a number of steps, or minutes as "10min"')
    return value


Name = Annotated[str, Before(_as_text)]
Source = Annotated[str | list[str], Field(description="path, list, glob, directory or hub id")]
Parallel = dict[str, str | list[str]]  # role -> text files, of which line i of each makes row i


class Model(Section):
    base: str | None = Field(None, description="weights from: a run, a directory or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    preset: str | None = Field(
        None, description="random weights: FAMILY-SIZE, for example bert-mini"
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of the Hugging Face config to replace; with model_type and neither base nor preset, the whole config",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class TokenizerTraining(Section):
    algorithm: Literal["wordpiece", "bpe", "unigram"] = Field(
        "wordpiece",
        description="wordpiece and unigram split at words, bpe is byte-level and knows every text",
    )
    vocab_size: Annotated[int, Field(ge=64)] = Field(
        16000, description="tokens, special ones included"
    )
    lowercase: bool = Field(False, description="lower-case all text")
    files: Source | None = Field(None, description="text to learn from, if not data.train")
    joint: bool = Field(
        True,
        description="translation: one vocabulary for both languages; false: one for each (marian)",
    )


class Tokenizer(Section):
    base: str | None = Field(
        None, description="a directory, run or hub id; default: the one that comes with model.base"
    )
    train: TokenizerTraining | None = Field(None, description="learn one from data.train")
    add_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="texts that become one token each; a base's embeddings grow by the mean of their pieces'",
    )


class Data(Section):
    train: Source | Parallel | None = Field(
        None,
        description="rows to learn from: path, list, glob, directory or hub id; or text files by role, line by line: {source: train.en, target: train.de}",
    )
    validation: Source | Parallel | None = Field(
        None, description="rows that choose the best checkpoint"
    )
    validation_fraction: Share | None = Field(
        None, description="share of data.train to set aside, by content hash"
    )
    test: Source | Parallel | None = Field(None, description="rows for lmkit eval")
    columns: dict[str, Name] = Field(
        default_factory=dict,
        description="which column of the file plays which role; a dot leads into an object (translation.en), numbers count columns without a header",
    )
    labels: list[Name] | None = Field(
        None, description="all labels, where the training rows do not show them all"
    )
    document: Literal["line", "paragraph", "file"] = Field(
        "line",
        description="what is one document in a .txt file: a line, lines up to an empty one, or the whole file",
    )
    max_length: Annotated[int, Field(ge=4)] = Field(256, description="tokens a model reads at once")
    overlap: Annotated[float, Field(ge=0, le=0.75)] = Field(
        0.25,
        description="share of max_length that neighbouring windows of a long text have in common",
    )
    long_text: Literal["windows", "head", "head_tail", "error"] = Field(
        "windows",
        description="longer texts: read in overlapping windows; cut after max_length, or in the middle (a quarter of the room for the head), counted and said; or refused. Translation knows head and error, ner no head_tail",
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error",
        description="a row that cannot be used: stop, or leave it out, count it and keep it in rejects.jsonl",
    )
    max_rows: Positive | None = Field(None, description="use the first rows of each split only")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="cross-validation: train and evaluate so many runs, each row of data.train once in test",
    )
    fold: Annotated[str, Field(pattern=r"^[1-9]\d*/[1-9]\d*$")] | None = Field(
        None,
        description="one run of a cross-validation: 2/5 tests on the second fifth of data.train, by content hash",
    )


class Masking(Section):
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="share of the tokens to predict"
    )
    whole_words: bool = Field(False, description="mlm: mask all tokens of a word together")
    span: Annotated[float, Field(ge=1)] = Field(
        3.0, description="denoise: mean length of what is hidden, in tokens"
    )


class Classification(Section):
    kind: Literal["auto", "single_label", "multi_label", "regression"] = Field(
        "auto",
        description="auto: by the training rows: lists of labels are multi_label, numbers with decimals regression",
    )
    separator: str = Field(
        ",",
        min_length=1,
        description="multi_label: between the labels of a cell of a csv or tsv file",
    )
    class_weights: Literal["balanced"] | dict[Name, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="weight of each label in the training loss; balanced: inverse to its frequency; labels not named count 1",
    )
    threshold: Literal["tuned"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        "tuned",
        description="multi_label: probability from which a label is predicted; tuned: the best F1 of each label on the validation rows, 0.5 without",
    )


class Tagging(Section):
    decoding: Literal["argmax", "viterbi"] | None = Field(
        None,
        description="argmax: the most probable tag of each word; viterbi: the best sequence of the row that IOB2 allows; default argmax, with crf viterbi",
    )
    crf: bool = Field(
        False, description="a linear-chain CRF over the words (needs pip install 'lmkit[crf]')"
    )
    crf_learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-2, description="peak for the CRF's transitions, which start from nothing"
    )
    repair: bool = Field(
        False,
        description="read wrong tag sequences as conlleval does (I- that continues nothing begins an entity), and count them",
    )


class Lora(Section):
    rank: Positive = Field(16, description="rank of the update")
    alpha: Annotated[float, Field(gt=0)] = Field(
        32, description="scale: the update is multiplied by alpha / rank"
    )
    dropout: Share = Field(0.05, description="dropout before the update")
    targets: str | Annotated[list[str], Field(min_length=1)] = Field(
        "auto",
        description="auto (PEFT's choice for the architecture, else all-linear), all-linear, one module name or several",
    )
    variant: Literal["lora", "rslora", "dora"] = Field(
        "lora",
        description="kind of update: lora, rslora (scale alpha / sqrt(rank)), dora (magnitude and direction apart)",
    )
    learning_rate_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None, description="LoRA+: learning rate of B over that of A, for example 16; null: the same"
    )
    quantize: Literal["4bit", "8bit"] | None = Field(
        None,
        description="QLoRA: the frozen base in 4 (nf4) or 8 bits; needs a CUDA GPU and lmkit[qlora]",
    )


class Train(Section):
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="passes over the data; default 3 where neither max_steps nor max_minutes is given",
    )
    max_steps: Positive | None = Field(None, description="optimiser steps")
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="stop after so many minutes, the schedule fitted to them"
    )
    batch_size: Positive = Field(
        32,
        description="examples per optimiser step over all devices (pretraining: sequences of max_length tokens)",
    )
    group_by_length: bool = Field(
        False,
        description="examples of alike length make a step: less padding in translation, whose texts do not share rows, and steps that are less alike",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="peak of the schedule")
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        "linear", description="shape of the learning rate after warm-up"
    )
    warmup: Annotated[float, Field(ge=0)] = Field(
        0.06, description="share of the steps if below 1, else a number of steps"
    )
    optimizer: Literal["adamw", "adafactor", "muon", "adamw8bit", "schedule_free"] = Field(
        "adamw",
        description="adamw; adafactor: next to no state; muon: for the layers' matrices, adamw for the rest; adamw8bit: a quarter of the state (lmkit[adamw8bit]); schedule_free: AdamW that averages instead of decaying its rate (lmkit[schedule_free])",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="not for norms and biases"
    )
    decay_embeddings: bool = Field(True, description="weight decay for embeddings, too")
    beta1: Share = Field(0.9, description="AdamW's; not Adafactor's or Muon's")
    beta2: Share = Field(0.999, description="AdamW's; not Adafactor's or Muon's")
    epsilon: Annotated[float, Field(gt=0)] = Field(
        1e-8, description="AdamW's; not Adafactor's or Muon's"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="evaluate and keep a moving average of the weights with this decay, for example 0.999 (less in the first steps); null: off",
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="gradients are scaled down to this norm; null: never"
    )
    on_spike: Literal["skip", "stop"] | None = Field(
        None,
        description="a gradient norm above spike_factor times the median of the last 100: leave the step out, or stop; null: go on",
    )
    spike_factor: Annotated[float, Field(gt=1)] = Field(
        10.0, description="from which share of the median on a norm is a spike"
    )
    label_smoothing: Share = Field(
        0.0, description="share of the target probability that is spread over all classes"
    )
    eval_every: Annotated[float, Field(gt=0)] = Field(
        1.0, description="share of an epoch if at most 1, else a number of steps"
    )
    select_best: str | None = Field(
        None,
        description="metric that chooses the checkpoint kept as the model; default by task; 'last' keeps the last",
    )
    early_stopping: Positive | None = Field(
        None, description="evaluations without improvement before stopping; null: off"
    )
    dropout: Share | None = Field(
        None, description="all dropout rates of the model; null: the model's own"
    )
    average_checkpoints: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="the model is the mean of the weights at the last so many evaluations, up to the best one; null: off",
    )
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="learning rate of each layer over that of the layer above; the head has the full one; null: off",
    )
    freeze_embeddings: bool = Field(False, description="leave the embeddings as they are")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="leave the first n layers as they are, of the encoder and of the decoder"
    )


class Hardware(Section):
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the chip computes it natively, else fp32"
    )
    micro_batch_tokens: Positive | Literal["auto"] = Field(
        "auto",
        description="tokens per forward pass on one device; auto: by trying on a GPU, 4096 on a CPU; halved where memory ends",
    )
    processes: Positive | Literal["auto"] = Field(
        "auto", description="auto: one per GPU, one without"
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="processes that prepare batches beside each training process; auto: none, or one or two where the first steps show that it waits for them and there are more than two cores for it",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute activations again in the backward pass: less memory, more time, the same gradients",
    )
    packing: Literal["auto", "off"] = Field(
        "auto",
        description="short documents share a row where the model keeps them apart exactly; off: one per row",
    )
    attention: Literal["auto", "sdpa", "flash"] = Field(
        "auto",
        description="of rows that texts share: sdpa, with a mask; flash: FlashAttention, each text alone, on a GPU in bf16 or fp16; auto: flash where it is shown to compute the same on this model",
    )
    kernels: Literal["auto", "torch", "liger"] = Field(
        "auto",
        description="of norms and gated layers: torch, or liger on a GPU (lmkit[liger]); auto: liger where it is installed and shown to compute the same on this model",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compiled layers (torch.compile) in training; auto: where a trial at the start of a long run shows that they are faster",
    )
    checkpoint_every: Annotated[str | Positive | None, Before(_as_interval)] = Field(
        "10min",
        description='steps, or minutes as "10min"; null: only where an evaluation improves and at the end',
    )
    keep_checkpoints: Positive = Field(
        2, description="how many of the newest stay; the best stays besides"
    )


class Translation(Section):
    source_language: str | None = Field(
        None,
        description="the model's code for it: en_XX (mBART), eng_Latn (NLLB), en (M2M-100); denoise: of the text",
    )
    target_language: str | None = Field(
        None, description="likewise; of a Marian model with several targets: deu"
    )
    prefix: str | None = Field(
        None, description="text before each source, as T5's 'translate English to German: '"
    )


class Generation(Section):
    num_beams: Positive = Field(4, description="beams of the search; 1: greedy")
    max_new_tokens: Positive = Field(
        128, description="longest output in tokens, where the decoder has as many positions"
    )
    length_penalty: float = Field(1.0, description="above 1 favours longer outputs")


class Eval(Section):
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="level of the intervals"
    )
    resamples: Annotated[int, Field(ge=0)] = Field(
        1000, description="bootstrap resamples; 0: no intervals"
    )
    slices: list[Name] = Field(
        default_factory=lambda: ["length"],
        description="metrics on parts of the data: length, unknown, fragmentation, label, or any column of the file",
    )
    temperature: bool = Field(
        False,
        description="classification: fit a temperature on the validation split, and report calibration before and after",
    )
    stride: Positive | None = Field(
        None,
        description="clm: windows slide by so many tokens and score only those, so each has context; null: blocks",
    )
    pseudo_perplexity: bool = Field(
        False, description="mlm: mask every token once, one at a time; a forward pass per token"
    )
    interval: Literal["percentile", "bca"] = Field(
        "percentile",
        description="bounds: quantiles of the resamples, or corrected for bias and skewness (BCa)",
    )
    baseline: bool = Field(
        False,
        description="lmkit eval also learns simple baselines from data.train, in seconds, and compares the model with them",
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
    task: str = Field("", description="mlm, clm, denoise; classification, ner, translation")
    seed: Annotated[int, Field(ge=0)] = Field(
        13, description="of the weights, the order and the masks"
    )
    seeds: Positive = Field(
        1, description="train and evaluate so many runs, with seed, seed + 1, ..."
    )
    model: Model = Field(default_factory=Model)
    tokenizer: Tokenizer = Field(default_factory=Tokenizer)
    data: Data = Field(default_factory=Data)
    masking: Masking = Field(default_factory=Masking, description="mlm and denoise")
    classification: Classification = Field(
        default_factory=Classification, description="classification only"
    )
    tagging: Tagging = Field(default_factory=Tagging, description="ner only")
    lora: Lora | None = Field(None, description="train low-rank updates only; null: all weights")
    train: Train = Field(default_factory=Train)
    hardware: Hardware = Field(default_factory=Hardware)
    translation: Translation = Field(
        default_factory=Translation, description="translation; of it denoise knows source_language"
    )
    generation: Generation = Field(default_factory=Generation)
    eval: Eval = Field(default_factory=Eval)
    logging: Logging = Field(default_factory=Logging)
    output: str = Field("runs/{name}", description="run directory")
