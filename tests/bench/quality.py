"""How good fine-tuned models are: every line of "Quality" in docs/benchmarks.md.

    python tests/bench/quality.py --data DIR --model DIR [--only banking77,wnut17] [--variants full,lora,crf] [--seeds 3]

DIR of ``--data`` has a folder for each data set: train, validation and test files. ``--model`` is a BERT-like encoder
(all-MiniLM-L6-v2 for the page). Every run is the real command; what is there already is not run again, so the script
can be stopped and started. It ends with the table, which ``--table`` prints alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LORA: dict[str, Any] = {"lora": {"rank": 16, "alpha": 32, "targets": "all-linear"}, "train": {"learning_rate": 2e-3}}
CRF: dict[str, Any] = {"tagging": {"crf": True}}
TRAINED = {"full": "all weights", "lora": "LoRA", "crf": "all weights and a CRF layer"}


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
            "data": {**files("snips_intent", "jsonl"), "columns": {"label": "label_name"}, "max_length": 128},
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
        {"lora": LORA, "crf": CRF},
    ),
    "wikigold": Line(
        "wikigold",
        "ner",
        ("f1",),
        {"data": {**files("wikigold", "conll"), "max_length": 128}, "train": encoder(8)},
        "54.05 (linear-chain CRF on words)",
        {"lora": LORA, "crf": CRF},
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
        {"data": {**files("stsb_en", "jsonl"), "max_length": 128}, "train": encoder(3, select_best="spearman")},
        "82.03 (cosine of the same model's embeddings, no training)",
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
                        split: {"source": f"{name}/{split}.en", "target": f"{name}/{split}.{language}"}
                        for split in ("train", "validation", "test")
                    },
                    "max_length": 96,
                    "long_text": "head",
                },
                "train": {"epochs": epochs, "batch_size": 64, "learning_rate": 1.5e-3, "warmup": 400, "label_smoothing": 0.1},
            },
            "none",
            {},
        )
        for name, language, epochs in (("tatoeba_en_zh", "zh", 8), ("tanaka_enja_50k", "ja", 4))
    },
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return base | {key: {**base.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()}


def run(line: Line, variant: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train and evaluate one run, unless its result is there."""
    output = arguments.out / f"{line.data}-{variant}-{seed}"
    if (output / "eval" / "test" / "metrics.json").is_file():
        return
    recipe = merged(line.recipe, line.variants.get(variant, {}))
    recipe |= {"task": line.task, "name": output.name, "seed": seed, "output": str(output)}
    if "model" not in recipe:
        recipe["model"] = {"base": str(arguments.model.resolve())}
    file = arguments.out / "recipes" / f"{output.name}.json"  # JSON is YAML
    file.parent.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        if split in recipe["data"]:
            recipe["data"] = recipe["data"] | {split: placed(recipe["data"][split], arguments.data.resolve())}
    yaml = file.with_suffix(".yaml")
    yaml.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    for command in (["finetune", str(yaml), "--resume"], ["eval", str(output)]):
        print("lmkit", *command, flush=True)
        subprocess.run([sys.executable, "-m", "lmkit", *command, "-q"], check=True)


def placed(source: Any, folder: Path) -> Any:
    return {role: placed(name, folder) for role, name in source.items()} if isinstance(source, dict) else str(folder / source)


def table(out: Path) -> str:
    """Markdown: mean and spread (sample standard deviation) over the seeds that are there, in percent."""
    rows = ["| data | task | trained | metric | test | seeds | minutes a run | to beat |", "|---|---|---|---|---|---|---|---|"]
    for name, line in LINES.items():
        for variant, trained in TRAINED.items():
            runs = sorted(out.glob(f"{name}-{variant}-*/eval/test/metrics.json"))
            if not runs:
                continue
            found = [json.loads(path.read_text(encoding="utf-8"))["metrics"] for path in runs]
            minutes = [json.loads((path.parents[2] / "manifest.json").read_text())["seconds"] / 60 for path in runs]
            for metric in line.metrics:
                values = [metrics[metric]["value"] * (1 if line.task == "translation" else 100) for metrics in found]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells = [name, line.task, trained, metric, f"{statistics.mean(values):.2f}{spread}", len(values)]
                rows.append("| " + " | ".join(map(str, [*cells, f"{statistics.mean(minutes):.1f}", line.floor])) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("."))
    parser.add_argument("--model", type=Path, default=Path("."))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", default=",".join(LINES))
    parser.add_argument("--variants", default=",".join(TRAINED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        for seed in range(13, 13 + arguments.seeds):
            for variant in arguments.variants.split(","):
                for name in arguments.only.split(","):
                    if variant in ("full", *LINES[name].variants):
                        run(LINES[name], variant, seed, arguments)
    print(table(arguments.out))


if __name__ == "__main__":
    main()
