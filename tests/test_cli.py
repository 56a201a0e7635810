import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wemask.cli import main
from wemask.detection.me_layer import MELayerReport
from wemask.embedded import TINY_PATH
from wemask.operator.patch import WeMaskWarning
from wemask.settings.model_options import ModelOptions
from wemask.version import __version__

STORIES = Path(os.environ.get("WEMASK_STORIES", "/work/shared/models/stories260K"))


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert isinstance(end.value.code, int)
    return end.value.code


# --- detect ---------------------------------------------------------------------------------------


def test_detect_prints_table_and_verdict_and_writes_report_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("detect", "--model", "tiny", "--out", str(tmp_path / "out")) == 0
    text = " ".join(capsys.readouterr().out.split())
    report = MELayerReport.load(tmp_path / "out" / "me_layer.json")
    assert report.found
    assert f"ME Layer {report.layer}" in text
    assert "Criterion: relative" in text
    assert "The other criterion" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    for figure in ("magnitude_by_layer", "relief"):
        assert [name for name in written if name.startswith(figure)]
    assert sum(str(row.dim) in text for row in report.layers) == len(report.layers)


@pytest.mark.skipif(not STORIES.exists(), reason="needs the stories260K checkpoint")
def test_detect_says_none_with_the_nearest_miss_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("detect", "--model", str(STORIES), "--out", str(tmp_path)) == 0
    assert "nearest miss" in " ".join(capsys.readouterr().out.split())
    assert not MELayerReport.load(tmp_path / "me_layer.json").found


def test_a_stricter_criterion_is_taken_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--criterion", "relative", "--min-ratio", "1e9")
    assert run("detect", "--model", "tiny", "--out", str(tmp_path), *words) == 0
    assert "nearest miss" in " ".join(capsys.readouterr().out.split())


def test_detect_goes_below_outputs_when_no_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("detect", "--model", "tiny") == 0
    assert (tmp_path / "outputs" / "detect" / "tiny" / "me_layer.json").exists()


@pytest.mark.parametrize("name", ["plain", "my models/it's = tiny"])
def test_a_copy_of_tiny_carries_its_criterion(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(TINY_PATH, tmp_path / name)
    assert run("detect", "--model", str(tmp_path / name), "--out", str(tmp_path / "out")) == 0
    assert "ME Layer 1" in capsys.readouterr().out


# --- validate -------------------------------------------------------------------------------------


def test_validate_passes_on_tiny_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", "--model", "tiny") == 0
    out = capsys.readouterr().out
    numbers = {int(line.split()[1]) for line in out.splitlines() if line.startswith("pass")}
    assert {1, 2, 3, 6, 7} <= numbers
    assert "FAIL" not in out
    assert "All passed." in out


def test_validate_fails_where_an_operator_depends_on_its_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("tokens=position0", "dims=batch_activation", "rate=0.5")
    with pytest.warns(WeMaskWarning):
        assert run("validate", "--model", "tiny", *words) == 1
    assert "FAIL" in capsys.readouterr().out


# --- report ---------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A results.json with its samples, as evaluate.py leaves them."""
    from report_cases import made_up, made_up_samples

    results: Any = made_up()
    samples = made_up_samples(results)
    for (arm, task), rows in samples.items():
        relative = f"{arm}/{task}/samples.jsonl"
        results["arms"][arm][task]["runs"][0]["samples"] = relative
        path = tmp_path / relative
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_report_renders_a_finished_comparison_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", str(finished / "results.json")) == 0
    out = "".join(capsys.readouterr().out.split())
    for name in ("report.md", "report.html"):
        assert (finished / name).exists()
        assert name in out


def test_report_without_its_items_names_the_file(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = finished / "base" / "gsm8k" / "samples.jsonl"
    missing.unlink()
    assert run("report", str(finished / "results.json")) == 2
    assert str(missing) in capsys.readouterr().err


def test_report_with_a_damaged_item_names_file_and_line(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "base" / "gsm8k" / "samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:7], *lines[2:]]))
    assert run("report", str(finished / "results.json")) == 2
    assert f"{path}, line 2" in capsys.readouterr().err


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("detect --model llama3", "HF_HUB_OFFLINE is set"),
        ("detect --model lama3", "not in the local cache"),
        ("detect --model /nowhere/model", "does not exist"),
        ("detect --model tiny --dtype float99", "float32"),
        ("detect --model tiny --out /dev/null/x", "cannot be written"),
        ("validate --model tiny rate=2", "0 < rate <= 1"),
        ("validate --model tiny rates=0.1", "Did you mean"),
        ("validate --model tiny layers=[50]", "Layer 50 does not exist"),
        ("report /nowhere/results.json", "No such file"),
        ("export /nowhere out", "holds no softened model"),
        ("merge /nowhere out", "holds no softened model"),
        ("recalibrate /nowhere", "holds no softened model"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.count("Error: ") == 1
    assert expected in captured.err
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.parametrize(
    "words", ["", "detct", "detect", "detect --model tiny --criterion foo", "report", "export a"]
)
def test_a_wrong_command_line_shows_the_usage(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words.split()) == 2
    assert capsys.readouterr().err.startswith("Usage: wemask")


COMMANDS = ("", "detect ", "analyse ", "validate ", "compare ", "report ", "export ", "merge ")
COMMANDS += ("recalibrate ", "submit ", "status ", "dashboard ")


@pytest.mark.parametrize("words", [f"{command}--help" for command in COMMANDS])
def test_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words.split()) == 0
    assert "Usage: wemask" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"wemask {__version__}\n"


def test_quiet_says_nothing_but_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--quiet", "detect", "--model", "tiny", "--out", str(tmp_path)) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "me_layer.json").exists()
    assert run("--quiet", "report", "/nowhere/results.json") == 2
    assert "No such file" in capsys.readouterr().err


def test_an_odd_wandb_mode_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "odd")
    out = tmp_path / "out"
    assert run("analyse", "--model", "tiny", "--out", str(out), "--wandb", "p") == 2
    assert "WANDB_MODE is one of offline, online, disabled, got 'odd'" in capsys.readouterr().err
    assert not out.exists()


def test_an_interruption_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: ModelOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelOptions, "config", interrupt)
    assert run("detect", "--model", "tiny") == 2
    assert capsys.readouterr().err.strip() == "Interrupted. The same command resumes."


def test_the_shell_completes_commands_and_names_of_models() -> None:
    def completed(line: str) -> list[str]:
        asked = {"_WEMASK_COMPLETE": "complete_bash", "COMP_WORDS": line}
        asked["COMP_CWORD"] = str(len(line.split()))
        command = [sys.executable, "-m", "wemask.cli"]
        environment = {**os.environ, **asked}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        return done.stdout.split()

    assert completed("wemask ") == [word.strip() for word in COMMANDS if word]
    assert {"tiny", "llama3"} <= set(completed("wemask detect --model "))


def test_help_waits_for_no_torch() -> None:
    code = "import sys, wemask.cli\ntry: wemask.cli.main(['detect', '--help'])\nfinally: "
    code += "assert not {'torch', 'transformers', 'datasets', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "experiments"),
    [
        ("", ("all",)),
        ("rate=0.2", ("all",)),
        ("--experiments dose necessity rate=0.2", ("dose", "necessity")),
        ("rate=0.2 --experiments dose,necessity", ("dose", "necessity")),
        ("--experiments dose --experiments necessity operator.rate=0.2", ("dose", "necessity")),
        ("--experiments none --count 3 rate=0.2", ("none",)),
    ],
)
def test_experiments_and_settings_are_told_apart(
    words: str, experiments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wemask.analyse import analysis

    seen: list[Any] = []

    def analyse(model: Any, tokenizer: Any, report: Any, asked: Any, **more: Any) -> str:
        seen.append(asked)
        return "page"

    monkeypatch.setattr(analysis, "analyse", analyse)
    assert run("analyse", "--model", "tiny", *words.split()) == 0
    (asked,) = seen
    assert asked.experiments == experiments
    assert (asked.operator.rate == 0.2) == ("rate" in words)
    assert asked.count == (3 if "--count" in words else 64)
