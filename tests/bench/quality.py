"""How good fine-tuned models are: every line of "Quality" and "Decoding" in docs/benchmarks.md.

    python tests/bench/quality.py --data DIR --model DIR [--only banking77,wnut17] [--variants full,lora,crf,viterbi] [--seeds 3]
    python tests/bench/quality.py --docs      # the page from what was measured; nothing is run

DIR of ``--data`` has a folder for each data set: train, validation and test files. ``--model`` is a BERT-like encoder
(all-MiniLM-L6-v2 for the page). Every run is the real command, in a directory that is named after its recipe and model too, so
that a run that was stopped goes on only with the same. What it found goes to docs/quality.json, one entry a run with date,
machine and model, and is not run again while its recipe here stays the same: the measurements take many hours on two cores, and
can be stopped, and gone on with elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from page import PAGE, processor, publish

RESULTS = PAGE.with_name("quality.json")
LORA: dict[str, Any] = {
    "lora": {"rank": 16, "alpha": 32, "targets": "all-linear"},
    "train": {"learning_rate": 2e-3},
}
GENTLER = LORA | {
    "train": {"learning_rate": 1e-3}
}  # at 2e-3 a tagger of rare entities gave all words O, with one seed of two
GENTLE = LORA | {"train": {"learning_rate": 5e-4}}  # at 2e-3 a regression gave all rows one score
CRF: dict[str, Any] = {"tagging": {"crf": True}}
VITERBI: dict[str, Any] = {
    "tagging": {"decoding": "viterbi"}
}  # of the run with all weights: nothing is trained
TRAINED = {"full": "all weights", "lora": "LoRA"}
DECODED = {"viterbi": "Viterbi", "crf": "CRF layer"}


@dataclass(frozen=True)
class Line:
    """A data set, what is trained on it, and the metrics the page shows.

    Args:
        floor: the reference without a neural network, or published, that the result should beat.
        variants: what else is trained beside all weights (``full``): the changes of the recipe by name.
    """

    data: str
    task: str
    metrics: tuple[str, ...]
    recipe: dict[str, Any]
    floor: str
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {"lora": LORA})


def files(folder: str, suffix: str) -> dict[str, Any]:
    return {split: f"{folder}/{split}.{suffix}" for split in ("train", "validation", "test")}


def encoder(epochs: float, rate: float = 3e-4, **train: Any) -> dict[str, Any]:
    return {"epochs": epochs, "learning_rate": rate, "batch_size": 32, "warmup": 0.06, **train}


LINES = {
    "banking77": Line(
        "banking77",
        "classification",
        ("accuracy",),
        {
            "data": {
                "train": "banking77/train.jsonl",
                "test": "banking77/test.jsonl",
                "validation_fraction": 0.05,
                "columns": {"label": "label_name"},
                "max_length": 128,
            },
            "train": encoder(4, select_best="accuracy"),
        },
        "89.25 (TF-IDF and a linear model)",
    ),
    "snips_intent": Line(
        "snips_intent",
        "classification",
        ("accuracy",),
        {
            "data": {
                **files("snips_intent", "jsonl"),
                "columns": {"label": "label_name"},
                "max_length": 128,
            },
            "train": encoder(2, select_best="accuracy"),
        },
        "97.29 (TF-IDF and a linear model)",
    ),
    "snips_slots": Line(
        "snips_slots",
        "ner",
        ("f1",),
        {"data": {**files("snips_slots", "conll"), "max_length": 128}, "train": encoder(3)},
        "92.72 (linear-chain CRF on words)",
    ),
    "wnut17": Line(
        "wnut17",
        "ner",
        ("f1",),
        {"data": {**files("wnut17", "conll"), "max_length": 128}, "train": encoder(6)},
        "16.35 (linear-chain CRF on words); 41.1 (plain fine-tuning of the same model)",
        {"lora": GENTLER, "crf": CRF, "viterbi": VITERBI},
    ),
    "wikigold": Line(
        "wikigold",
        "ner",
        ("f1",),
        {"data": {**files("wikigold", "conll"), "max_length": 128}, "train": encoder(8)},
        "54.05 (linear-chain CRF on words)",
        {"lora": LORA, "crf": CRF, "viterbi": VITERBI},
    ),
    "ud_ewt_pos": Line(
        "ud_ewt_pos",
        "ner",
        ("accuracy",),
        {"data": {**files("ud_ewt_pos", "conll"), "max_length": 128}, "train": encoder(2)},
        "94.04 (linear-chain CRF on words)",
    ),
    "stsb_en": Line(
        "stsb_en",
        "classification",
        ("spearman",),
        {
            "data": {**files("stsb_en", "jsonl"), "max_length": 128},
            "train": encoder(6, rate=1e-4, select_best="spearman"),
        },
        "59.33 (boosted trees on overlap features); 77.0, 78.4 (BERT-Small, BERT-Medium, Turc et al. 2019); 82.03 (cosine of the same model's embeddings, no training)",
        {"lora": GENTLE},
    ),
    **{
        name: Line(
            name,
            "translation",
            ("chrf", "bleu"),
            {
                "model": {"preset": "marian-mini"},
                "tokenizer": {"train": {"algorithm": "unigram", "vocab_size": 8000}},
                "data": {
                    **{
                        split: {
                            "source": f"{name}/{split}.en",
                            "target": f"{name}/{split}.{language}",
                        }
                        for split in ("train", "validation", "test")
                    },
                    "max_length": 96,
                    "long_text": "head",
                },
                "train": {
                    "epochs": epochs,
                    "batch_size": 64,
                    "learning_rate": 1.5e-3,
                    "warmup": 400,
                    "label_smoothing": 0.1,
                    "group_by_length": True,
                },
            },
            "none",
            {},
        )
        for name, language, epochs in (("tatoeba_en_zh", "zh", 8), ("tanaka_enja_50k", "ja", 4))
    },
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: {**base.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }


def key_of(line: Line, variant: str) -> str:
    """Of everything that decides the outcome but the seed, so that what an older recipe gave is measured anew."""
    recipe = [line.task, merged(line.recipe, line.variants.get(variant, {}))]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def model_of(line: Line, folder: Path) -> dict[str, str]:
    """The model that a line starts from: its name, and a hash of its configuration and the size of its weights; {} where random.

    Nothing is read of the weights but their size: two models of one configuration whose weights have one size to the byte are
    told apart by their names alone.
    """
    if "model" in line.recipe:
        return {}
    folder = folder.resolve()
    sizes = sorted(
        (file.name, file.stat().st_size)
        for pattern in ("*.safetensors", "*.bin")
        for file in folder.glob(pattern)
    )
    if not (folder / "config.json").is_file():
        sys.exit(f"{folder}: no config.json; --model is the directory of the encoder")
    config = (folder / "config.json").read_bytes()
    identity = hashlib.sha256(config + json.dumps(sizes).encode()).hexdigest()[:12]
    return {"model": f"{folder.name} ({identity})"}


def directory_of(line: Line, variant: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Of a run: where nothing is that another recipe or model gave."""
    decided = [key_of(line, variant), model_of(line, arguments.model)]
    key = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:8]
    folder: Path = arguments.out / f"{line.data}-{variant}-{seed}-{key}"
    return folder


def run(line: Line, variant: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train and evaluate one run, and note what it found; unless that is noted."""
    entry = {"data": line.data, "variant": variant, "seed": seed, "recipe": key_of(line, variant)}
    model = model_of(line, arguments.model)
    if any(
        entry.items() <= found.items() and found.get("model") in (None, model.get("model"))
        for found in measured()
    ):
        return
    output, plain = (directory_of(line, name, seed, arguments) for name in (variant, "full"))
    if variant == "viterbi":
        run(line, "full", seed, arguments)
        if not plain.is_dir():
            print(f"{output.name}: the run with all weights was elsewhere; left out")
            return
        lmkit("eval", str(plain), "tagging.decoding=viterbi", "-o", str(output))
        manifest = json.loads((plain / "manifest.json").read_text(encoding="utf-8"))
    else:
        lmkit("finetune", str(recipe_file(line, variant, seed, output, arguments)), "--resume")
        lmkit("eval", str(output))
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    (found,) = output.glob("**/eval/test/metrics.json")
    metrics = json.loads(found.read_text(encoding="utf-8"))["metrics"]
    entry |= {name: round(metrics[name]["value"], 6) for name in line.metrics}
    if variant in DECODED and plain.is_dir():
        told = lmkit("compare", str(plain), str(output), "--json")
        entry["against_full"] = {
            name: told[name] for name in ("difference", "low", "high", "p_value", "verdict")
        }
    entry |= {"date": manifest["finished"][:10], "machine": processor()} | model
    entry |= {
        "threads": manifest["hardware"]["threads"],
        "precision": manifest["hardware"]["precision"],
    }
    kept = [
        other
        for other in measured()
        if not entry.items() >= {key: other[key] for key in ("data", "variant", "seed")}.items()
    ]
    kept = sorted(
        [*kept, entry],
        key=lambda one: (list(LINES).index(one["data"]), one["variant"], one["seed"]),
    )
    lines = ",\n".join(json.dumps(one) for one in kept)
    RESULTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def lmkit(*command: str) -> Any:
    """Run lmkit; what it printed as JSON."""
    print("lmkit", *command, flush=True)
    wants = "--json" in command
    done = subprocess.run(
        [sys.executable, "-m", "lmkit", *command, "-q"],
        check=True,
        stdout=subprocess.PIPE if wants else None,
    )
    return json.loads(done.stdout) if wants else None


def measured() -> list[dict[str, Any]]:
    """What is noted, of the recipes as they are here."""
    noted = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    return [
        one
        for one in noted
        if one["data"] in LINES and one["recipe"] == key_of(LINES[one["data"]], one["variant"])
    ]


def recipe_file(
    line: Line, variant: str, seed: int, output: Path, arguments: argparse.Namespace
) -> Path:
    recipe = merged(line.recipe, line.variants.get(variant, {}))
    recipe |= {"task": line.task, "name": output.name, "seed": seed, "output": str(output)}
    if "model" not in recipe:
        recipe["model"] = {"base": str(arguments.model.resolve())}
    for split in ("train", "validation", "test"):
        if split in recipe["data"]:
            recipe["data"] = recipe["data"] | {
                split: placed(recipe["data"][split], arguments.data.resolve())
            }
    file: Path = arguments.out / "recipes" / f"{output.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML
    return file


def placed(source: Any, folder: Path) -> Any:
    return (
        {role: placed(name, folder) for role, name in source.items()}
        if isinstance(source, dict)
        else str(folder / source)
    )


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: mean and spread (sample standard deviation) over the seeds that are there."""
    rows = [
        "| data | task | trained | metric | test | seeds | to beat |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, line in LINES.items():
        for variant, trained in TRAINED.items():
            runs = [one for one in found if (one["data"], one["variant"]) == (name, variant)]
            for metric in line.metrics if runs else ():
                cells = [
                    name,
                    line.task,
                    trained,
                    metric,
                    mean_of(runs, metric, line),
                    len(runs),
                    line.floor,
                ]
                rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def mean_of(runs: list[dict[str, Any]], metric: str, line: Line) -> str:
    values = [one[metric] * (1 if line.task == "translation" else 100) for one in runs]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def decoding_table(found: list[dict[str, Any]]) -> str:
    """Markdown: Viterbi and a CRF layer beside plain argmax, each seed's difference with its interval and verdict."""
    rows = [
        "| data | decoding | F1 | argmax F1 | seeds | difference (95 % interval, p) and verdict by seed |",
        "|---|---|---|---|---|---|",
    ]
    for name, line in LINES.items():
        for variant, shown in DECODED.items():
            runs = [
                one
                for one in found
                if (one["data"], one["variant"]) == (name, variant) and "against_full" in one
            ]
            seeds = {one["seed"] for one in runs}
            plain = [
                one
                for one in found
                if (one["data"], one["variant"]) == (name, "full") and one["seed"] in seeds
            ]
            verdicts = []
            for against in (one["against_full"] for one in runs):
                low, high = 100 * against["low"], 100 * against["high"]
                difference = f"{100 * against['difference']:+.2f} ({low:+.2f} ... {high:+.2f}, p = {against['p_value']:.4g})"
                verdicts.append(
                    f"{difference}: {against['verdict'].replace('b is', f'{shown} is').replace('a is', 'argmax is')}"
                )
            if runs:
                cells = [
                    name,
                    shown,
                    mean_of(runs, "f1", line),
                    mean_of(plain, "f1", line),
                    len(runs),
                    "; ".join(verdicts),
                ]
                rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def where(found: list[dict[str, Any]]) -> str:
    """Dates, machines and models of the runs."""
    if not found:
        return "nothing is measured yet."
    dates = sorted({one["date"] for one in found})
    machines = sorted(
        {f"{one['machine']}, {one['precision']}, {one['threads']} thread(s)" for one in found}
    )
    models = sorted({one["model"] for one in found if "model" in one})
    return (
        f"{' to '.join(dict.fromkeys([dates[0], dates[-1]]))}; {'; '.join([*machines, *models])}."
    )


def section() -> str:
    found = measured()
    return f"""{table(found)}

## Decoding of word tags

`tagging.decoding: viterbi` at evaluation alone (nothing is trained; it forbids only sequences that IOB2 forbids), and
`tagging.crf: true` in training, beside argmax of the run with all weights and the same seed: paired bootstrap over the same rows.

{decoding_table(found)}

Both tables: {where(found)}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("."))
    parser.add_argument("--model", type=Path, default=Path("."))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", default=",".join(LINES))
    parser.add_argument("--variants", default=",".join([*TRAINED, *DECODED]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the page from what was measured, and measure nothing",
    )
    arguments = parser.parse_args()
    if not arguments.docs:
        for seed in range(13, 13 + arguments.seeds):
            for variant in arguments.variants.split(","):
                for name in arguments.only.split(","):
                    if variant in ("full", *LINES[name].variants):
                        run(LINES[name], variant, seed, arguments)
    publish("quality", section(), docs=arguments.docs)


if __name__ == "__main__":
    main()
