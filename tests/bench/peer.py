"""The other side of tests/bench/speed.py: transformers.Trainer as the example scripts set it up, or at its best settings.

    python tests/bench/peer.py SPEC.json

The spec names the bench, the side (``script``, ``best``; ``lmkit`` for tokenize, ``peak`` for the machine), the inputs,
steps, rows and where the result goes. Nothing of lmkit is imported but for tokenize.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

CLASSES = {
    "mlm": "AutoModelForMaskedLM",
    "clm": "AutoModelForCausalLM",
    "classification": "AutoModelForSequenceClassification",
    "startup": "AutoModelForSequenceClassification",
    "eval": "AutoModelForSequenceClassification",
    "ner": "AutoModelForTokenClassification",
    "translation": "AutoModelForSeq2SeqLM",
    "generate": "AutoModelForSeq2SeqLM",
}


def main(spec: dict[str, Any]) -> dict[str, Any]:
    if spec["side"] == "peak":
        return peak(spec.get("device", "cpu"))
    if spec["bench"] == "tokenize":
        return tokenize(spec)
    if spec["bench"] == "generate":
        return generate(spec)
    return trainer(spec)


def peak(device: str) -> dict[str, Any]:
    """FLOP/s of square matrix products (2048 on a CPU, 8192 on a GPU), the best of 20."""
    import torch

    found, size = {}, 2048 if device == "cpu" else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        times = []
        for _ in range(20):
            _wait(device)
            begun = time.perf_counter()
            a @ b
            _wait(device)
            times.append(time.perf_counter() - begun)
        found["fp32" if dtype is torch.float32 else "bf16"] = 2 * size**3 / min(times)
    return found | {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def tokenize(spec: dict[str, Any]) -> dict[str, Any]:
    """Rows a second, from the rows of a file to tokens on disk; the cache is empty."""
    path = f"{spec['inputs']}/classification.jsonl"
    if spec["side"] == "lmkit":
        from lmkit.data.encode import encode
        from lmkit.data.splits import load_splits
        from lmkit.models.tokenizer import load_tokenizer, tokenizer_hash
        from lmkit.recipe import load_recipe
        from lmkit.tasks.registry import problem

        recipe = load_recipe(spec["recipe"])
        solved = problem("classification")
        splits = load_splits(recipe, solved, wanted=("train",))
        task = solved.task(recipe, splits.facts, load_tokenizer(f"{spec['inputs']}/bert"))
        begun = time.perf_counter()
        rows = len(encode(splits.rows["train"], task, tokenizer_hash(task.tokenizer)))
        return {"seconds": time.perf_counter() - begun, "rows": rows}
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{spec['inputs']}/bert")
    data = load_dataset(
        "json", data_files=path, split=f"train[:{spec['rows']}]" if spec["rows"] else "train"
    )
    begun = time.perf_counter()
    processes = spec["cores"] if spec["side"] == "best" else None
    data = data.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=128), batched=True, num_proc=processes, load_from_cache_file=False
    )  # fmt: skip
    return {"seconds": time.perf_counter() - begun, "rows": len(data)}


def load(spec: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Model, tokenizer and rows."""
    import transformers
    from datasets import load_dataset

    kind = getattr(transformers, CLASSES[spec["bench"]])
    labels = (
        {"num_labels": {"ner": 4}.get(spec["bench"], 8)}
        if "Classification" in kind.__name__
        else {}
    )
    model = kind.from_pretrained(spec["model"], **labels)
    data = load_dataset("json", data_files=spec["data"], split="train")
    if spec["rows"]:
        data = data.select(range(spec["rows"]))
    return model, transformers.AutoTokenizer.from_pretrained(spec["model"]), data


def prepared(spec: dict[str, Any], tokenizer: Any, data: Any) -> Any:
    """The rows as the example script of the bench encodes them."""
    bench, size = spec["bench"], spec["length"]

    def blocks(rows: Any) -> Any:
        encoded = tokenizer(
            rows["text"], **({"return_special_tokens_mask": True} if bench == "mlm" else {})
        )
        joined = {key: [item for row in encoded[key] for item in row] for key in encoded}
        whole = len(joined["input_ids"]) // size * size
        cut = {
            key: [values[at : at + size] for at in range(0, whole, size)]
            for key, values in joined.items()
        }
        return cut | (
            {"labels": [list(block) for block in cut["input_ids"]]} if bench == "clm" else {}
        )

    def classified(rows: Any) -> Any:
        padding = {"padding": "max_length"} if spec["side"] == "script" else {}
        return tokenizer(rows["text"], truncation=True, max_length=128, **padding) | {
            "label": [int(x) for x in rows["label"]]
        }

    def tagged(rows: Any) -> Any:
        encoded = tokenizer(
            rows["tokens"], is_split_into_words=True, truncation=True, max_length=128
        )
        numbers = {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3}
        labels = []
        for row, tags in enumerate(rows["tags"]):
            words = encoded.word_ids(row)
            first = [
                word is not None and (not at or word != words[at - 1])
                for at, word in enumerate(words)
            ]
            labels.append(
                [
                    numbers[tags[word]] if is_first else -100
                    for word, is_first in zip(words, first, strict=True)
                ]
            )
        return encoded | {"labels": labels}

    def translated(rows: Any) -> Any:
        return tokenizer(
            rows["source"], text_target=rows["target"], truncation=True, max_length=128
        )

    encode = {"mlm": blocks, "clm": blocks, "ner": tagged, "translation": translated}.get(
        bench, classified
    )
    data = data.map(encode, batched=True, remove_columns=data.column_names)
    if spec["side"] == "best" and bench in ("classification", "ner", "translation"):
        data = data.map(
            lambda rows: {"length": [len(ids) for ids in rows["input_ids"]]}, batched=True
        )
    return data


def trainer(spec: dict[str, Any]) -> dict[str, Any]:
    """Steps of training, or predictions of the whole file, with the time of each step and what the collator gave."""
    import transformers

    bench, best = spec["bench"], spec["side"] == "best"
    if bench == "startup" and spec["side"] == "script":
        import evaluate  # noqa: F401  # as run_classification does

    transformers.set_seed(13)
    model, tokenizer, data = load(spec)
    data = prepared(spec, tokenizer, data)
    collator: Any = {
        "mlm": lambda: transformers.DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=0.15
        ),
        "clm": lambda: transformers.default_data_collator,
        "ner": lambda: transformers.DataCollatorForTokenClassification(tokenizer),
        "translation": lambda: transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    }.get(
        bench,
        lambda: (
            transformers.DataCollatorWithPadding(tokenizer)
            if best
            else transformers.default_data_collator
        ),
    )()
    seen: list[tuple[int, int]] = []

    def counted(rows: Any) -> Any:
        batch = collator(rows)
        tokens, slots = int(batch["attention_mask"].sum()), batch["attention_mask"].numel()
        if bench == "translation":
            tokens, slots = (
                tokens + int((batch["labels"] != -100).sum()),
                slots + batch["labels"].numel(),
            )
        seen.append((tokens, slots))
        return batch

    times: list[float] = []
    started: list[float] = []
    device = spec.get("device", "cpu")

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            started.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if len(times) + 1 in (spec.get("warm_up"), spec["steps"]):
                _wait(device)  # between which the clock runs
            times.append(time.perf_counter())
            if len(times) == 1 and "first_step" in spec:
                Path(spec["first_step"]).write_text("done")

    grouped = best and "length" in data.column_names
    arguments = transformers.TrainingArguments(
        output_dir=str(Path(spec["out"]).with_suffix("")),
        use_cpu=device == "cpu",
        per_device_train_batch_size=spec["batch"],
        gradient_accumulation_steps=spec.get("accumulation", 1),
        per_device_eval_batch_size=64 if best else 8,
        max_steps=max(spec["steps"], 1),
        learning_rate=spec["learning_rate"],
        bf16=best and spec["bf16"],
        torch_compile=spec.get("compile", False),
        dataloader_num_workers=spec.get("workers", 0),
        use_liger_kernel=spec.get("liger", False),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **({"train_sampling_strategy": "group_by_length"} if grouped else {}),
    )
    made = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=counted, processing_class=tokenizer, callbacks=[Clock()]
    )  # fmt: skip
    begun = time.perf_counter()
    if bench == "eval":
        found = made.predict(data)
        rows = found.predictions.argmax(-1).tolist()
        return {
            "seconds": time.perf_counter() - begun,
            "loss": found.metrics["test_loss"],
            "answers": rows,
        } | _sums(seen)
    result = made.train()
    assert len(times) == spec["steps"]
    if "save" in spec:
        made.save_model(spec["save"])
    passes = len(times) * spec.get("accumulation", 1)
    if spec.get("workers"):  # they collate in processes of their own; blocks have no padding
        assert bench in ("mlm", "clm")
        tokens = spec["batch"] * spec["length"]
        seen = [(tokens, tokens)] * passes
    found = {"times": times, "started": started[0], "counts": seen[:passes]}
    if device != "cpu":
        import torch

        found["device_memory"] = torch.cuda.max_memory_allocated()
    return found | {"loss": result.training_loss}


def generate(spec: dict[str, Any]) -> dict[str, Any]:
    """Beam search over the file: eight at a time as the rows stand, or 64 of alike length in bf16."""
    import torch
    import transformers

    model, tokenizer, data = load(spec)
    model.eval()
    best, size = spec["side"] == "best", 64 if spec["side"] == "best" else 8
    sources, seen = data["source"], []
    encoded = [tokenizer(text)["input_ids"] for text in sources]
    order = (
        sorted(range(len(encoded)), key=lambda row: -len(encoded[row]))
        if best
        else list(range(len(encoded)))
    )
    texts = [""] * len(encoded)
    options = transformers.GenerationConfig.from_model_config(model.config)
    options.update(
        num_beams=4, max_new_tokens=spec["length"], forced_eos_token_id=None, do_sample=False
    )
    model.generation_config = options
    begun = time.perf_counter()
    with (
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16, enabled=best and spec["bf16"]),
    ):
        for at in range(0, len(order), size):
            rows = order[at : at + size]
            batch = tokenizer.pad(
                {"input_ids": [encoded[row] for row in rows]}, return_tensors="pt"
            )
            written = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
            seen.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
            for row, text in zip(
                rows, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True
            ):
                texts[row] = text
    return {"seconds": time.perf_counter() - begun, "loss": None, "answers": texts} | _sums(seen)


def _sums(seen: list[tuple[int, int]]) -> dict[str, int]:
    return {"tokens": sum(tokens for tokens, _ in seen), "slots": sum(slots for _, slots in seen)}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(main(given)))
