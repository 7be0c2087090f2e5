"""How long lmkit takes to the validation loss that Trainer reaches in ten minutes.

    python tests/bench/time_to_loss.py [--only mlm,clm] [--minutes 10] [--docs]

Moby-Dick as it ships, in texts of exactly so many pieces that run_mlm's and run_clm's blocks are lmkit's examples: 128 and 256
tokens with the marks, no padding on either side (a word that does not fit at a text's end is left out). Both sides start from the
same weights, with the same batch, dropout, optimizer and peak rate, which falls linearly to zero over a side's own steps.

The peer, ``transformers.Trainer`` in bf16 where the chip has it, takes as many steps as it is measured to take in
``--minutes``; then ``lmkit eval`` measures the loss of the model it saved. lmkit's steps are those of half of the peer's time,
its validation loss is measured 25 times on the way, and the first that is no greater than the peer's ends the clock; where
there is none lmkit starts anew with steps for all of the peer's time. Clocks begin with the first step; evaluations are
not on lmkit's clock, and the peer makes none. Both losses are of lmkit's evaluation: the same texts, the same masks, every
token that counts weighing the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import inputs
import speed
from page import machines, publish

SAMPLES = Path(__file__).parents[2] / "lmkit" / "samples" / "mobydick_en"
VOCABULARY = 8_000
WHAT = {"mlm": "MLM, 4 x 256 BERT, length 128", "clm": "causal LM, 4 x 256 Llama, length 256"}
TARGET = 0.5
EVALUATIONS = 25
SHARES = (0.5, 1.0)  # of the peer's time, that lmkit's steps are chosen for


def texts(words: Iterable[tuple[str, int]], size: int) -> Iterator[str]:
    """Texts of exactly ``size`` pieces of (word, pieces); a word that does not fit is left out, and so is the rest at the end.

    >>> list(texts([("a", 2), ("b", 2), ("c", 1), ("d", 3)], 3))
    ['a c', 'd']
    """
    text: list[str] = []
    room = size
    for word, pieces in words:
        if pieces <= room:
            text.append(word)
            room -= pieces
        if not room:
            yield " ".join(text)
            text, room = [], size


def curve(lines: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Seconds of training, evaluations left out, and the validation loss at each evaluation of a log with a line a step.

    >>> curve([{"tokens": 10, "tokens_per_second": 5.0}, {"validation_loss": 7.5}, {"tokens": 10, "tokens_per_second": 10.0}])
    [(2.0, 7.5)]
    """
    seconds, found = 0.0, []
    for line in lines:
        if "tokens" in line:
            seconds += line["tokens"] / line["tokens_per_second"]
        if "validation_loss" in line:
            found.append((seconds, line["validation_loss"]))
    return found


def reached(points: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Seconds at the first evaluation with no greater loss.

    >>> reached([(1.0, 7.0), (2.0, 5.0), (3.0, 6.0)], 5.5), reached([(1.0, 7.0)], 5.5)
    (2.0, None)
    """
    return next((seconds for seconds, value in points if value <= loss), None)


def make(folder: Path) -> None:
    """The texts, tokenizers and models, where they are not there yet."""
    if (folder / "time-clm" / "sizes.json").is_file():
        return
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        split: gzip.decompress((SAMPLES / f"{split}.txt.gz").read_bytes()).decode()
        for split in ("train", "validation")
    }
    for task in WHAT:
        special = (
            inputs.SPECIAL["encoder"]
            if task == "mlm"
            else {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"}
        )
        fast = Tokenizer(models.WordPiece(unk_token=special["unk_token"]))
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        learn = trainers.WordPieceTrainer(
            vocab_size=VOCABULARY, special_tokens=list(special.values()), show_progress=False
        )
        fast.train_from_iterator(pages["train"].splitlines(), learn)
        form = "[CLS] $A [SEP]" if task == "mlm" else "<s> $A"
        marks = [(mark, fast.token_to_id(mark)) for mark in form.split() if mark != "$A"]
        for split, page in pages.items():
            words = page.split()
            counts = [len(encoding.ids) for encoding in fast.encode_batch(words)]
            size = speed.BENCHES[task].length - len(marks)
            rows = [{"text": text} for text in texts(zip(words, counts, strict=True), size)]
            inputs._write(folder / f"time-{task}-{split}.jsonl", rows)
        fast.post_processor = processors.TemplateProcessing(single=form, special_tokens=marks)
        names = (
            ["input_ids", "token_type_ids", "attention_mask"]
            if task == "mlm"
            else ["input_ids", "attention_mask"]
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=fast, model_input_names=names, **special
        )
        shared = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            **inputs.MINI,
        }
        if task == "mlm":
            config = transformers.BertConfig(intermediate_size=1024, **shared)
        else:
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": None}
            config = transformers.LlamaConfig(**inputs.LLAMA, **shared, **ends)
        inputs.save(
            folder / f"time-{task}",
            "BertForMaskedLM" if task == "mlm" else "LlamaForCausalLM",
            config,
            tokenizer,
        )


def recipe_of(task: str, place: speed.Place, *, evaluations: int = 0) -> dict[str, Any]:
    """lmkit's recipe of so many steps, with the rate and the batch of the speed bench."""
    recipe = speed.recipe_of(task, place)
    recipe["model"] = {"base": str(place.inputs / f"time-{task}")}
    files = {
        split: str(place.inputs / f"time-{task}-{split}.jsonl") for split in ("train", "validation")
    }
    recipe["data"] = {"max_length": speed.BENCHES[task].length, "train": files["train"]}
    if evaluations:
        recipe["data"]["validation"] = files["validation"]
        recipe["train"] |= {"eval_every": max(2, place.steps // evaluations), "select_best": "loss"}
        recipe["eval"] = {"resamples": 0}
    return recipe


def run_lmkit(task: str, place: speed.Place, *, evaluations: int = 0) -> list[dict[str, Any]]:
    """The lines of the log."""
    out, recipe = place.root / f"time-{task}-lmkit", place.root / f"time-{task}.yaml"
    shutil.rmtree(out, ignore_errors=True)
    recipe.write_text(json.dumps(recipe_of(task, place, evaluations=evaluations)))
    speed.timed(
        ["-m", "lmkit", "pretrain", str(recipe), "-o", str(out)],
        place,
        place.root / f"time-{task}-lmkit.log",
    )
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def run_peer(task: str, place: speed.Place, *, save: Path | None = None) -> dict[str, Any]:
    """Seconds of the first to the last step, and of one step once it is warm."""
    bench, recipe, out = (
        speed.BENCHES[task],
        recipe_of(task, place),
        place.root / f"time-{task}-peer.json",
    )
    spec = {
        "bench": task, "side": "best", "inputs": str(place.inputs), "model": recipe["model"]["base"], "out": str(out),
        "data": recipe["data"]["train"], "rows": None, "batch": bench.batch, "length": bench.length, "steps": place.steps,
        "learning_rate": recipe["train"]["learning_rate"], "bf16": place.bf16,
    }  # fmt: skip
    spec |= {"save": str(save)} if save else {}
    (place.root / "spec.json").write_text(json.dumps(spec))
    speed.timed(
        [str(speed.HERE / "peer.py"), str(place.root / "spec.json")],
        place,
        place.root / f"time-{task}-peer.log",
    )
    found = json.loads(out.read_text())
    times = found["times"]
    step = (times[-1] - times[speed.WARM_UP - 1]) / (len(times) - speed.WARM_UP)
    return {"seconds": times[-1] - found["started"], "step": step}


def loss_of(task: str, model: Path, place: speed.Place) -> float:
    """The validation loss of a model that was saved, by ``lmkit eval``."""
    recipe, out = recipe_of(task, place, evaluations=1), place.root / f"time-{task}-eval"
    recipe = {
        "task": task,
        "model": {"base": str(model)},
        "data": recipe["data"],
        "eval": recipe["eval"],
    }
    del recipe["data"]["train"]
    shutil.rmtree(out, ignore_errors=True)
    (place.root / f"time-{task}-eval.yaml").write_text(json.dumps(recipe))
    command = ["-m", "lmkit", "eval", str(place.root / f"time-{task}-eval.yaml"), "-o", str(out)]
    speed.timed(command, place, place.root / f"time-{task}-eval.log")
    (metrics,) = out.glob("**/metrics.json")
    return float(json.loads(metrics.read_text())["loss"])


def measure(
    task: str, place: speed.Place, *, minutes: float, machine: dict[str, Any]
) -> dict[str, Any]:
    few = replace(place, steps=speed.WARM_UP + 5)
    steps = max(few.steps, round(minutes * 60 / run_peer(task, few)["step"]))
    saved = place.root / f"time-{task}-peer"
    peer = run_peer(task, replace(place, steps=steps), save=saved)
    peer |= {"steps": steps, "loss": loss_of(task, saved, place)}
    print(
        f"{task}: the peer's loss is {peer['loss']:.4f} after {steps} steps, {peer['seconds']:.0f} s",
        file=sys.stderr,
    )
    lines = run_lmkit(task, few)
    warm = [line["seconds"] for line in lines if "tokens" in line]
    step = (warm[-1] - warm[speed.WARM_UP - 1]) / (len(warm) - speed.WARM_UP)
    tried = []
    for share in SHARES:
        ours = max(few.steps, round(share * peer["seconds"] / step))
        points = curve(run_lmkit(task, replace(place, steps=ours), evaluations=EVALUATIONS))
        seconds = reached(points, peer["loss"])
        tried.append({"share": share, "steps": ours, "curve": points, "seconds": seconds})
        print(
            f"{task}: lmkit's loss is {points[-1][1]:.4f} after {ours} steps, {points[-1][0]:.0f} s",
            file=sys.stderr,
        )
        if seconds is not None:
            break
    ratio = None if seconds is None else seconds / peer["seconds"]
    return {
        "name": f"time-{task}",
        "what": WHAT[task],
        "machine": machine,
        "peer": peer,
        "tried": tried,
        "ratio": ratio,
    }


def section(found: Sequence[dict[str, Any]]) -> str:
    """The text of the page."""
    on = {
        bench["name"]: "{cores} cores ({cpu}), {date}".format_map(bench["machine"])
        for bench in found
    }
    lines = [
        "| work | the peer's loss | its time | lmkit's time to it | share | target | lmkit's last loss, time |",
        "|---|---|---|---|---|---|---|",
    ]
    for bench in found:
        peer, last = bench["peer"], bench["tried"][-1]
        taken = "not reached" if bench["ratio"] is None else f"{last['seconds']:,.0f} s"
        share = "-" if bench["ratio"] is None else f"{bench['ratio']:.2f}x"
        end = last["curve"][-1]
        lines.append(
            f"| {bench['what']} | {peer['loss']:.3f} | {peer['seconds']:,.0f} s, {peer['steps']:,} steps | {taken} | {share} "
            f"| {TARGET:.2f}x | {end[1]:.3f}, {end[0]:,.0f} s, {last['steps']:,} steps |"
        )
    table = "\n".join(lines)
    return f"""### Time to a validation loss

`make bench BENCH=time` on {machines(on)}: lmkit's time to the validation loss that
`transformers.Trainer` (bf16 where the chip has it) reaches in its time, on Moby-Dick, from the same weights. How they are compared
stands at the head of `tests/bench/time_to_loss.py`. One run of either side: no spread is known.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="mlm,clm")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the peer's training")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write the page from what was measured, and measure nothing",
    )
    given = parser.parse_args()
    place = speed.Place(given.out.resolve())
    if not given.docs:
        make(place.inputs)
        machine = speed.machine_of(place)
        place = replace(place, bf16=speed.computes_in_bf16(machine))
        for task in given.only.split(","):
            found = measure(task, place, minutes=given.minutes, machine=machine)
            (place.root / f"time-{task}.json").write_text(json.dumps(found, indent=1) + "\n")
    done = [
        json.loads(path.read_text())
        for task in WHAT
        if (path := place.root / f"time-{task}.json").is_file()
    ]
    if done:
        publish("time", section(done), docs=given.docs)


if __name__ == "__main__":
    main()
