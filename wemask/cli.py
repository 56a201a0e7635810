"""`wemask detect | validate | compare | report | export | ...`: what needs no training."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from wemask.cli_model import detection_arguments, load, model_options, model_overrides
from wemask.errors import ConfigError, DataError
from wemask.files import say
from wemask.settings.composition import compose, exit_on_error, section

WANDB = "log to W&B (offline unless WANDB_MODE=online)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `wemask` command; exits with 2 and one message on a user's error."""
    options = _parser().parse_args(arguments)
    with exit_on_error():
        sys.exit(options.run(options, Console()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wemask",
        description="Find massive activations in a language model, and check their softening.",
        epilog="Fine-tune with python train.py, compare with python evaluate.py.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    detect = commands.add_parser(
        "detect",
        help="find the ME Layer: per-layer table, verdict, me_layer.json, two figures",
        description="Find the decoder layer where massive activations are born.",
    )
    model_options(detect)
    detect.add_argument("--out", type=Path, help="folder to write to [outputs/detect/NAME]")
    detect.set_defaults(run=_detect)
    _analyse_command(commands)
    validate = commands.add_parser(
        "validate",
        help="run the operator's self-test on a model, pass or fail per line",
        description="Check the operator's contract on a model: identity at strength 0, padding, "
        "KV cache, save and load, and that it fires at all.",
    )
    model_options(validate)
    _operator_words(validate)
    validate.set_defaults(run=_validate)
    compare = commands.add_parser(
        "compare",
        help="one report of any finished runs that were asked the same",
        description="Compare finished runs item by item: folders of comparisons that evaluate.py "
        "wrote, or of runs that it evaluated. Runs that differ in their seed only are one arm. "
        "Other items, prompts or engine are refused.",
    )
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder of outputs/")
    compare.add_argument("--out", type=Path, help="folder to write to [outputs/compare/HASH]")
    compare.add_argument("--wandb", metavar="PROJECT", help=WANDB)
    compare.set_defaults(run=_compare)
    report = commands.add_parser(
        "report",
        help="write report.md, report.html and figures again from a results.json",
        description="Render a finished comparison again.",
    )
    report.add_argument("results", type=Path, help="a results.json that evaluate.py wrote")
    report.set_defaults(run=_report)
    _folder_commands(commands)
    _slurm_commands(commands)
    dashboard = commands.add_parser(
        "dashboard",
        help="lay out the W&B workspace of a project",
        description="Build a W&B workspace with panels for the keys that wemask logs. Needs a "
        "network, a W&B login and pip install 'wemask[dashboard]'.",
    )
    dashboard.add_argument("--project", default="wemask", help="W&B project [wemask]")
    dashboard.add_argument("--entity", required=True, help="W&B user or team")
    dashboard.add_argument("--tasks", nargs="+", default=["synthetic"], help="[synthetic]")
    dashboard.add_argument("--dry-run", action="store_true", help="list the panels, send nothing")
    dashboard.set_defaults(run=_dashboard)
    return parser


def _analyse_command(commands: Any) -> None:
    analyse = commands.add_parser(
        "analyse",
        help="all metrics and causal experiments: tables, figures and one page",
        description="Measure massive activations, sinks, rigidity and diversity of a model, "
        "softening off and on, and intervene: is the ME Layer the cause, is the softening "
        "specific? Every measurement is kept, so the same command goes on where it was stopped.",
    )
    model_options(analyse)
    analyse.add_argument(
        "--experiments",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="necessity, sufficiency, location, specificity, dose, quadratic; all or none [all]",
    )
    analyse.add_argument("--texts", type=Path, help=".txt or data file [embedded word problems]")
    analyse.add_argument("--column", help="of a data file [text, else all that hold text]")
    analyse.add_argument("--count", type=int, default=64, help="texts at most [64]")
    analyse.add_argument("--length", type=int, default=64, help="tokens of each at most [64]")
    analyse.add_argument("--batch-size", type=int, default=8, help="texts per forward [8]")
    analyse.add_argument("--out", type=Path, help="folder [outputs/analyse/NAME__HASH]")
    analyse.add_argument("--wandb", metavar="PROJECT", help=WANDB)
    _operator_words(analyse)
    analyse.set_defaults(run=_analyse)


def _operator_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "operator",
        nargs="*",
        metavar="KEY=VALUE",
        help="operator settings, e.g. rate=0.01 tokens=primary layers=[2,3]",
    )


def _folder_commands(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a softened model that loads where wemask is not installed",
        description="Write a folder that from_pretrained(..., trust_remote_code=True) loads with "
        "the softening on. An adapter is merged into its base model.",
    )
    export.add_argument("folder", type=Path, help="a run folder, or what wemask.save wrote")
    export.add_argument("out", type=Path, help="a new folder")
    export.add_argument("--plain", action="store_true", help="without the operator: a stock model")
    export.set_defaults(run=_export)
    merge = commands.add_parser(
        "merge",
        help="merge a softened adapter into its base model",
        description="LoRA folder and operator -> one whole softened model.",
    )
    merge.add_argument("folder", type=Path, help="a run folder, or an adapter that was saved")
    merge.add_argument("out", type=Path, help="a new folder")
    merge.set_defaults(run=_merge)


def _slurm_commands(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="submit a training as a Slurm job: train.py launcher=slurm",
        description="Write an sbatch script into the run folder and submit it. Sweeps "
        "(-m seed=0,1,2) become one job array; the evaluation follows the training.",
    )
    submit.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    submit.add_argument("-m", "--multirun", action="store_true", help="a sweep: one job array")
    submit.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="KEY=VALUE", help="settings, as for train.py"
    )
    submit.set_defaults(run=_submit)
    status = commands.add_parser(
        "status",
        help="state of a run: queue, last step, loss, time left",
        description="Say what Slurm's queue and the run folder know of a run.",
    )
    status.add_argument("folder", type=Path, metavar="RUNFOLDER")
    status.set_defaults(run=_status)


def _submit(options: argparse.Namespace, console: Console) -> int:
    from wemask.settings.composition import script_path

    words = [word for word in options.words if word != "--dry-run"]
    options.dry_run |= len(words) < len(options.words)
    if not any(word.startswith("launcher=") for word in words):
        words.insert(0, "launcher=slurm")
    words += ["dry_run=true"] if options.dry_run else []
    words += ["-m"] if options.multirun else []
    script = str(script_path("train.py"))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, script, *words])


def _status(options: argparse.Namespace, console: Console) -> int:
    from wemask.launch.slurm_queue import status

    for name, value in status(options.folder):
        say(console, f"{name:<13}{value}")
    return 0


def _detect(options: argparse.Namespace, console: Console) -> int:
    from wemask.detection.detect import detect
    from wemask.detection.known_models import compare_with_published
    from wemask.files import saving
    from wemask.report import plots
    from wemask.report.relief import relief
    from wemask.train.summary import layer_table

    config, model, tokenizer = load(options)
    say(console, f"Model: {config.source}")
    report = detect(model, tokenizer, **detection_arguments(options, config))
    console.print(layer_table(report))
    console.print(report.verdict, style="bold", highlight=False, markup=False)
    say(console, f"Criterion: {report.criterion.name}, {report.criterion.describe()}.")
    say(console, f"The other criterion: {report.other_criterion}.")
    if report.found:
        if report.others:
            say(console, f"Others emerge at {report.others}.")
        say(console, f"Massive tokens can be told {report.told}.")
    if published := compare_with_published(config.stands_for or config.path, report):
        console.print(published)
    folder = options.out or Path("outputs") / "detect" / config.name
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        report.save(folder / "me_layer.json")
        written = [folder / "me_layer.json"]
        for name, draw in (
            ("magnitude_by_layer", plots.magnitude_by_layer),
            ("relief", relief),
        ):
            written += plots.save_figure(draw(report), folder / name)
    say(console, "Written: " + ", ".join(str(path) for path in written))
    return 0


def _operator(options: argparse.Namespace) -> Any:
    """The operator's settings, with those of the command line."""
    from wemask.operator.settings import WeMaskConfig

    settings = [setting.removeprefix("operator.") for setting in options.operator]
    overrides = model_overrides(options.model) + [f"operator.{setting}" for setting in settings]
    return WeMaskConfig.from_dict(section(compose("train", overrides), "operator"))


def _analyse(options: argparse.Namespace, console: Console) -> int:
    from wemask.analyse.analysis import AnalysisConfig, analyse
    from wemask.detection.detect import detect

    # `--experiments dose rate=0.1` takes the operator's words as well: they are those with a "=".
    words = [word for text in options.experiments for word in text.split(",") if word]
    options.operator += [word for word in words if "=" in word]
    analysis = AnalysisConfig(
        experiments=tuple(word for word in words if "=" not in word),
        texts=options.texts,
        column=options.column,
        count=options.count,
        length=options.length,
        batch_size=options.batch_size,
        operator=_operator(options),
    )
    config, model, tokenizer = load(options)
    report = detect(model, tokenizer, **detection_arguments(options, config))
    say(console, report.verdict)
    page = analyse(
        model,
        tokenizer,
        report,
        analysis,
        name=config.name,
        folder=options.out,
        command=shlex.join(["wemask", *sys.argv[1:]]),
        logger=_logger(options),
        console=console,
    )
    say(console, f"Written: {page}, with tables/ and figures/ beside it.")
    return 0


def _validate(options: argparse.Namespace, console: Console) -> int:
    from wemask.checkpoint.contract import validate
    from wemask.detection.detect import detect

    operator = _operator(options)
    config, model, tokenizer = load(options)
    report = detect(model, tokenizer, **detection_arguments(options, config))
    console.print(report.verdict, markup=False)
    failed = 0
    for check in validate(model, tokenizer, report, operator, chats=not options.no_chats):
        word = "[green]pass[/green]" if check.passed else "[red]FAIL[/red]"
        console.print(f"{word}  {check.number}  {check.name}  [dim]{escape(check.detail)}[/dim]")
        failed += not check.passed
    console.print(f"{failed} failed." if failed else "All passed.")
    return 1 if failed else 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    from wemask.files import digest
    from wemask.study import compare_runs

    places = [str(path.resolve()) for path in options.runs]
    out = options.out or Path("outputs") / "compare" / digest(places)
    words = ["wemask", "compare", *map(str, options.runs)]
    if options.wandb:
        words += ["--wandb", options.wandb]
    compare_runs(
        options.runs, out, command=shlex.join(words), logger=_logger(options), console=console
    )
    return 0


def _logger(options: argparse.Namespace) -> dict[str, Any]:
    """What `--wandb PROJECT` means."""
    if not options.wandb:
        return {"name": "none"}
    mode = os.environ.get("WANDB_MODE", "offline")
    return {"name": "wandb", "project": options.wandb, "mode": mode}


def _report(options: argparse.Namespace, console: Console) -> int:
    from wemask.compare.results import load_results
    from wemask.files import saving
    from wemask.report.report import read_detection, write_report

    results = load_results(options.results)
    folder = options.results.parent
    samples = {
        (arm, task): _read_samples(folder / score["runs"][0]["samples"])
        for arm, tasks in results["arms"].items()
        for task, score in tasks.items()
    }
    report = read_detection(results["me_layer"], [folder])
    with saving(folder):
        for path in write_report(results, folder, report, samples):
            say(console, str(path))
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    from wemask.checkpoint.export import export, final_folder
    from wemask.checkpoint.save_load import is_adapter
    from wemask.files import saving

    with saving(options.out):
        export(options.folder, options.out, plain=options.plain)
    adapter = is_adapter(final_folder(options.folder))
    if options.plain:
        kind = "adapter" if adapter else "model"
        note = f"The operator was left out: a stock {kind} with the same weights, NOT softened."
    else:
        merged = "The adapter was merged into its base model. " if adapter else ""
        note = merged + (
            "Load it: AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True), or "
            "wemask.load(FOLDER)."
        )
    say(console, f"Written: {options.out}. {note}")
    return 0


def _merge(options: argparse.Namespace, console: Console) -> int:
    from wemask.checkpoint.export import final_folder
    from wemask.checkpoint.save_load import merge
    from wemask.files import saving

    with saving(options.out):
        merge(final_folder(options.folder), options.out)
    say(console, f"Written: {options.out}, a whole softened model: wemask.load(FOLDER) loads it.")
    return 0


def _dashboard(options: argparse.Namespace, console: Console) -> int:
    from wemask.report.dashboard import sections, workspace

    built = workspace(options.project, options.entity, options.tasks)
    for name, panels in sections(options.tasks).items():
        for title, keys in panels.items():
            say(console, f"{name} | {title}: {', '.join(keys)}")
    if not options.dry_run:
        try:
            built.save()
        # W&B has many errors of its own: no login, no network, no such team.
        except Exception as error:
            raise ConfigError(
                f"W&B refused the workspace of {options.entity}/{options.project}: {error}. Log in "
                "(wandb login), and see that the entity exists."
            ) from error
        say(console, f"Saved: {built.url}")
    return 0


def _read_samples(path: Path) -> list[Any]:
    import json

    if not path.exists():
        raise DataError(f"{path} was sought (the items of an arm) and not found.")
    samples = []
    with path.open(encoding="utf-8") as lines:  # splitlines() would split inside strings
        for number, line in enumerate(lines, 1):
            try:
                samples.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from error
    return samples


if __name__ == "__main__":
    main()
