"""Language codes of each family of translation models, on tiny random ones: trained, saved, and used by plain transformers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lmkit.data.sources import SAMPLES
from lmkit.errors import ModelError, RecipeError
from lmkit.models.tokenizer import load_tokenizer, num_tokens, tokenizer_hash
from lmkit.tasks.languages import language_codes

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses.")

SIDES = {
    f"{side}_{key}": size
    for side in ("encoder", "decoder")
    for key, size in [("layers", 1), ("attention_heads", 2), ("ffn_dim", 64)]
}
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
TARGETS = [">>deu<<", ">>spa<<"]
CODES = {
    "mbart50": {"source_language": "en_XX", "target_language": "es_XX"},
    "mbart25": {"source_language": "en_XX", "target_language": "es_XX"},
    "nllb": {"source_language": "eng_Latn", "target_language": "spa_Latn"},
    "m2m100": {"source_language": "en", "target_language": "es"},
    "marian": {"target_language": "spa"},
    "t5": {"prefix": "translate English to Spanish: "},
}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small sentencepiece model of shipped sentences: its folder and its (piece, score) pairs without special ones."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    with gzip.open(SAMPLES / "tatoeba_en_es/train.tsv.gz", "rt", encoding="utf-8") as file:
        (folder / "text.txt").write_text(
            "".join(next(file).replace("\t", "\n") for _ in range(500)), encoding="utf-8"
        )
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spm"),
        vocab_size=300,
        character_coverage=1.0,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    scored = [(model.id_to_piece(i), model.get_score(i)) for i in range(3, model.get_piece_size())]
    return folder, scored


@pytest.fixture(scope="module")
def base(pieces: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The directory of a tiny random model of a family, with a tokenizer of the family's own class."""
    folder, scored = pieces
    made: dict[str, str] = {}

    def vocabulary(*more: str) -> str:
        path = folder / f"vocabulary-{len(more)}.json"
        path.write_text(
            json.dumps(
                {piece: i for i, piece in enumerate([*FAIRSEQ, *(p for p, _ in scored), *more])}
            )
        )
        return str(path)

    def tokenizer_of(family: str) -> Any:
        spm = str(folder / "spm.model")
        special = [(token, 0.0) for token in FAIRSEQ]
        if family == "mbart50":
            return transformers.MBart50Tokenizer(
                vocab=[("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *scored]
            )
        if family == "mbart25":
            return transformers.MBartTokenizer(vocab=special + scored)
        if family == "nllb":
            from tokenizers import Tokenizer, models, pre_tokenizers, trainers

            learned = Tokenizer(models.BPE(unk_token="<unk>"))
            learned.pre_tokenizer = pre_tokenizers.Metaspace()
            learned.train(
                [str(folder / "text.txt")],
                trainers.BpeTrainer(vocab_size=400, special_tokens=FAIRSEQ, show_progress=False),
            )
            model = json.loads(learned.to_str())["model"]
            return transformers.NllbTokenizer(
                vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]
            )
        if family == "m2m100":
            return transformers.M2M100Tokenizer(vocabulary(), spm)
        if family in ("marian", "marian-pair"):
            more = TARGETS if family == "marian" else []
            return transformers.MarianTokenizer(
                source_spm=spm, target_spm=spm, vocab=vocabulary(*more)
            )
        return transformers.T5Tokenizer(
            vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *scored], extra_ids=0
        )

    def make(family: str) -> str:
        if family in made:
            return made[family]
        torch.manual_seed(5)
        tokenizer = tokenizer_of(family)
        size = num_tokens(tokenizer)
        if family == "t5":
            shape: dict[str, Any] = {
                "d_model": 32,
                "d_kv": 16,
                "d_ff": 64,
                "num_layers": 1,
                "num_heads": 2,
            }
            model: Any = transformers.T5ForConditionalGeneration(
                transformers.T5Config(
                    vocab_size=size,
                    decoder_start_token_id=0,
                    pad_token_id=0,
                    eos_token_id=1,
                    **shape,
                )
            )
        else:
            config, cls = {
                "mb": (transformers.MBartConfig, transformers.MBartForConditionalGeneration),
                "ma": (transformers.MarianConfig, transformers.MarianMTModel),
            }.get(
                family[:2], (transformers.M2M100Config, transformers.M2M100ForConditionalGeneration)
            )
            start = {"mbart25": None, "marian": 1, "marian-pair": 1}.get(family, 2)
            shape = {
                "d_model": 32,
                "max_position_embeddings": 128,
                "vocab_size": size,
                "decoder_start_token_id": start,
            }
            extra = (
                {"decoder_vocab_size": size, "forced_eos_token_id": 2} if "marian" in family else {}
            )
            model = cls(config(**shape, **SIDES, **IDS, **extra))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.5)
        path = tmp_path_factory.mktemp(family)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        made[family] = str(path)
        return made[family]

    return make


def recipe_of(tiny: Any, place: str, translation: dict[str, str], **sections: Any) -> Any:
    # relative positions alone let permutations of a random T5's loops tie exactly, and which beam is first is chance then
    generation = {"num_beams": 1 if "t5" in place else 2, "max_new_tokens": 12}
    return tiny.recipe(
        "translation", base=place, translation=translation, generation=generation, **sections
    )


@pytest.mark.parametrize("family", CODES)
def test_what_is_trained_is_what_plain_transformers_writes(
    tiny: Any, base: Any, family: str
) -> None:
    recipe = recipe_of(tiny, base(family), CODES[family], train={"max_steps": 3})
    run = tiny.fit(recipe)  # proves its reload, too

    lines = (
        (run.eval_folder("validation") / "predictions.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    records = [json.loads(line) for line in lines]
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.model).eval()
    prefix = {"t5": CODES["t5"].get("prefix"), "marian": ">>spa<< "}.get(family, "")
    said = set()
    for record in records:
        with torch.inference_mode():
            (ids,) = model.generate(
                **tokenizer([f"{prefix}{record['source']}"], return_tensors="pt")
            ).tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True).removeprefix("__es__").strip()
        assert text == record["prediction"]
        said.add(text)
        assert record["truncated"] == ((1 if family == "t5" else 2) not in ids[1:])
    assert len(said) > 1
    described = json.loads((run.model / "lmkit.json").read_text())["recipe"]["translation"]
    assert {key: value for key, value in described.items() if value} == CODES[family]


@pytest.mark.parametrize("family", ["mbart50", "mbart25", "nllb", "m2m100"])
def test_the_decoder_reads_in_training_what_it_starts_with_in_generation(
    tiny: Any, base: Any, family: str
) -> None:
    recipe = recipe_of(tiny, base(family), CODES[family])
    task, model = tiny.prepared(recipe).task, tiny.model(recipe)
    columns = task.encode(
        [
            {"id": 0, "source": "I know.", "target": "Lo sé."},
            {"id": 1, "source": "No.", "target": "No."},
        ]
    )
    source, target = (
        task.tokenizer.convert_tokens_to_ids(language_codes(task.tokenizer)[code])
        for code in CODES[family].values()
    )
    assert [source in ids for ids in columns["input_ids"]] == [True, True]
    assert [target in ids for ids in columns["labels"]] == [True, True]
    from lmkit.tasks.generation import shift

    pieces = [{name: values[i] for name, values in columns.items()} for i in range(2)]
    batch = task.collate([[piece] for piece in pieces])
    read = shift(model, batch.labels)
    assert read[0].tolist()[1:] == columns["labels"][0][: read.shape[1] - 1]
    with torch.inference_mode():
        written = model.generate(
            input_ids=batch.inputs["input_ids"], attention_mask=batch.inputs["attention_mask"]
        )
    start = 1 if family == "mbart25" else 2
    assert (
        written[:, :start].tolist()
        == read[:, :start].tolist()
        == [[target] if start == 1 else [2, target]] * 2
    )


@pytest.mark.parametrize("family", ["mbart50", "mbart25"])
def test_denoising_marks_both_sides_with_the_language_of_the_text(
    tiny: Any, base: Any, family: str
) -> None:
    run = tiny.fit(
        tiny.recipe("denoise", base=base(family), translation={"source_language": "es_XX"})
    )
    prepared = tiny.prepared(
        tiny.recipe("denoise", base=base(family), translation={"source_language": "es_XX"})
    )
    batch = prepared.task.collate([prepared.encoded["train"].example(i) for i in range(3)])
    code, place = (
        prepared.task.tokenizer.convert_tokens_to_ids("es_XX"),
        0 if family == "mbart50" else -1,
    )
    for ids in (*batch.inputs["input_ids"].tolist(), *batch.labels.tolist()):
        assert [token for token in ids if token not in (1, -100)][place] == code
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.model).eval()
    with torch.inference_mode():
        theirs = model(**batch.inputs, labels=batch.labels).loss.item()
        assert prepared.task.loss(model, batch).item() / batch.items == pytest.approx(
            theirs, rel=1e-5
        )
    (answer,) = prepared.task.problem.responder(prepared.task).respond(
        model, prepared.task.problem.rows(["Lo <mask>."], prepared.task.facts)
    )
    assert len(answer["fills"]) == 1


def test_denoising_a_model_of_many_languages_needs_to_know_which(tiny: Any, base: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"translation\.source_language: this model reads many languages"
    ):
        tiny.prepared(tiny.recipe("denoise", base=base("mbart50")))


def test_the_prefix_counts_as_tokens_of_the_source(tiny: Any, base: Any) -> None:
    row = {"id": 0, "source": "I know.", "target": "Lo sé."}
    plain, with_prefix = (
        tiny.prepared(recipe_of(tiny, base("t5"), options)).task.encode([row])
        for options in ({}, CODES["t5"])
    )
    added = len(with_prefix["input_ids"][0]) - len(plain["input_ids"][0])
    assert added > 5
    assert with_prefix["length"][0] == plain["length"][0] + added


def test_a_cut_source_keeps_both_end_marks_of_mbart25(tiny: Any, base: Any) -> None:
    recipe = recipe_of(
        tiny, base("mbart25"), CODES["mbart25"], data={"long_text": "head", "max_length": 8}
    )
    task = tiny.prepared(recipe).task
    (ids,) = task.encode([{"id": 0, "source": "I know about you two.", "target": "No."}])[
        "input_ids"
    ]
    assert len(ids) == 8
    assert ids[-2:] == [2, task.tokenizer.convert_tokens_to_ids("en_XX")]


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "nllb",
            {"source_language": "eng_Latn"},
            "target_language: this model reads and writes many languages",
        ),
        (
            "m2m100",
            {"target_language": "es"},
            "source_language: this model reads and writes many languages",
        ),
        (
            "nllb",
            {"source_language": "eng_Latn", "target_language": "spa_Lat"},
            "no language 'spa_Lat'\n  did you mean 'spa_Latn'",
        ),
        (
            "mbart50",
            {"source_language": "en", "target_language": "es_XX"},
            "source_language: the tokenizer has no language 'en'",
        ),
        (
            "marian",
            {},
            "target_language: this model writes several languages, and has to be told which\n  one of: deu, spa",
        ),
        ("marian", {"target_language": "spq"}, "no language 'spq'\n  did you mean 'spa'"),
        (
            "marian",
            {"target_language": "spa", "source_language": "eng"},
            "source_language: has no effect",
        ),
        (
            "marian",
            {"target_language": "spa", "prefix": "x"},
            "prefix: given beside translation.target_language",
        ),
        (
            "marian-pair",
            {"target_language": "spa"},
            "target_language: has no effect: the tokenizer has no language codes",
        ),
        ("t5", {"target_language": "es"}, "target_language: has no effect"),
    ],
)
def test_codes_are_checked_before_training(
    tiny: Any, base: Any, family: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        tiny.prepared(recipe_of(tiny, base(family), options))
    assert message in str(error.value)


def test_rows_may_carry_their_own_targets(tiny: Any, base: Any) -> None:
    task = tiny.prepared(recipe_of(tiny, base("marian"), {"prefix": ""})).task
    (ids,) = task.encode([{"id": 0, "source": ">>deu<< I know.", "target": "x"}])["input_ids"]
    assert ids[0] == task.tokenizer.convert_tokens_to_ids(">>deu<<")


def test_a_pair_needs_no_codes(tiny: Any, base: Any) -> None:
    assert tiny.prepared(recipe_of(tiny, base("marian-pair"), {})).task.languages.prefix == ""


def test_slow_tokenizers_are_for_translation_only(base: Any) -> None:
    with pytest.raises(ModelError, match="a slow one"):
        load_tokenizer(base("m2m100"))
    tokenizer = load_tokenizer(base("m2m100"), slow=True)
    assert not tokenizer.is_fast
    assert tokenizer_hash(tokenizer) == tokenizer_hash(load_tokenizer(base("m2m100"), slow=True))
    assert tokenizer_hash(tokenizer) != tokenizer_hash(load_tokenizer(base("marian"), slow=True))


def test_other_languages_are_other_tokens_in_the_cache(tiny: Any, base: Any) -> None:
    codes = CODES["m2m100"]
    first = tiny.prepared(recipe_of(tiny, base("m2m100"), codes)).encoded["train"].pieces[0]
    second = (
        tiny.prepared(recipe_of(tiny, base("m2m100"), codes | {"target_language": "fr"}))
        .encoded["train"]
        .pieces[0]
    )
    assert first["input_ids"] == second["input_ids"]
    assert first["labels"][0] != second["labels"][0]
    assert first["labels"][1:] == second["labels"][1:]


def test_an_adapter_tells_generation_the_language(tiny: Any, base: Any) -> None:
    recipe = recipe_of(tiny, base("nllb"), CODES["nllb"], lora={"rank": 4})
    run = tiny.fit(recipe)
    written = json.loads(Path(run.model, "generation_config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model)
    assert written["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("spa_Latn")
    assert tokenizer.src_lang == "eng_Latn"
