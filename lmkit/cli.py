"""The command line: options, help and exit codes. Bodies import their command, so that help needs no torch."""

from __future__ import annotations

import errno
import gc
import math
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

gc.set_threshold(
    50_000
)  # what is imported stays: looking for garbage among it would take a fifth of the start of --help

import typer  # noqa: E402
import typer.core  # noqa: E402

from lmkit import __version__, console  # noqa: E402
from lmkit.errors import LmkitError, ProofFailed, TrainingStopped, is_full  # noqa: E402


@dataclass(frozen=True)
class _Value:
    """What an argument is made into: a text or a flag stays as it is, a number has a range, a word is one of several.

    Typer would import pydantic for it, which takes longer than all else up to a message about the arguments.
    """

    kind: Any
    least: float | None
    most: float | None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return [] if param.multiple or param.nargs == -1 else None
        if self.kind in (int, float):
            return self._number(value, param, ctx)
        if self.kind not in (str, bool, list[str]) and value not in get_args(self.kind):
            raise typer.BadParameter(
                f"{value!r} is not one of {', '.join(get_args(self.kind))}", ctx=ctx, param=param
            )
        return value

    def _number(self, value: Any, param: Any, ctx: Any) -> int | float:
        try:
            number: int | float = self.kind(value)
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise typer.BadParameter(f"{value!r} is not {what}", ctx=ctx, param=param) from None
        least, most = (
            -math.inf if self.least is None else self.least,
            math.inf if self.most is None else self.most,
        )
        if not least <= number <= most:
            limit = (
                f"at least {self.least}"
                if self.most is None
                else f"from {self.least} to {self.most}"
            )
            raise typer.BadParameter(f"{value} is not {limit}", ctx=ctx, param=param)
        return number


class _Commands(typer.core.TyperGroup):
    """A group of commands that starts fast."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # not None, of which typer would make a truth value
        return option

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        for param in command.get_params(ctx) if command is not None else ():
            described = getattr(param, "type_descriptor", None)
            if described is not None:
                given = described.parameter_info
                param._runtime_param = _Value(described.annotation, given.min, given.max)  # type: ignore[attr-defined]
        return command


app = typer.Typer(
    name="lmkit",
    cls=_Commands,
    help="Raw text to a pretrained model, fine-tuned for a task, measured with intervals.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes = typer.Typer(
    cls=_Commands,
    help="Recipes that ship with lmkit, and yours.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(recipes, name="recipe")

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, or the name of a recipe that ships (lmkit recipe list).",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Any recipe key by its dotted path; the value is YAML."
    ),
]
Output = Annotated[str | None, typer.Option("-o", "--output", metavar="DIR", help="Run directory.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print exactly one JSON object on stdout; everything else goes to stderr."
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on from the newest valid checkpoint; start if there is none."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run that is in the output directory.")
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke", help="The same recipe end to end in seconds, on a tiny model and a few rows."
    ),
]
Method = Literal["bootstrap", "permutation"]
Style = Literal["table", "markdown", "latex"]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print the plan; train nothing.")
]


def _start(as_json: bool, quiet: bool, verbose: bool) -> None:
    console.configure(as_json=as_json, quiet=quiet, verbose=verbose)
    # the libraries' own bars and notices; lmkit says what matters itself
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"transformers|peft|accelerate"
    )  # between libraries


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"lmkit {__version__}")
        raise typer.Exit()


@app.command()
def pretrain(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Raw text -> a language model (task: mlm | clm | denoise)."""
    _train(
        "pretrain",
        recipe,
        overrides,
        output,
        resume,
        overwrite,
        smoke,
        dry_run,
        as_json,
        quiet,
        verbose,
    )


@app.command()
def finetune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A model -> a task model or adapter (task: classification | ner | translation)."""
    _train(
        "finetune",
        recipe,
        overrides,
        output,
        resume,
        overwrite,
        smoke,
        dry_run,
        as_json,
        quiet,
        verbose,
    )


def _train(
    stage: str,
    recipe: str,
    overrides: list[str] | None,
    output: str | None,
    resume: bool,
    overwrite: bool,
    smoke: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    _start(as_json, quiet, verbose)
    if resume and overwrite:
        raise LmkitError(
            "--resume and --overwrite contradict each other", remedy="keep one of the two"
        )
    if smoke and dry_run:
        raise LmkitError(
            "--smoke and --dry-run contradict each other", remedy="keep one of the two"
        )
    from lmkit.commands import train

    keys = overrides or ()
    if smoke:
        summary = train.smoke(stage, recipe, keys)
    elif dry_run:
        summary = train.dry_run(stage, recipe, keys, output=output)
    else:
        summary = train.train(
            stage, recipe, keys, output=output, resume=resume, overwrite=overwrite
        )
    console.emit(summary)


@app.command("eval")
def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN", help="A run, a model directory, a hub id, or a recipe."
        ),
    ],
    overrides: Overrides = None,
    output: Output = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=NUMBER",
            help="Exit status 1 where a metric is worse than this; repeatable.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="With --fail-under: the worse end of the interval counts."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A model -> metrics with intervals, predictions and a report."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.evaluate import evaluate as run_evaluation
    from lmkit.commands.evaluate import failures, thresholds

    if strict and not fail_under:
        raise LmkitError(
            "--strict has no effect without --fail-under",
            remedy="for example --fail-under f1=0.42 --strict",
        )
    limits = thresholds(fail_under or ())
    found = run_evaluation(source, overrides or (), output=output, limited=limits)
    console.emit(found)
    if found and (reasons := failures(found, limits, strict=strict)):
        console.fail("; ".join(reasons))
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_A RUN_B [RUN]...", help="Evaluated runs; several seeds of one: A1,A2,A3."
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="Default: the task's headline metric."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="NAME", help="Default: test where all have it, else validation."
        ),
    ] = None,
    method: Annotated[
        Method, typer.Option("--method", help="Where the p-value comes from.")
    ] = "bootstrap",
    style: Annotated[Style, typer.Option("--format", help="Of the table.")] = "table",
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.9999)] = 0.95,
    resamples: Annotated[int, typer.Option("--resamples", min=100)] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 13,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Evaluated runs -> paired difference, interval, p-value, verdict."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.compare import compare as run_comparison

    console.emit(
        run_comparison(
            runs,
            metric=metric,
            split=split,
            method=method,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            style=style,
        )
    )


@app.command()
def predict(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, a model directory or a hub id.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Texts; without any, lines of stdin."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "-f", "--file", metavar="FILE", help="Rows of a data file, or lines of a text file."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A recipe key, for example generation.num_beams=1."
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Texts, a file or stdin -> JSON lines, in order."""
    _start(True, quiet, verbose)
    if texts and file:
        raise LmkitError("texts and --file were both given", remedy="give one of the two")
    if not texts and not file and sys.stdin.isatty():
        raise LmkitError(
            "nothing to predict on",
            remedy='give texts (lmkit predict RUN "a text"), --file FILE, or lines on stdin',
        )
    from lmkit.commands.predict import Predictor, text_lines

    predictor = Predictor(run, settings or ())
    if file:
        answers: Any = predictor.file(file)
    else:
        answers = predictor.answers(predictor.task.text_rows(texts or text_lines(sys.stdin)))
    for answer in answers:
        console.emit_line(answer)


@app.command()
def merge(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, its model directory, or a PEFT adapter.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="Where the model goes.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model of lmkit's that is in DIR.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Base + adapter -> one plain Hugging Face model, proven to give the same logits."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.merge import merge as merge_adapter

    console.emit(merge_adapter(run, output, overwrite=overwrite))


@app.command()
def data(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What a recipe's data looks like, before anything is trained: rows, lengths, labels, repetitions."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.data import look, tables

    found = look(recipe, overrides or ())
    console.say(tables(found))
    console.emit(found)


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Prove on this recipe, in small, that the hardware changes nothing.",
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Prove that a killed and resumed run equals one that was not."
        ),
    ] = False,
    kills: Annotated[
        int, typer.Option(min=1, max=8, help="With --resume: how often the run is killed.")
    ] = 3,
    seed: Annotated[
        int | None,
        typer.Option(help="With --resume: of the moments; without, they are others every time."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Versions, devices, native bf16, offline state, disk; with a recipe, the numerical proofs on it."""
    _start(as_json, quiet, verbose)
    if recipe is not None:
        _prove(recipe, overrides or [], resume, kills, seed)
        return
    if resume:
        raise LmkitError(
            "--resume proves something of a recipe, and none was given",
            remedy="lmkit doctor RECIPE --resume",
        )
    from lmkit.commands.doctor import doctor as examine

    found = examine()
    rows = [
        [key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value]
        for key, value in found.items()
    ]
    console.say(console.table(["what", "found"], rows))
    console.emit(found)


def _prove(recipe: str, overrides: list[str], resume: bool, kills: int, seed: int | None) -> None:
    from lmkit.commands.proof import prove, table

    found = prove(recipe, overrides, resume=resume, kills=kills, seed=seed)
    console.say(f"\n{table(found['proofs'])}")
    console.emit(found)
    if not found["ok"]:
        raise ProofFailed(f"{found['recipe']}: a proof failed, see the table")


@app.command()
def bench(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.05, help="Measured for each setting.")
    ] = 10.0,
    tried: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="KEY=VALUE",
            help="A hardware key to compare the recipe with; repeatable. Default: lmkit's choice.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """How fast a recipe trains here, and what would make it faster; changes nothing."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.bench import bench as measure
    from lmkit.commands.bench import tables

    found = measure(recipe, overrides or (), seconds=seconds, tried=tried or ())
    console.say(tables(found))
    console.emit(found)


@app.command()
def demo(
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="Where the runs go.")
    ] = "runs/demo",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The whole way on shipped data: tokenizer, pretraining, fine-tuning, evaluation, one table."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.demo import run_demo

    console.emit(run_demo(output, overwrite=overwrite))


@recipes.command("list")
def recipe_list(as_json: Json = False) -> None:
    """The recipes that ship with lmkit."""
    _start(as_json, False, False)
    from lmkit.commands.recipes import list_recipes

    found = list_recipes()
    console.say(
        console.table(
            ["name", "task", "about"],
            [[entry["name"], entry["task"], entry["about"]] for entry in found],
        )
    )
    console.emit({"recipes": found})


@recipes.command("show")
def recipe_show(
    recipe: RecipeArgument,
    complete: Annotated[
        bool, typer.Option("--complete", help="Every value that would be used, defaults included.")
    ] = False,
) -> None:
    """Print a recipe."""
    _start(False, False, False)
    from lmkit.commands.recipes import show_recipe

    console.say(show_recipe(recipe, complete=complete).rstrip())


@recipes.command("copy")
def recipe_copy(
    recipe: RecipeArgument, target: Annotated[str | None, typer.Argument(metavar="[FILE]")] = None
) -> None:
    """Copy a recipe to a file of your own."""
    _start(False, False, False)
    from lmkit.commands.recipes import copy_recipe

    console.say(f"written: {copy_recipe(recipe, target)}")


@recipes.command("check")
def recipe_check(
    recipe: RecipeArgument, overrides: Overrides = None, as_json: Json = False
) -> None:
    """Check keys, values, model and data of a recipe, in seconds and without torch."""
    _start(as_json, False, False)
    from lmkit.commands.recipes import check_recipe

    found = check_recipe(recipe, overrides or [])
    rows = ", ".join(f"{split} {count} rows" for split, count in found["rows"].items())
    console.say(f"{found['recipe']}: {found['task']}; {rows}; nothing wrong")
    console.emit(found)


@recipes.command("explain")
def recipe_explain(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A dotted key, or a section: train.warmup, lora.")
    ],
    as_json: Json = False,
) -> None:
    """What a key of a recipe does, what it expects, its default."""
    _start(as_json, False, False)
    from lmkit.commands.recipes import explain_key

    found, shown = explain_key(key)
    console.say(shown)
    console.emit(found)


@recipes.command("schema")
def recipe_schema() -> None:
    """The JSON Schema of recipes, by which editors complete and check."""
    _start(True, False, False)
    from lmkit.commands.recipes import schema

    console.emit(schema())


def main() -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 130 interrupted, 1 anything else."""
    console.own_process()
    sys.exit(_status())


def _status() -> int:
    try:
        result = app(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LmkitError as error:
        console.fail(str(error))
        return 2
    except (TrainingStopped, ProofFailed) as error:
        console.fail(str(error))
        return 1
    except KeyboardInterrupt:
        console.fail("interrupted")
        return 130
    except Exception as error:
        return _other(error)


def _other(error: Exception) -> int:
    """Mistakes in the arguments, ends by a signal, a full disk, and a reader that went away (``| head``); anything else is raised."""
    if isinstance(error, typer.Abort):
        return 130
    if hasattr(error, "format_message"):  # what typer raises
        return _say_usage(error)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if is_full(error) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        console.fail(
            f"{getattr(error, 'filename', None) or 'output'}: {getattr(error, 'strerror', None) or error}"
        )
        return 1
    status = getattr(error, "status", None)
    if isinstance(status, int):  # Interrupted, ProcessFailed: said already
        if (
            status in (130, 143)
            and console.is_first_process()
            and not console.is_started_by_lmkit()
        ):
            console.fail(
                "interrupted; the same command with --resume goes on from the last checkpoint"
            )
        return status
    raise error


def _say_usage(error: Any) -> int:
    """Typer's own complaint, with the nearest command or option; a command group alone shows its help."""
    message: str = error.format_message().rstrip()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        console.say(message)
    else:
        help_line = f"\n  see: {context.command_path} --help" if context is not None else ""
        console.fail(message.rstrip(".") + help_line)
    return 2
