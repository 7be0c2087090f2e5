"""From a recipe to a task, its tokens and a model: all that has to be there before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from filelock import FileLock

from lmkit import console
from lmkit.data.check.columns import Roles
from lmkit.data.encode import Encoded, encode, say_left_out
from lmkit.data.readers import ReadOptions
from lmkit.data.reading import load_rows
from lmkit.data.row import hash_of
from lmkit.data.rows import Rows
from lmkit.data.sources import Source
from lmkit.data.splits import Splits, cache_folder
from lmkit.errors import RecipeError
from lmkit.models.build import architecture
from lmkit.models.source import ModelSource, find_model
from lmkit.models.tokenizer import (
    add_tokens,
    for_words,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
)
from lmkit.models.tokenizer_training import Role, train_tokenizer
from lmkit.recipe.schema import Recipe, TokenizerTraining
from lmkit.run import atomic_directory
from lmkit.tasks.base import Problem, Task
from lmkit.tasks.fields import Field
from lmkit.tasks.languages import TARGET
from lmkit.tasks.registry import problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FORMAT = (
    1  # of the tokenizers in the cache: raise it with whatever changes what the same texts teach
)


@dataclass(frozen=True)
class Prepared:
    """A task with its data as tokens.

    Args:
        source: where ``model.base`` was found, if the recipe has one.
        encoded: tokens by split.
    """

    task: Task
    source: ModelSource | None
    splits: Splits
    encoded: dict[str, Encoded]


def prepare(
    recipe: Recipe, splits: Splits, source: ModelSource | None, *, pack: bool = True
) -> Prepared:
    """Load or learn the tokenizer, make the task, encode every split.

    Args:
        pack: pretraining examples of the training split are filled up to ``data.max_length``.

    Raises:
        RecipeError, ModelError, DataError: whatever can be known before a model is built.
    """
    tokenizer = build_tokenizer(recipe, splits, source)
    task = problem(recipe.task).task(recipe, splits.facts, tokenizer)
    key = tokenizer_hash(tokenizer)
    encoded = {
        split: encode(rows, task, key, pack=pack and task.problem.packs and split == "train")
        for split, rows in splits.rows.items()
    }
    rows = {split: pieces.rows for split, pieces in encoded.items()}
    for split, pieces in encoded.items():
        say_left_out(pieces, recipe.data, split=split)
    return Prepared(task, source, replace(splits, rows=rows), encoded)


def build_tokenizer(
    recipe: Recipe, splits: Splits, source: ModelSource | None
) -> PreTrainedTokenizerBase:
    """Build the tokenizer a recipe asks for: learned from its data, named, or the base model's own; with ``add_tokens``."""
    tokenizer = _tokenizer(recipe, splits, source)
    if recipe.tokenizer.add_tokens:
        add_tokens(tokenizer, recipe.tokenizer.add_tokens)
    return tokenizer


def _tokenizer(
    recipe: Recipe, splits: Splits, source: ModelSource | None
) -> PreTrainedTokenizerBase:
    options, solved = recipe.tokenizer, problem(recipe.task)
    if options.train is not None and options.base is not None:
        raise RecipeError(
            "given beside tokenizer.train", place="tokenizer.base", remedy="keep one of the two"
        )
    kind, is_encoder_decoder = architecture(recipe, source)
    usual = "decoder" if _is_decoder(solved, kind) else "encoder"
    if is_encoder_decoder:
        usual = "encoder-decoder"
    role = cast("Role", solved.tokenizer_role(kind, usual))
    if options.train is not None:
        if source is not None:
            raise RecipeError(
                "a new tokenizer does not fit the weights of model.base",
                place="tokenizer.train",
                remedy="leave it out, or start from random weights with model.preset",
            )
        return _learned_tokenizer(recipe, splits, options.train, role)
    if options.base is not None:
        location = (
            find_model(options.base, key="tokenizer.base").location
            if not _has_tokenizer(options.base)
            else options.base
        )
    elif source is not None:
        location = source.location
    else:
        raise RecipeError(
            "a model with random weights has no tokenizer",
            place="tokenizer",
            remedy="tokenizer.train={algorithm: bpe, vocab_size: 8000} learns one from data.train, or give tokenizer.base",
        )
    revision = recipe.model.revision if options.base is None else None  # that of model.base alone
    trust = recipe.model.trust_remote_code
    slow = solved.architecture == "encoder-decoder"
    tokenizer = load_tokenizer(location, revision=revision, trust_remote_code=trust, slow=slow)
    words = any(field.kind == "words" for field in solved.fields(recipe))
    return (
        for_words(tokenizer, location, revision=revision, trust_remote_code=trust)
        if words
        else tokenizer
    )


def _learned_tokenizer(
    recipe: Recipe, splits: Splits, options: TokenizerTraining, role: Role
) -> PreTrainedTokenizerBase:
    """Learn a tokenizer once and keep it in the cache: every process, and a run that is resumed, has the same."""
    rows = _tokenizer_rows(recipe, options) if options.files is not None else splits.rows["train"]
    fields = problem(recipe.task).fields(recipe, splits.facts)
    names = [(field.name, field.kind) for field in fields if field.kind in ("text", "words")]
    names = [("text", "text")] if options.files is not None else names

    def texts(roles: Sequence[tuple[str, str]]) -> Iterator[str]:
        for row in rows:
            for name, kind in roles:
                yield " ".join(row[name]) if kind == "words" else row[name]

    def learn(roles: Sequence[tuple[str, str]]) -> PreTrainedTokenizerBase:
        return train_tokenizer(
            lambda: texts(roles), options, role=role, max_length=recipe.data.max_length
        )

    chosen = options.model_dump(exclude={"files"})
    key = hash_of([TOKENIZER_FORMAT, chosen, role, recipe.data.max_length, names, rows.fingerprint])
    folder = cache_folder() / f"tokenizer-{key[:32]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            console.say(f"tokenizer: learning {options.vocab_size} {options.algorithm} pieces")
            with atomic_directory(folder) as aside:
                tokenizer = learn(names if options.joint else names[:1])
                if not options.joint:
                    setattr(tokenizer, TARGET, learn(names[1:]))
                save_tokenizer(tokenizer, aside)
    return load_tokenizer(str(folder))


def _has_tokenizer(place: str) -> bool:
    return any(
        (Path(place).expanduser() / name).is_file()
        for name in ("tokenizer.json", "tokenizer_config.json")
    )


def _is_decoder(solved: Problem, kind: str) -> bool:
    """Return whether texts of this architecture are read from left to right, without marks around them."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    return solved.architecture == "decoder" or (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _tokenizer_rows(recipe: Recipe, options: TokenizerTraining) -> Rows:
    """Load the rows of ``tokenizer.train.files``."""
    assert options.files is not None
    source = Source(options.files, "tokenizer.train.files", "train")
    roles = Roles([Field("text", "text", aliases=("content", "sentence"))])
    reading = ReadOptions(recipe.data.on_bad_row, recipe.data.document)
    return load_rows(source, roles, reading, cache_folder())
