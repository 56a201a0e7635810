import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wemask import cli, cli_model
from wemask.cli import main
from wemask.detection.me_layer import MELayerReport
from wemask.embedded import TINY_PATH
from wemask.operator.patch import WeMaskWarning

STORIES = Path(os.environ.get("WEMASK_STORIES", "/work/shared/models/stories260K"))


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert isinstance(end.value.code, int)
    return end.value.code


def model_config(*words: str) -> Any:
    return cli_model.model_config(cli._parser().parse_args(["detect", *words]))


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


# --- options --------------------------------------------------------------------------------------


def test_a_known_name_has_the_settings_of_its_file() -> None:
    config = model_config("--model", "tiny")
    assert config.criterion.name == "relative"
    assert config.dtype == "float32"


def test_a_folder_or_hub_name_is_any_other_model() -> None:
    config = model_config("--model", "ORG/NAME", "--dtype", "bfloat16", "--revision", "123")
    assert (config.path, config.name) == ("ORG/NAME", "NAME")
    assert (config.dtype, config.revision) == ("bfloat16", "123")
    assert config.criterion is None  # the model's own, which is not loaded here
    assert not config.trust_remote_code


def test_remote_code_only_on_request() -> None:
    assert model_config("--model", "a/b", "--trust-remote-code").trust_remote_code


def test_the_options_of_the_criterion() -> None:
    def arguments(*words: str) -> dict[str, Any]:
        options = cli._parser().parse_args(["detect", *words])
        return cli_model.detection_arguments(options, cli_model.model_config(options))

    reading = {"texts": None, "chats": True}
    sun = arguments("--model", "tiny", "--criterion", "sun2024")
    assert sun == {**reading, "criterion": "sun2024"}
    own = arguments("--model", "tiny", "--min-jump", "2")["criterion"]
    assert (own.name, own.min_ratio, own.min_jump) == ("relative", 60, 2)
    assert arguments("--model", "a/b", "--min-ratio", "9") == {**reading, "min_ratio": 9}


def test_texts_and_chats_of_detection(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("One text.\n\nAnother.\n")
    words = ["--model", "tiny", "--calibration", str(tmp_path / "texts.txt"), "--no-chats"]
    options = cli._parser().parse_args(["detect", *words])
    given = cli_model.detection_arguments(options, cli_model.model_config(options))
    assert (given["texts"], given["chats"]) == (["One text.", "Another."], False)


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
        ("report /nowhere/results.json", "no such file"),
        ("export /nowhere out", "holds no softened model"),
        ("merge /nowhere out", "holds no softened model"),
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
    assert capsys.readouterr().err.startswith("usage: wemask")


COMMANDS = ("", "detect ", "validate ", "report ", "export ", "merge ")


@pytest.mark.parametrize("words", [f"{command}--help" for command in COMMANDS])
def test_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words.split()) == 0
    assert "usage: wemask" in capsys.readouterr().out
