"""lmkit beside Trainer on one GPU: the size of GPT-2 and of BERT base, in bf16, with compiled layers.

    python tests/bench/gpu.py [--only gpu-clm,gpu-mlm] [--pairs 3] [--steps 60] [--docs]

Causal LM of GPT-2 (124 M) at length 1,024 and MLM of BERT base (110 M) at length 512, each step 65,536 tokens of
synthetic text without padding on the peer's side (inputs as in tests/bench/inputs.py). The peer is ``transformers.Trainer`` at
its best settings: bf16, fused AdamW, ``torch_compile``, two loader workers, liger-kernel where it is installed, as many rows a pass as fit (a step in one pass, or the least number that
does not run out of memory). lmkit's side is the real command with ``hardware.compile: on``. Both take turns in fresh
processes; the clock runs from the end of step 20, when all is compiled, to the end of the last. The share of the peak is
of the bf16 matrix product of 8192 x 8192 measured in the same run, FLOPs as in tests/bench/speed.py. Without a GPU nothing is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inputs
import speed
from page import machines, publish

WARM_UP = 20
SIDES = ("lmkit", "best")


@dataclass(frozen=True)
class Bench:
    """Args: batch: rows per step. share: of the GPU's peak that lmkit should reach."""

    what: str
    task: str
    batch: int
    length: int
    share: float


BENCHES = {
    "gpu-clm": Bench("causal LM, GPT-2 (124 M), length 1,024", "clm", 64, 1024, 0.50),
    "gpu-mlm": Bench("MLM, BERT base (110 M), length 512", "mlm", 128, 512, 0.45),
}
FASTER = 1.3  # than Trainer, both


def make(folder: Path, *, rows: int = 20_000, small: bool = False) -> None:
    """Texts, tokenizers and models. ``small``: two narrow layers, for tests."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    for name, bench in BENCHES.items():
        if (folder / name / "sizes.json").is_file():
            continue
        role, size = ("decoder", 50_257) if bench.task == "clm" else ("encoder", 30_522)
        words = inputs.Words(size if not small else 1_000, role)
        tokenizer = words.tokenizer(role, bench.length)
        inputs._texts(folder / f"{name}.jsonl", words, rows, seed=6)
        shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        if bench.task == "clm":
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            narrow = {"n_layer": 2, "n_embd": 32, "n_head": 2} if small else {}
            config = transformers.GPT2Config(**shared, **ends, **narrow)
        else:
            narrow = (
                {
                    "num_hidden_layers": 2,
                    "hidden_size": 32,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                }
                if small
                else {}
            )
            config = transformers.BertConfig(**shared, **narrow)
        inputs.save(
            folder / name,
            "GPT2LMHeadModel" if bench.task == "clm" else "BertForMaskedLM",
            config,
            tokenizer,
        )


def recipe_of(name: str, folder: Path, steps: int) -> dict[str, Any]:
    bench = BENCHES[name]
    return {
        "task": bench.task, "model": {"base": str(folder / name)},
        "data": {"train": str(folder / f"{name}.jsonl"), "max_length": bench.length},
        "train": {"max_steps": steps, "batch_size": bench.batch, "learning_rate": 5e-4, "warmup": 0, "weight_decay": 0.0},
        "hardware": {"compile": "on", "checkpoint_every": None}, "logging": {"every": 10},
    }  # fmt: skip


def spec_of(name: str, place: speed.Place, passes: int) -> dict[str, Any]:
    """What tests/bench/peer.py is told: a step in so many passes."""
    bench = BENCHES[name]
    return {
        "bench": bench.task, "side": "best", "inputs": str(place.inputs), "model": str(place.inputs / name), "rows": None,
        "data": str(place.inputs / f"{name}.jsonl"), "out": str(place.root / f"{name}-best.json"), "length": bench.length,
        "batch": bench.batch // passes, "accumulation": passes, "steps": place.steps, "learning_rate": 5e-4, "bf16": True,
        "device": "cuda", "compile": True, "warm_up": WARM_UP, "workers": 2, "liger": find_spec("liger_kernel") is not None,
    }  # fmt: skip


def of_log(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds and tokens after the warm-up, from lmkit's log.

    >>> of_log([{"step": 20, "seconds": 9.0, "tokens": 5}, {"step": 30, "seconds": 11.0, "tokens": 40}])
    {'seconds': 2.0, 'tokens': 40}
    """
    begun = next(line["seconds"] for line in lines if line["step"] == WARM_UP)
    return {
        "seconds": lines[-1]["seconds"] - begun,
        "tokens": sum(line["tokens"] for line in lines if line["step"] > WARM_UP),
    }


def of_peer(found: dict[str, Any], passes: int) -> dict[str, float]:
    """The same from what the peer says: the time of each step, the tokens of each pass."""
    counts = found["counts"][WARM_UP * passes : len(found["times"]) * passes]
    return {
        "seconds": found["times"][-1] - found["times"][WARM_UP - 1],
        "tokens": sum(tokens for tokens, _ in counts),
    }


def run_lmkit(name: str, place: speed.Place) -> dict[str, Any]:
    out, recipe = place.root / f"{name}-lmkit", place.root / f"{name}.yaml"
    shutil.rmtree(out, ignore_errors=True)
    recipe.write_text(json.dumps(recipe_of(name, place.inputs, place.steps)))
    speed.timed(
        ["-m", "lmkit", "pretrain", str(recipe), "-o", str(out)],
        place,
        place.root / f"{name}-lmkit.log",
    )
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    manifest = json.loads((out / "manifest.json").read_text())
    return of_log([line for line in lines if "tokens" in line]) | {
        "memory": manifest["peak_memory_bytes"]
    }


def run_peer(name: str, place: speed.Place, passes: int) -> tuple[dict[str, Any], int]:
    """In so many passes, or in twice as many until memory is enough; and how many these were."""
    spec = spec_of(name, place, passes)
    (place.root / "spec.json").write_text(json.dumps(spec))
    log = place.root / f"{name}-best.log"
    try:
        speed.timed([str(speed.HERE / "peer.py"), str(place.root / "spec.json")], place, log)
    except SystemExit:
        if "out of memory" not in log.read_text() or spec["batch"] == 1:
            raise
        return run_peer(name, place, 2 * passes)
    found = json.loads(Path(spec["out"]).read_text())
    return of_peer(found, passes) | {"memory": found["device_memory"]}, passes


def summary(
    name: str,
    rounds: Sequence[dict[str, dict[str, float]]],
    size: dict[str, Any],
    *,
    length: float,
    peak: float,
) -> dict[str, Any]:
    """The ratio of tokens a second with its range, and each side's share of the peak; ``length``: as ``speed.seen`` counts it."""
    bench = BENCHES[name]
    rated = [
        {side: run | {"rate": run["tokens"] / run["seconds"]} for side, run in pair.items()}
        for pair in rounds
    ]
    found: dict[str, Any] = {"name": name, "what": bench.what, "ratio": speed.ratios(rated, "best")}
    for side in SIDES:
        rate = statistics.median(pair[side]["rate"] for pair in rated)
        flops = speed.useful_flops(size, bench.task, tokens=rate, length=length, training=True)
        memory = statistics.median(pair[side]["memory"] for pair in rated)
        found[side] = {"tokens_per_second": rate, "share_of_peak": flops / peak, "memory": memory}
    return found


def described(machine: dict[str, Any]) -> str:
    peak = f"{machine['peak'] / 1e12:,.0f} TFLOP/s in bf16"
    return f"{machine['gpu']}, {machine['date']}, torch {machine['torch']}, matrix products {peak}"


def section(found: Sequence[dict[str, Any]]) -> str:
    on = {bench["name"]: described(bench["machine"]) for bench in found}
    lines = [
        "| work | against Trainer at its best | target | lmkit | Trainer | share of peak | target | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for bench in found:
        median, least, most = bench["ratio"]
        rates = " | ".join(f"{bench[side]['tokens_per_second']:,.0f} tokens/s" for side in SIDES)
        shares = " / ".join(f"{bench[side]['share_of_peak']:.0%}" for side in SIDES)
        memory = " / ".join(f"{bench[side]['memory'] / 1e9:.1f} GB" for side in SIDES)
        lines.append(
            f"| {bench['what']} | {median:.2f}x ({least:.2f} ... {most:.2f}) | {FASTER:.1f}x | {rates} | {shares} "
            f"| {BENCHES[bench['name']].share:.0%} | {memory} |"
        )
    table = "\n".join(lines)
    return f"""### One GPU

`make bench BENCH=gpu` on {machines(on)}. How each side is set up stands at the head of `tests/bench/gpu.py`.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(BENCHES))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the page from what was measured, and measure nothing",
    )
    given = parser.parse_args()
    place = speed.Place(given.out.resolve(), steps=given.steps, bf16=True)
    if not given.docs:
        import torch

        if not torch.cuda.is_available():
            print("no GPU here: its benches are left out", file=sys.stderr)
            return
        make(place.inputs)
        (place.root / "spec.json").write_text(
            json.dumps({"side": "peak", "device": "cuda", "out": str(place.root / "peak.json")})
        )
        speed.timed(
            [str(speed.HERE / "peer.py"), str(place.root / "spec.json")],
            place,
            place.root / "peak.log",
        )
        peak = json.loads((place.root / "peak.json").read_text())
        machine = {
            "gpu": torch.cuda.get_device_name(),
            "date": speed.today(),
            "torch": peak["torch"],
            "peak": peak["bf16"],
        }
        for name in given.only.split(","):
            rounds, passes = [], 1
            for _ in range(given.pairs):
                ours = run_lmkit(name, place)
                theirs, passes = run_peer(name, place, passes)
                rounds.append({"lmkit": ours, "best": theirs})
            size = json.loads((place.inputs / name / "sizes.json").read_text())
            lengths = speed.lengths_of(
                speed.texts_of(place.inputs / f"{name}.jsonl"), place.inputs / name
            )
            seen = speed.seen(lengths, BENCHES[name].length)
            found = summary(name, rounds, size, length=seen, peak=peak["bf16"]) | {
                "machine": machine
            }
            (place.root / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    done = [
        json.loads(path.read_text())
        for name in BENCHES
        if (path := place.root / f"{name}.json").is_file()
    ]
    if done:
        publish("gpu", section(done), docs=given.docs)


if __name__ == "__main__":
    main()
