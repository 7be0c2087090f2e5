"""A user's mistakes: exit status 2, one message that names the place, no traceback, nothing heavy imported before it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "evaluate",
    "sacrebleu",
    "sklearn",
    "tokenizers",
    "huggingface_hub",
)
DATA = ("numpy", "pyarrow", "filelock")  # read data, but neither find files nor read recipes
SLOW = ("rich", "click")  # each as slow as all that a recipe error needs
COMMANDS = [
    "pretrain",
    "finetune",
    "eval",
    "predict",
    "merge",
    "data",
    "doctor",
    "bench",
    "demo",
    "recipe",
    "recipe list",
    "recipe show",
    "recipe copy",
    "recipe check",
]
RECIPE = """
task: classification
model: {preset: bert-nano}
tokenizer: {train: {vocab_size: 300}}
data: {train: train.jsonl}
"""
# runs several commands in one process, and writes how each ended
DRIVER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from lmkit import cli
ends = []
for arguments in json.loads(sys.stdin.read()):
    sys.argv, out, err = ["lmkit", *arguments], io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = cli._status()
        except BaseException as error:
            status = repr(error)
    ends.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mistakes")
    (found / "good.yaml").write_text(RECIPE)
    (found / "train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    for name, base in (("adapter", str(found / "whole")), ("gone", "/no/such/base")):
        (found / name).mkdir()
        (found / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": base, "task_type": "SEQ_CLS"})
        )
    (found / "whole").mkdir()
    (found / "whole" / "config.json").write_text("{}")
    return found


@pytest.fixture(scope="module")
def drive(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[tuple[Any, str, str]]]:
    """Run commands in one process in which importing some modules fails."""

    def run(
        commands: Sequence[Sequence[str]], *, without: Sequence[str]
    ) -> list[tuple[Any, str, str]]:
        stubs = tmp_path_factory.mktemp("stubs")
        for name in without:
            (stubs / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')\n")
        path = os.pathsep.join([str(stubs), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps([list(command) for command in commands]),
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        return [tuple(end) for end in json.loads(done.stdout)]

    return run


def test_help_of_every_command_needs_nothing_heavy(drive: Any) -> None:
    commands = [["--help"], ["--version"], *([*command.split(), "--help"] for command in COMMANDS)]
    for command, (status, out, err) in zip(
        commands, drive(commands, without=HEAVY + DATA + SLOW), strict=True
    ):
        assert (status, err) == (0, ""), command
        assert "Usage" in out or "lmkit 0." in out


def test_every_command_is_listed_in_help(drive: Any) -> None:
    ((_, out, _),) = drive([["--help"]], without=HEAVY)
    assert all(command in out for command in COMMANDS if " " not in command)


ARGUMENTS = {
    "pretain good.yaml": "Did you mean 'pretrain'?",
    "pretrain": "Missing argument 'RECIPE'",
    "finetune good.yaml --resum": "--resume",
    "finetune good.yaml --resume --overwrite": "contradict each other",
    "finetune good.yaml --smoke --dry-run": "contradict each other",
    "recipe chek good.yaml": "Did you mean 'check'",
    "predict RUN a -f b.txt": "texts and --file were both given",
    "merge RUN": "Missing option '-o'",
    "compare a b --confidence 95": "Invalid value for '--confidence': 95 is not from 0.5 to 0.9999",
    "compare a b --resamples few": "'few' is not a whole number",
    "compare a b --method t-test": "'t-test' is not one of bootstrap, permutation",
    "doctor good.yaml --kills 9": "9 is not from 1 to 8",
    "finetune good.yaml epochs": "'epochs' is not KEY=VALUE",
    "finetune good.yaml =3": "is not KEY=VALUE",
    "finetune good.yaml train..epochs=3": "is not KEY=VALUE",
    "finetune good.yaml data.columns={text:": "not readable as YAML",
    "recipe copy demo/mlm good.yaml": "the file exists",
}
RECIPES = {
    "finetune nope": "demo/ner",
    "finetune god.yaml": "did you mean 'good.yaml'?",
    "recipe show nope": "no recipe 'nope'",
    "finetune good.yaml train.lr=1": "train.lr: unknown key; here it is train.learning_rate",
    "finetune good.yaml learning_rate=1": "did you mean train.learning_rate?",
    "finetune good.yaml train.learning_rate=fast": "train.learning_rate: expected a number greater than 0, found 'fast'",
    "finetune good.yaml train.epochs=0": "train.epochs: expected a number greater than 0, found 0",
    "finetune good.yaml data.train=3": "data.train: expected text, a list of text or a mapping, found 3",
    "finetune good.yaml model=bert": "model: expected a mapping of keys to values",
    "finetune good.yaml task=token-classification": "here it is ner",
    "finetune good.yaml hardware.checkpoint_every=soon": "hardware.checkpoint_every: expected a number of steps",
    "finetune good.yaml output=runs/{task}": "unknown {task}",
    "finetune good.yaml name=../up": "cannot be the name of a folder",
    "pretrain good.yaml": "use lmkit finetune",
    "finetune good.yaml task=mlm": "use lmkit pretrain",
    "finetune good.yaml task=null": "task",
    "finetune good.yaml model.preset=bert-huge": "did you mean 'bert-base'?",
    "finetune good.yaml model.preset=null": "neither model.base nor model.preset",
    "finetune good.yaml model.base=runs/nope model.preset=null tokenizer=null": "runs/nope: no such run or directory",
    "finetune good.yaml model.base=good.yaml model.preset=null": "a file, not a run",
    "finetune good.yaml lora={rank: 4}": "lora: LoRA adapts trained weights",
    "finetune good.yaml tokenizer=null": "a model with random weights has no tokenizer",
    "finetune good.yaml -o good.yaml": "the output is a file",
    "finetune good.yaml -o .": "the output directory is not empty",
    "eval good.yaml": "this recipe was not trained yet",
    "eval ./nope": "no such run or directory",
    "predict ./nope text": "no such run or directory",
    "merge ./nope -o out": "no such run or directory",
    "merge adapter -o good.yaml": "the output is a file",
    "merge adapter -o .": "the output directory is not empty",
    "merge adapter -o . --overwrite": "--overwrite only replaces a model directory of lmkit's",
    "merge gone -o out": "gone: the adapter's base is gone: /no/such/base",
    "merge whole -o out": "whole: no adapter, but a whole model: there is nothing to merge",
    "finetune good.yaml lora={variant: qora}": "lora.variant: expected 'lora', 'rslora' or 'dora', found 'qora'",
    "finetune good.yaml lora={quantize: 4bit}": "lora.quantize: 4bit: needs the package bitsandbytes",
    "finetune good.yaml lora={rank: 4} train.freeze_layers=2": "train.freeze_layers: has no effect beside lora",
    "finetune good.yaml lora={rank: 4} train.freeze_embeddings=true": "train.freeze_embeddings: has no effect beside lora",
    "finetune good.yaml train.freeze_embeddings=true tokenizer.add_tokens=[Ishmael]": "the tokens of tokenizer.add_tokens",
    "finetune good.yaml train.layer_decay=1": "train.layer_decay: expected a number greater than 0 and less than 1, found 1",
    "finetune good.yaml train.use_dora=true": "here it is lora.variant=dora",
    "finetune good.yaml data.train=trian.jsonl": "no such file: trian.jsonl; did you mean train.jsonl?",
    "finetune good.yaml data.validation=*.nope": "data.validation: no file matches *.nope",
    "recipe check good.yaml data.test=nope.csv": "data.test: no such file: nope.csv",
    "doctor nope.yaml": "no such file: nope.yaml",
}


@pytest.mark.parametrize("cases", [ARGUMENTS, RECIPES], ids=["arguments", "recipes"])
def test_mistake_is_answered_with_2_and_its_remedy_before_anything_is_loaded(
    cases: dict[str, str], drive: Any
) -> None:
    commands = [split(line) for line in cases]
    for (line, expected), (status, out, err) in zip(
        cases.items(), drive(commands, without=HEAVY + DATA + SLOW), strict=True
    ):
        assert (line, status, out) == (line, 2, ""), err
        assert expected in err, line
        assert err.startswith("lmkit: ")
        assert "Traceback" not in err


def split(line: str) -> list[str]:
    """At spaces, those within braces excepted."""
    return re.findall(r"(?:[^\s{]|\{[^}]*\}?)+", line)


DATA_MISTAKES = {
    "trian.jsonl": ("", "no such file: trian.jsonl; did you mean train.jsonl?"),
    "empty.jsonl": ("", "empty.jsonl: no rows in this file"),
    "columns.jsonl": (
        '{"headline": "a", "topic": "b"}\n',
        "no column for 'text'; there are: headline, topic",
    ),
    "broken.jsonl": (
        '{"text": "a", "label": "x"}\n{"text": \n',
        "broken.jsonl:2: not JSON at column",
    ),
    "null.jsonl": (
        '{"text": "a", "label": "x"}\n{"text": null, "label": "x"}\n',
        "null.jsonl:2: 'text' is null; text is expected",
    ),
    "number.jsonl": (
        '{"text": "a", "label": "x"}\n{"text": 3, "label": "x"}\n',
        "number.jsonl:2: 'text' is a number",
    ),
    "one.jsonl": (
        '{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n',
        "data.train: all rows have one label: 'x'",
    ),
    "cells.csv": ("text,label\na,x\nb,c,y\n", "cells.csv:3: 3 cells where the first line has 2"),
    "semicolon.csv": ("text;label\na;x\n", "the cells seem to be parted by ';'"),
    "open.csv": ('text,label\n"a,x\n', "open.csv:2: a quoted cell that begins here never ends"),
    "texts.txt": ("a\nb\n", "a text file has texts alone; label needs"),
    "not.parquet": ("no", "not.parquet: broken, or not parquet data"),
    "not.jsonl.gz": ("{}", "not.jsonl.gz: cannot be read"),
    "sheet.xlsx": ("", "not a format that lmkit reads: sheet.xlsx"),
}


def test_mistake_in_the_data_is_answered_with_its_line_before_torch(
    folder: Path, drive: Any
) -> None:
    for name, (content, _) in DATA_MISTAKES.items():
        if name != "trian.jsonl":
            (folder / name).write_text(content)
    (folder / "latin.csv").write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    (folder / "validation.jsonl").write_text(
        '{"text": "a", "label": "x"}\n{"text": "a", "label": "why"}\n'
    )
    (folder / "tags.conll").write_text("a B-PER\nb O\n\nc O\nd I-PER\n")
    (folder / "ragged.conll").write_text("a B-PER\nb\n")
    cases = [
        (["finetune", "good.yaml", f"data.train={name}"], expected)
        for name, (_, expected) in DATA_MISTAKES.items()
    ]
    ner = ["finetune", "good.yaml", "task=ner"]
    cases += [
        (["finetune", "good.yaml", "data.train=latin.csv"], "latin.csv:2: not UTF-8: byte 0xe9"),
        (["finetune", "good.yaml", "data.train=*.nope"], "no file matches *.nope"),
        (["finetune", "good.yaml", "data.train=null"], "data.train: no data to learn from"),
        (
            ["finetune", "good.yaml", "data.columns.text=txt"],
            "no column for 'text' ('txt', says data.columns)",
        ),
        (["finetune", "good.yaml", "data.columns.txt=text"], "this task has no column 'txt'"),
        (
            ["finetune", "good.yaml", "data.validation=validation.jsonl"],
            "validation.jsonl:2: the label 'why' does not occur in training",
        ),
        (
            [
                "finetune",
                "good.yaml",
                "data.validation=validation.jsonl",
                "data.validation_fraction=0.5",
            ],
            "keep one of the two",
        ),
        (
            ["finetune", "good.yaml", "train.select_best=accuracy"],
            "there is no validation data to choose by",
        ),
        (
            ["finetune", "good.yaml", "train.select_best=f1", "data.validation=train.jsonl"],
            "classification has no metric 'f1'",
        ),
        (
            [*ner, "data.train=tags.conll"],
            "tags.conll:5: I-PER follows O; an entity begins with B-",
        ),
        ([*ner, "data.train=ragged.conll"], "ragged.conll:2: a single column, 'b'"),
        (
            ["recipe", "check", "good.yaml", "data.train=broken.jsonl"],
            "broken.jsonl:2: not JSON at column",
        ),
        (
            ["finetune", "good.yaml", "data.train=broken.jsonl", "--smoke"],
            "broken.jsonl:2: not JSON at column",
        ),
        (
            ["finetune", "good.yaml", "data.train=broken.jsonl", "--dry-run"],
            "broken.jsonl:2: not JSON at column",
        ),
    ]
    before = sorted(path.name for path in folder.iterdir())
    ends = drive(
        [command for command, _ in cases],
        without=("torch", "transformers", "datasets", "accelerate", "peft"),
    )
    for (command, expected), (status, out, err) in zip(cases, ends, strict=True):
        assert (command, status, out) == (command, 2, ""), err
        assert expected in err, command
        assert "Traceback" not in err
    assert sorted(path.name for path in folder.iterdir()) == before  # no run directory was begun


def test_recipe_commands_need_no_torch_and_print_one_json_object(drive: Any) -> None:
    listed, checked, shown, explained, schema = drive(
        [
            ["recipe", "list", "--json"],
            ["recipe", "check", "good.yaml", "--json"],
            ["recipe", "show", "good.yaml"],
            ["recipe", "explain", "lora.rank", "--json"],
            ["recipe", "schema"],
        ],
        without=HEAVY,
    )
    assert json.loads(explained[1])["default"] == 16
    assert json.loads(schema[1])["properties"]["task"]["type"] == "string"
    assert {entry["name"] for entry in json.loads(listed[1])["recipes"]} >= {"demo/mlm", "demo/ner"}
    assert json.loads(checked[1]) == {
        "recipe": "good",
        "task": "classification",
        "rows": {"train": 2},
        "rejected_rows": 0,
        "labels": ["x", "y"],
    }
    assert shown[1].strip() == RECIPE.strip()


def test_help_and_errors_import_little_beside_typer_yaml_and_msgspec(folder: Path) -> None:
    """Help answers in 0.3 s, a mistake in 0.5 s. Seconds depend on the machine, what is loaded does not."""

    def imported(program: str, *arguments: str) -> set[str]:
        program = f"import io, sys; out, sys.stdout = sys.stdout, io.StringIO(); {program}; print(*sys.modules, file=out)"
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True
        )
        return set(done.stdout.split())

    def of_lmkit(*arguments: str) -> set[str]:
        found = imported("from lmkit import cli; cli._status()", *arguments) - libraries
        others = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
        assert others <= {"lmkit", "typer"}, arguments
        return {name.removeprefix("lmkit.") for name in found if name.startswith("lmkit.")}

    # typer checks arguments with pydantic, which takes 0.1 s
    libraries = imported(
        "import typer, yaml, msgspec; app = typer.Typer(); app.command()(lambda x: x); app(['x'], standalone_mode=False)"
    )
    assert of_lmkit("--help") == {"cli", "console", "errors"}
    rooms = {name.partition(".")[0] for name in of_lmkit("finetune", "good.yaml", "train.lr=1")}
    assert rooms == {
        "cli",
        "console",
        "errors",
        "commands",
        "preflight",
        "recipe",
        "run",
        "models",
        "tasks",
        "batch",
        "records",
    }
    assert not {"data.rows", "data.check.labels"} & of_lmkit(
        "finetune", "good.yaml", "data.train=trian.jsonl"
    )
