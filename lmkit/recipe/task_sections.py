"""The sections of a recipe that only some tasks read."""

from typing import Annotated, Literal

from msgspec import Meta

from lmkit.recipe.section import AboveZero, Name, Positive, Section, about


class Masking(Section, frozen=True, kw_only=True):
    share: Annotated[float, Meta(gt=0, lt=1), about("share of the tokens to predict")] = 0.15
    whole_words: Annotated[bool, about("mlm: mask all tokens of a word together")] = False
    span: Annotated[
        float, Meta(ge=1), about("denoise: mean length of what is hidden, in tokens")
    ] = 3.0


class Classification(Section, frozen=True, kw_only=True):
    kind: Annotated[
        Literal["auto", "single_label", "multi_label", "regression"],
        about(
            "auto: by the training rows: lists of labels are multi_label, numbers with decimals regression"
        ),
    ] = "auto"
    separator: Annotated[
        str,
        Meta(min_length=1),
        about("multi_label: between the labels of a cell of a csv or tsv file"),
    ] = ","
    class_weights: Annotated[
        Literal["balanced"] | dict[Name, AboveZero] | None,
        about(
            "weight of each label in the training loss; balanced: inverse to its frequency; labels not named count 1"
        ),
    ] = None
    threshold: Annotated[
        Literal["tuned"] | Annotated[float, Meta(gt=0, lt=1)],
        about(
            "multi_label: probability from which a label is predicted; tuned: the best F1 of each label on the validation rows, 0.5 without"
        ),
    ] = "tuned"


class Tagging(Section, frozen=True, kw_only=True):
    decoding: Annotated[
        Literal["argmax", "viterbi"] | None,
        about(
            "argmax: the most probable tag of each word; viterbi: the best sequence of the row that IOB2 allows; default argmax, with crf viterbi"
        ),
    ] = None
    crf: Annotated[
        bool, about("a linear-chain CRF over the words (needs pip install 'lmkit[crf]')")
    ] = False
    crf_learning_rate: Annotated[
        AboveZero, about("peak for the CRF's transitions, which start from nothing")
    ] = 1e-2
    repair: Annotated[
        bool,
        about(
            "read wrong tag sequences as conlleval does (I- that continues nothing begins an entity), and count them"
        ),
    ] = False


class Translation(Section, frozen=True, kw_only=True):
    source_language: Annotated[
        str | None,
        about(
            "the model's code for it: en_XX (mBART), eng_Latn (NLLB), en (M2M-100); denoise: of the text"
        ),
    ] = None
    target_language: Annotated[
        str | None, about("likewise; of a Marian model with several targets: deu")
    ] = None
    prefix: Annotated[
        str | None, about("text before each source, as T5's 'translate English to German: '")
    ] = None


class Generation(Section, frozen=True, kw_only=True):
    num_beams: Annotated[Positive, about("beams of the search; 1: greedy")] = 4
    max_new_tokens: Annotated[
        Positive, about("longest output in tokens, where the decoder has as many positions")
    ] = 128
    length_penalty: Annotated[float, about("above 1 favours longer outputs")] = 1.0
