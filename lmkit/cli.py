"""The command line: options, help and exit codes. Bodies import their command, so that help needs no torch."""

from __future__ import annotations

import errno
import math
import os
import sys
import warnings
from typing import Annotated, Any, Literal, get_args

import typer

from lmkit import __version__, console
from lmkit.errors import LmkitError, ProofFailed, TrainingStopped, is_full

app = typer.Typer(
    name="lmkit",
    help="Raw text to a pretrained model, fine-tuned for a task, measured with intervals.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes = typer.Typer(help="Recipes that ship with lmkit, and yours.", rich_markup_mode=None)
app.add_typer(recipes, name="recipe")

Method = Literal["bootstrap", "permutation"]
Style = Literal["table", "markdown", "latex"]


def _number(
    name: str,
    kind: type[int] | type[float],
    least: float,
    most: float | None = None,
    about: str | None = None,
) -> Any:
    """Declare an option with a number from ``least`` to ``most``."""

    def parse(value: Any) -> int | float:
        try:
            number: int | float = kind(value)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"{value!r} is not {expected}") from None
        if not least <= number <= (math.inf if most is None else most):
            limit = f"at least {least}" if most is None else f"from {least} to {most}"
            raise typer.BadParameter(f"{value} is not {limit}")
        return number

    return typer.Option(name, parser=parse, min=least, max=most, help=about)


def _choice(name: str, kind: Any, about: str) -> Any:
    """Declare an option that is one of a few words."""

    def parse(value: str) -> str:
        if value not in get_args(kind):
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(kind))}")
        return value

    return typer.Option(name, parser=parse, help=about)


def _flag(names: str, about: str) -> Any:
    return typer.Option(*names.split(), help=about)


def _text(usage: str, about: str) -> Any:
    *names, metavar = usage.split()
    return typer.Option(*names, metavar=metavar, help=about)


def _argument(metavar: str, about: str | None = None) -> Any:
    return typer.Argument(metavar=metavar, help=about)


# options and arguments of several commands
RecipeArgument = Annotated[
    str,
    _argument("RECIPE", "A YAML file, or the name of a recipe that ships (lmkit recipe list)."),
]
Overrides = Annotated[
    list[str] | None,
    _argument("[KEY=VALUE]...", "Any recipe key by its dotted path; the value is YAML."),
]
Output = Annotated[str | None, _text("-o --output DIR", "Run directory.")]
Overwrite = Annotated[
    bool, _flag("--overwrite", "Replace the run that is in the output directory.")
]
Json = Annotated[
    bool,
    _flag("--json", "Print exactly one JSON object on stdout; everything else goes to stderr."),
]
Quiet = Annotated[bool, _flag("-q --quiet", "Warnings and errors only.")]
Verbose = Annotated[bool, _flag("-v --verbose", "More detail.")]


def _start(as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
    console.configure(as_json=as_json, quiet=quiet, verbose=verbose)
    # the libraries' own bars and notices; lmkit says what matters itself
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # between libraries
    libraries = r"transformers|peft|accelerate"
    warnings.filterwarnings("ignore", category=FutureWarning, module=libraries)


def _refuse_both(first: bool, second: bool, names: str) -> None:
    if first and second:
        raise LmkitError(f"{names} contradict each other", remedy="keep one of the two")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, _flag("--version", "Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"lmkit {__version__}")
        raise typer.Exit()
    _show_help_alone(context)


@recipes.callback(invoke_without_command=True)
def recipe_root(context: typer.Context) -> None:
    _show_help_alone(context)


def _show_help_alone(context: typer.Context) -> None:
    """Show the help of a group of commands that is given without a command."""
    if context.invoked_subcommand is None:
        console.say(context.get_help())
        raise typer.Exit(2)


def train(
    context: typer.Context,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    resume: Annotated[
        bool, _flag("--resume", "Go on from the newest valid checkpoint; start if there is none.")
    ] = False,
    overwrite: Overwrite = False,
    smoke: Annotated[
        bool,
        _flag("--smoke", "The same recipe end to end in seconds, on a tiny model and a few rows."),
    ] = False,
    dry_run: Annotated[
        bool, _flag("--dry-run", "Check everything and print the plan; train nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    _start(as_json, quiet, verbose)
    _refuse_both(resume, overwrite, "--resume and --overwrite")
    _refuse_both(smoke, dry_run, "--smoke and --dry-run")
    from lmkit.commands import train

    stage, keys = str(context.info_name), overrides or ()
    if smoke:
        console.emit(train.smoke(stage, recipe, keys))
    elif dry_run:
        console.show(train.dry_run(stage, recipe, keys, output=output))
    else:
        console.emit(
            train.train(stage, recipe, keys, output=output, resume=resume, overwrite=overwrite)
        )


app.command("pretrain", help="Raw text -> a language model (task: mlm | clm | denoise).")(train)
app.command(
    "finetune",
    help="A model -> a task model or adapter (task: classification | ner | translation).",
)(train)


@app.command("eval")
def evaluate(
    source: Annotated[
        str, _argument("RECIPE|RUN", "A run, a model directory, a hub id, or a recipe.")
    ],
    overrides: Overrides = None,
    output: Output = None,
    fail_under: Annotated[
        list[str] | None,
        _text(
            "--fail-under METRIC=NUMBER",
            "Exit status 1 where a metric is worse than this; repeatable.",
        ),
    ] = None,
    strict: Annotated[
        bool, _flag("--strict", "With --fail-under: the worse end of the interval counts.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A model -> metrics with intervals, predictions and a report."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.evaluate import evaluate as run_evaluation
    from lmkit.commands.evaluate import failures, thresholds

    limits = thresholds(fail_under or (), strict=strict)
    metrics = run_evaluation(source, overrides or (), output=output, limited=limits)
    if metrics is None:  # another rank has them
        return
    console.emit(metrics)
    if reasons := failures(metrics, limits, strict=strict):
        console.fail("; ".join(reasons))
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        _argument("RUN_A RUN_B [RUN]...", "Evaluated runs; several seeds of one: A1,A2,A3."),
    ],
    metric: Annotated[
        str | None, _text("--metric NAME", "Default: the task's headline metric.")
    ] = None,
    split: Annotated[
        str | None, _text("--split NAME", "Default: test where all have it, else validation.")
    ] = None,
    method: Annotated[
        Method, _choice("--method", Method, "Where the p-value comes from.")
    ] = "bootstrap",
    style: Annotated[Style, _choice("--format", Style, "Of the table.")] = "table",
    confidence: Annotated[float, _number("--confidence", float, 0.5, 0.9999)] = 0.95,
    resamples: Annotated[int, _number("--resamples", int, 100)] = 10_000,
    seed: Annotated[int, _number("--seed", int, 0)] = 13,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Evaluated runs -> paired difference, interval, p-value, verdict."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.compare import Test
    from lmkit.commands.compare import compare as run_comparison

    test = Test(method, confidence, resamples, seed)
    comparison = run_comparison(runs, test, metric=metric, split=split)
    console.say(comparison.to_text(style))
    console.emit(comparison)


@app.command()
def predict(
    run: Annotated[str, _argument("RUN", "A run, a model directory or a hub id.")],
    texts: Annotated[
        list[str] | None, _argument("[TEXT]...", "Texts; without any, lines of stdin.")
    ] = None,
    file: Annotated[
        str | None, _text("-f --file FILE", "Rows of a data file, or lines of a text file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _text("--set KEY=VALUE", "A recipe key, for example generation.num_beams=1."),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Texts, a file or stdin -> JSON lines, in order."""
    _start(True, quiet, verbose)
    from lmkit.commands.predict import predict as answer

    for line in answer(run, settings or (), texts=texts or (), file=file, stdin=sys.stdin):
        console.emit_line(line)


@app.command()
def merge(
    run: Annotated[str, _argument("RUN", "A run, its model directory, or a PEFT adapter.")],
    output: Annotated[str, _text("-o --output DIR", "Where the model goes.")],
    overwrite: Annotated[
        bool, _flag("--overwrite", "Replace the model of lmkit's that is in DIR.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Base + adapter -> one plain Hugging Face model, proven to give the same logits."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.merge import merge as merge_adapter

    console.show(merge_adapter(run, output, overwrite=overwrite))


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
    from lmkit.commands.data import look

    console.show(look(recipe, overrides or ()))


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        _argument("[RECIPE]", "Prove on this recipe, in small, that the hardware changes nothing."),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, _flag("--resume", "Prove that a killed and resumed run equals one that was not.")
    ] = False,
    kills: Annotated[
        int, _number("--kills", int, 1, 8, "With --resume: how often the run is killed.")
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
        from lmkit.commands.proof import prove

        report = prove(recipe, overrides or (), resume=resume, kills=kills, seed=seed)
        console.show(report)
        if not report.is_ok:
            raise ProofFailed(f"{report.recipe}: a proof failed, see the table")
        return
    if resume:
        raise LmkitError(
            "--resume proves something of a recipe, and none was given",
            remedy="lmkit doctor RECIPE --resume",
        )
    from lmkit.commands.doctor import doctor as examine

    console.show(examine())


@app.command()
def bench(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    seconds: Annotated[
        float, _number("--seconds", float, 0.05, None, "Measured for each setting.")
    ] = 10.0,
    tried: Annotated[
        list[str] | None,
        _text(
            "--try KEY=VALUE",
            "A hardware key to compare the recipe with; repeatable. Default: lmkit's choice.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """How fast a recipe trains here, and what would make it faster; changes nothing."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.bench import bench as measure

    console.show(measure(recipe, overrides or (), seconds=seconds, tried=tried or ()))


@app.command()
def demo(
    output: Annotated[str, _text("-o --output DIR", "Where the runs go.")] = "runs/demo",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The whole way on shipped data: tokenizer, pretraining, fine-tuning, evaluation, one table."""
    _start(as_json, quiet, verbose)
    from lmkit.commands.demo import run_demo

    console.show(run_demo(output, overwrite=overwrite))


@recipes.command("list")
def recipe_list(as_json: Json = False) -> None:
    """The recipes that ship with lmkit."""
    _start(as_json)
    from lmkit.commands.recipes import list_recipes

    console.show(list_recipes())


@recipes.command("show")
def recipe_show(
    recipe: RecipeArgument,
    complete: Annotated[
        bool, _flag("--complete", "Every value that would be used, defaults included.")
    ] = False,
) -> None:
    """Print a recipe."""
    _start()
    from lmkit.commands.recipes import show_recipe

    console.say(show_recipe(recipe, complete=complete).rstrip())


@recipes.command("copy")
def recipe_copy(
    recipe: RecipeArgument, target: Annotated[str | None, _argument("[FILE]")] = None
) -> None:
    """Copy a recipe to a file of your own."""
    _start()
    from lmkit.commands.recipes import copy_recipe

    console.say(f"written: {copy_recipe(recipe, target)}")


@recipes.command("check")
def recipe_check(
    recipe: RecipeArgument, overrides: Overrides = None, as_json: Json = False
) -> None:
    """Check keys, values, model and data of a recipe, in seconds and without torch."""
    _start(as_json)
    from lmkit.commands.recipes import check_recipe

    console.show(check_recipe(recipe, overrides or ()))


@recipes.command("explain")
def recipe_explain(
    key: Annotated[str, _argument("KEY", "A dotted key, or a section: train.warmup, lora.")],
    as_json: Json = False,
) -> None:
    """What a key of a recipe does, what it expects, its default."""
    _start(as_json)
    from lmkit.commands.recipes import explain_key

    console.show(explain_key(key))


@recipes.command("schema")
def recipe_schema() -> None:
    """The JSON Schema of recipes, by which editors complete and check."""
    _start(as_json=True)
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
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error, KeyboardInterrupt):
            console.fail("interrupted")
        return 130
    except Exception as error:
        return _status_of_other(error)


def _status_of_other(error: Exception) -> int:
    """Return the status after wrong arguments, a signal, a full disk or a reader that went away (``| head``).

    Anything else is raised again.
    """
    if hasattr(error, "format_message"):  # wrong arguments, as typer raises them
        context = getattr(error, "ctx", None)
        help_line = f"\n  see: {context.command_path} --help" if context is not None else ""
        console.fail(error.format_message().rstrip().rstrip(".") + help_line)
        return 2
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if is_full(error) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        place = getattr(error, "filename", None) or "output"
        console.fail(f"{place}: {getattr(error, 'strerror', None) or error}")
        return 1
    status = getattr(error, "status", None)
    if not isinstance(status, int):
        raise error
    # Interrupted and ProcessFailed, which were said already
    if status in (130, 143) and console.is_first_process() and not console.is_started_by_lmkit():
        console.fail("interrupted; the same command with --resume goes on from the last checkpoint")
    return status
