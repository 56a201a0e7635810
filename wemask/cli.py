"""`wemask detect | validate | compare | report | export | ...`: what needs no training."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer import Argument, Option

from wemask import terminal
from wemask.errors import ConfigError
from wemask.files import digest, saving, say
from wemask.settings.composition import compose, exit_on_error, script_path, section
from wemask.settings.model_options import ModelOptions, model_overrides, takes_model
from wemask.version import __version__

app = typer.Typer(
    help="Find massive activations in a language model, and check their softening.",
    epilog="Fine-tune with python train.py, compare with python evaluate.py. What goes to stdout "
    "and stderr, and what exit codes mean: docs/terminal.md.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
OPERATOR = "operator settings, e.g. rate=0.01 tokens=primary layers=[2,3]"
EXPERIMENTS_HELP = (
    "necessity, sufficiency, location, specificity, dose, quadratic; all or none [all]"
)
OF_TRAINING = "settings, as for train.py"
WANDB = "log to W&B (offline unless WANDB_MODE=online)"
Words = Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=OPERATOR)]
Wandb = Annotated[str | None, Option(metavar="PROJECT", help=WANDB)]
NewFolder = Annotated[Path, Argument(help="a new folder")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `wemask` command; exits with 2 and one message on a user's error."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    words.sort(key=lambda word: word not in terminal.QUIET)  # also where it stands last
    with exit_on_error(), terminal.session():
        app(words, prog_name="wemask")


def _version(asked: bool) -> None:
    """Print the version and end, where it is asked for."""
    if asked:
        typer.echo(f"wemask {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    quiet: Annotated[bool, Option("--quiet", "-q", help="no results, no progress")] = False,
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    if quiet:
        terminal.be_quiet()
    context.obj = Console()
    context.with_resource(exit_on_error())  # around the command


def _detected(chosen: ModelOptions, console: Console) -> tuple[Any, Any, Any, Any]:
    """The settings, the model and the tokenizer that were chosen, and what detection reports."""
    from wemask.checkpoint.pretrained import load_both
    from wemask.detection.detect import detect

    config = chosen.config()
    reading = chosen.detection_arguments(config)  # a file that cannot be read, before the weights
    model, tokenizer = load_both(config)
    say(console, f"Model: {config.source}")
    return config, model, tokenizer, detect(model, tokenizer, **reading)


@app.command("detect")
@takes_model
def _detect(
    context: typer.Context,
    chosen: ModelOptions,
    out: Annotated[Path | None, Option(help="folder to write to [outputs/detect/NAME]")] = None,
) -> None:
    """Find the ME Layer: per-layer table, verdict, me_layer.json, two figures."""
    from wemask.detection.known_models import compare_with_published
    from wemask.report.detection_plots import magnitude_by_layer, relief
    from wemask.report.style import save_figure
    from wemask.train.summary import layer_table

    console = context.obj
    config, _, _, report = _detected(chosen, console)
    console.print(layer_table(report))
    console.print(report.verdict, style="bold", highlight=False, markup=False)
    say(console, f"Criterion: {report.criterion.name}, {report.criterion.describe()}.")
    say(console, f"The other criterion: {report.other_criterion}.")
    if report.found and report.others:
        say(console, f"Others emerge at {report.others}.")
    if report.found:
        say(console, f"Massive tokens can be told {report.told}.")
    if published := compare_with_published(config.stands_for or config.path, report):
        console.print(published)
    folder = out or Path("outputs") / "detect" / config.name
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        report.save(folder / "me_layer.json")
        written = [folder / "me_layer.json"]
        for name, draw in (("magnitude_by_layer", magnitude_by_layer), ("relief", relief)):
            written += save_figure(draw(report), folder / name)
    say(console, "Written: " + ", ".join(str(path) for path in written))


@app.command("analyse")
@takes_model
def _analyse(
    context: typer.Context,
    chosen: ModelOptions,
    words: Words = None,
    experiments: Annotated[list[str] | None, Option(metavar="NAME", help=EXPERIMENTS_HELP)] = None,
    texts: Annotated[Path | None, Option(help=".txt or data file [word problems]")] = None,
    column: Annotated[str | None, Option(help="[text, else all that hold text]")] = None,
    count: Annotated[int, Option(help="texts at most")] = 64,
    length: Annotated[int, Option(help="tokens of each at most")] = 64,
    batch_size: Annotated[int, Option(help="texts per forward")] = 8,
    out: Annotated[Path | None, Option(help="folder [outputs/analyse/NAME__HASH]")] = None,
    wandb: Wandb = None,
) -> None:
    """Measure all metrics, do causal experiments: tables, figures and one page.

    Massive activations, sinks, rigidity and diversity of a model, softening off and on; and
    interventions: is the ME Layer the cause, is the softening specific? Every measurement is kept,
    so the same command goes on where it was stopped.
    """
    from wemask.analyse.analysis import AnalysisConfig, analyse

    # `--experiments dose necessity rate=0.1`: settings are the words with a "=".
    given = [word for text in experiments or () for word in text.split(",") if word]
    given += words or ()
    analysis = AnalysisConfig(
        experiments=tuple(word for word in given if "=" not in word) or ("all",),
        texts=texts,
        column=column,
        count=count,
        length=length,
        batch_size=batch_size,
        operator=_operator(chosen.model, [word for word in given if "=" in word]),
    )
    config, model, tokenizer, report = _detected(chosen, context.obj)
    say(context.obj, report.verdict)
    page = analyse(
        model,
        tokenizer,
        report,
        analysis,
        name=config.name,
        folder=out,
        command=shlex.join(["wemask", *sys.argv[1:]]),
        logger=_logger(wandb),
        console=context.obj,
    )
    say(context.obj, f"Written: {page}, with tables/ and figures/ beside it.")


def _operator(model: str, words: Sequence[str]) -> Any:
    """The operator's settings, with those of the command line."""
    from wemask.operator.settings import WeMaskConfig

    overrides = [f"operator.{word.removeprefix('operator.')}" for word in words]
    composed = compose("train", model_overrides(model) + overrides)
    return WeMaskConfig.from_dict(section(composed, "operator"))


def _logger(project: str | None) -> dict[str, Any]:
    """What `--wandb PROJECT` means."""
    if not project:
        return {"name": "none"}
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode not in (modes := ("offline", "online", "disabled")):  # now, not after the work
        raise ConfigError(f"WANDB_MODE is one of {', '.join(modes)}, got {mode!r}.")
    return {"name": "wandb", "project": project, "mode": mode}


@app.command("validate")
@takes_model
def _validate(context: typer.Context, chosen: ModelOptions, words: Words = None) -> None:
    """Run the operator's self-test on a model, pass or fail per line.

    Its contract: identity at strength 0, padding, KV cache, save and load, and that it fires at
    all.
    """
    from wemask.checkpoint.contract import validate

    console, operator = context.obj, _operator(chosen.model, words or ())
    _, model, tokenizer, report = _detected(chosen, console)
    console.print(report.verdict, markup=False)
    failed = 0
    for check in validate(model, tokenizer, report, operator, chats=not chosen.no_chats):
        word = "[green]pass[/green]" if check.passed else "[red]FAIL[/red]"
        console.print(f"{word}  {check.number}  {check.name}  [dim]{escape(check.detail)}[/dim]")
        failed += not check.passed
    console.print(f"{failed} failed." if failed else "All passed.")
    raise typer.Exit(1 if failed else 0)


@app.command("compare")
def _compare(
    context: typer.Context,
    runs: Annotated[list[Path], Argument(metavar="RUN", help="a folder of outputs/")],
    out: Annotated[Path | None, Option(help="folder to write to [outputs/compare/HASH]")] = None,
    wandb: Wandb = None,
) -> None:
    """Write one report of any finished runs that were asked the same.

    They are compared item by item: folders of comparisons that evaluate.py wrote, or of runs that
    it evaluated. Runs that differ in their seed only are one arm. Other items, prompts or engine
    are refused.
    """
    from wemask.study import compare_runs

    out = out or Path("outputs") / "compare" / digest([os.path.realpath(path) for path in runs])
    words = ["wemask", "compare", *map(str, runs), *(["--wandb", wandb] if wandb else [])]
    compare_runs(runs, out, command=shlex.join(words), logger=_logger(wandb), console=context.obj)


@app.command("report")
def _report(
    context: typer.Context,
    results: Annotated[Path, Argument(help="a results.json that evaluate.py wrote")],
) -> None:
    """Write report.md, report.html and figures again from a results.json."""
    from wemask.compare.results import load_results
    from wemask.evaluate.tasks.stored import read_samples
    from wemask.report.report import read_detection, write_report

    values, folder = load_results(results), results.parent
    samples = {
        (arm, task): read_samples(folder / score["runs"][0]["samples"])
        for arm, tasks in values["arms"].items()
        for task, score in tasks.items()
    }
    report = read_detection(values["me_layer"], [folder])
    with saving(folder):
        for path in write_report(values, folder, report, samples):
            say(context.obj, str(path))


@app.command("export")
def _export(
    context: typer.Context,
    folder: Annotated[Path, Argument(help="a run folder, or what wemask.save wrote")],
    out: NewFolder,
    plain: Annotated[bool, Option("--plain", help="without the operator: a stock model")] = False,
) -> None:
    """Write a softened model that loads where wemask is not installed.

    from_pretrained(..., trust_remote_code=True) loads it with the softening on. An adapter is
    merged into its base model.
    """
    from wemask.checkpoint.export import export, final_folder
    from wemask.checkpoint.save_load import is_adapter

    with saving(out):
        export(folder, out, plain=plain)
    adapter = is_adapter(final_folder(folder))
    if plain:
        kind = "adapter" if adapter else "model"
        note = f"The operator was left out: a stock {kind} with the same weights, NOT softened."
    else:
        merged = "The adapter was merged into its base model. " if adapter else ""
        note = merged + (
            "Load it: AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True), or "
            "wemask.load(FOLDER)."
        )
    say(context.obj, f"Written: {out}. {note}")


@app.command("merge")
def _merge(
    context: typer.Context,
    folder: Annotated[Path, Argument(help="a run folder, or an adapter that was saved")],
    out: NewFolder,
) -> None:
    """Merge a softened adapter into its base model: one whole softened model."""
    from wemask.checkpoint.export import final_folder
    from wemask.checkpoint.save_load import merge

    with saving(out):
        merge(final_folder(folder), out)
    say(context.obj, f"Written: {out}, a whole softened model: wemask.load(FOLDER) loads it.")


@app.command("recalibrate")
def _recalibrate(
    context: typer.Context,
    folder: Annotated[
        Path, Argument(metavar="RUN", help="a run folder, or a model that was saved")
    ],
) -> None:
    """Calibrate a finished run's gates again, on its trained weights.

    Opens also a run whose softening touches nothing. It reads what detection read in training, says
    what moved, and writes wemask_config.json; what that said before is kept in it.
    """
    from wemask.train.recalibration import recalibrate_run

    with saving(folder):
        recalibrate_run(folder, context.obj)


@app.command("submit", context_settings={"ignore_unknown_options": True})
def _submit(
    words: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=OF_TRAINING)] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print the script, submit nothing")] = False,
    multirun: Annotated[bool, Option("-m", "--multirun", help="a sweep: one job array")] = False,
) -> None:
    """Submit a training as a Slurm job: train.py launcher=slurm.

    Writes an sbatch script into the run folder and submits it. Sweeps (-m seed=0,1,2) become one
    job array; the evaluation follows the training.
    """
    words = [*(words or ()), *["dry_run=true"] * dry_run, *["-m"] * multirun]
    if not any(word.startswith("launcher=") for word in words):
        words.insert(0, "launcher=slurm")
    sys.stdout.flush()
    os.execv(
        sys.executable, [sys.executable, str(script_path("train.py")), *terminal.flags(), *words]
    )


@app.command("status")
def _status(context: typer.Context, folder: Annotated[Path, Argument(metavar="RUNFOLDER")]) -> None:
    """Say what Slurm's queue and the run folder know of a run: last step, loss, time left."""
    from wemask.launch.slurm_queue import status

    for name, value in status(folder):
        say(context.obj, f"{name:<13}{value}")


@app.command("dashboard")
def _dashboard(
    context: typer.Context,
    entity: Annotated[str, Option(help="W&B user or team")],
    project: Annotated[str, Option(help="W&B project")] = "wemask",
    tasks: Annotated[list[str] | None, Option(show_default="synthetic")] = None,
    more: Annotated[list[str] | None, Argument(hidden=True)] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="list the panels, send nothing")] = False,
) -> None:
    """Lay out the W&B workspace of a project, with panels for the keys that wemask logs.

    Needs a network, a W&B login and pip install 'wemask[dashboard]'.
    """
    from wemask.report.dashboard import sections, workspace

    names = [*(tasks or ()), *(more or ())] or ["synthetic"]  # `--tasks gsm8k math500`
    built = workspace(project, entity, names)
    for name, panels in sections(names).items():
        for title, keys in panels.items():
            say(context.obj, f"{name} | {title}: {', '.join(keys)}")
    if dry_run:
        return
    try:
        built.save()
    # W&B has many errors of its own: no login, no network, no such team.
    except Exception as error:
        raise ConfigError(
            f"W&B refused the workspace of {entity}/{project}: {error}. Log in (wandb login), and "
            "see that the entity exists."
        ) from error
    say(context.obj, f"Saved: {built.url}")


if __name__ == "__main__":
    main()
