"""Every bad input of a training or comparison: one clear message, exit code 2, nothing lost.

Most run in this process, through the same wrapper as the scripts (`exit_on_error`); a few run the
scripts themselves. Errors of settings are in test_config, of the command line in test_cli.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_support import FAST, call, quiet, settings, trained

from wemask.embedded import TINY_PATH
from wemask.errors import WemaskError
from wemask.operator.patch import WeMaskWarning
from wemask.settings.composition import exit_on_error
from wemask.train.training import train

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def refused(tmp_path: Path, capsys: Captured) -> Callable[..., str]:
    """Train as train.py does; return the message, after checking how it came."""

    def check(*words: str, out: Path = tmp_path / "out") -> str:
        before = sorted(out.rglob("*"))
        with pytest.raises(SystemExit) as end, exit_on_error():
            train(settings(*FAST, f"paths.output_dir={out}", *words), quiet())
        assert end.value.code == 2
        captured = capsys.readouterr()
        assert captured.err.count("Error: ") == 1
        assert "Traceback" not in captured.err + captured.out
        assert sorted(out.rglob("*")) == before, "a refusal must leave nothing behind"
        return captured.err.partition("Error: ")[2]

    return check


# --- data -----------------------------------------------------------------------------------------


def test_a_missing_data_file(refused: Any, tmp_path: Path) -> None:
    message = refused("data=jsonl", f"data.path={tmp_path}/train.jsonl")
    assert f"{tmp_path}/train.jsonl" in message


def test_an_empty_data_file(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    message = refused("data=jsonl", f"data.path={tmp_path}/train.jsonl")
    assert "train.jsonl" in message
    assert "empty" in message or "no record" in message.lower()


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ('{"question": "2", "answer": ', "line 2"),
        ('["not", "an", "object"]', "line 2"),
        ('{"question": "2"}', "line 2"),
        ('{"question": "", "answer": "b"}', "line 2"),
        ('{"question": 7, "answer": {"a": 1}}', "line 2"),
    ],
)
def test_a_malformed_record_is_named_by_file_and_line(
    refused: Any, tmp_path: Path, second: str, expected: str
) -> None:
    file = tmp_path / "train.jsonl"
    good = json.dumps({"question": "1 + 1?", "answer": "#### 2"})
    file.write_text(f"{good}\n{second}\n{good}\n")
    message = refused("data=jsonl", f"data.path={file}")
    assert "train.jsonl" in message
    assert expected in message


def test_columns_that_are_not_recognised(refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"foo": "a", "bar": "b"}\n')
    message = refused("data=jsonl", f"data.path={file}")
    assert "foo" in message
    assert "data.columns" in message


def test_a_broken_parquet_file(refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1 this is no parquet file")
    assert "train.parquet" in refused("data=parquet", f"data.path={file}")


def test_a_hub_dataset_that_cannot_be_reached(refused: Any) -> None:
    message = refused("data=gsm8k")
    assert "openai/gsm8k" in message
    assert "data.path=FILE" in message


# --- models ---------------------------------------------------------------------------------------


def test_a_hub_model_that_cannot_be_reached(refused: Any) -> None:
    message = refused("model=llama3")
    assert "meta-llama/Meta-Llama-3-8B" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "model.path=FOLDER" in message


def test_a_model_folder_that_does_not_exist(refused: Any, tmp_path: Path) -> None:
    assert "does not exist" in refused(f"model.path={tmp_path}/nowhere")


def test_a_folder_that_is_no_model(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "config.json was sought" in refused(f"model.path={tmp_path}/model")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    shutil.copytree(TINY_PATH, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


def test_a_model_without_weights(refused: Any, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    message = refused(f"model.path={copied}")
    assert "has no weights: model.safetensors was sought" in message


class Bomb:
    """What a malicious pickle would do: leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(refused: Any, copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({"x": Bomb(tmp_path / "exploded")}, copied / "pytorch_model.bin")
    message = refused(f"model.path={copied}")
    assert "pytorch_model.bin is a pickle" in message
    assert not (tmp_path / "exploded").exists()


def test_code_in_a_model_folder_is_not_run(refused: Any, copied: Path, tmp_path: Path) -> None:
    values = json.loads((copied / "config.json").read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    values |= {"model_type": "evil", "auto_map": names}
    (copied / "config.json").write_text(json.dumps(values))
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    message = refused(f"model.path={copied}")
    assert str(copied) in message
    assert not (tmp_path / "ran").exists()


def test_damaged_weights(refused: Any, copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cannot be loaded" in refused(f"model.path={copied}")


def test_no_massive_activation_refuses_wemask_with_a_verdict(refused: Any) -> None:
    message = refused("model.criterion.min_ratio=1e9", "method=wemask")
    assert "No ME Layer" in message
    assert "nearest miss" in message


def test_no_massive_activation_trains_when_layers_are_given(tmp_path: Path) -> None:
    words = (
        *("model.criterion.min_ratio=1e9", "operator.layers=[2,3]", "operator.tokens=first"),
        *("operator.dims=attn_norm", "trainer.max_steps=1", f"paths.output_dir={tmp_path}"),
    )
    with pytest.warns(WeMaskWarning, match="no ME Layer was detected"):
        folder = train(settings(*FAST, *words), quiet())
    assert folder is not None
    assert (folder / "final" / "wemask_config.json").exists()


@pytest.mark.parametrize("layers", ["[7]", "[2,50]"])
def test_layers_out_of_range(refused: Any, layers: str) -> None:
    message = refused(f"operator.layers={layers}")
    assert "does not exist: the model has layers 0 to" in message


def test_a_softening_that_would_touch_nothing(refused: Any) -> None:
    assert "touch" in refused("operator.layers=[0]")


# --- folders --------------------------------------------------------------------------------------


def test_a_run_folder_of_another_config(refused: Any) -> None:
    folder, _ = trained("method=sft")
    message = refused(f"paths.run_dir={folder}", "method=sft", "seed=9", out=folder)
    assert "seed: 0 there, 9 now" in message


def test_a_run_folder_that_is_a_file(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in refused(f"paths.run_dir={tmp_path}/file")
    assert (tmp_path / "file").read_text() == "mine"


# --- the wrapper and the scripts ------------------------------------------------------------------


def test_every_error_of_ours_ends_with_code_2(capsys: Captured) -> None:
    kinds = [WemaskError, *WemaskError.__subclasses__()]
    for kind in kinds:
        with pytest.raises(SystemExit) as end, exit_on_error():
            raise kind("what to do")
        assert end.value.code == 2
        assert capsys.readouterr().err == "\nError: what to do\n"


def test_ctrl_c_ends_with_code_2(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end, exit_on_error():
        raise KeyboardInterrupt
    assert end.value.code == 2
    assert "The same command resumes" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("train.py", ["trainer.max_step=3"], "Did you mean 'max_steps'?"),
        ("evaluate.py", ["arms=[bse]", "limit=2"], "Did you mean 'base'?"),
    ],
)
def test_the_scripts_end_with_one_message(
    script: str, words: list[str], expected: str, tmp_path: Path
) -> None:
    code, out, err = call(script, *words, cwd=tmp_path)
    assert code == 2, err
    assert err.count("Error: ") == 1
    assert expected in err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=llama3"], "HF_HUB_OFFLINE"),
        (["operator.rate=0"], "0 < rate <= 1"),
        (["data=jsonl", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["operator.layers=[99]"], "Layer 99 does not exist"),
        (["paths.output_dir=/dev/null/x", *FAST], "cannot be written"),
        (["method=wemsak"], "Did you mean 'wemask'?"),
    ],
    ids=str,
)
def test_train_py_ends_with_one_message(words: list[str], expected: str, tmp_path: Path) -> None:
    code, out, err = call("train.py", *words, cwd=tmp_path, env=dict(os.environ))
    assert code == 2, err
    assert err.count("Error: ") == 1
    assert expected in err
    assert "Traceback" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tasks=[gsm8k]", "tasks.gsm8k.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["tasks=[synthetc]"], "synthetic"),
        (["tasks.synthetic.limit=0"], "tasks.synthetic.limit"),
        (["limit=-1"], "limit must be at least 1"),
        (["train_missing=false"], "python train.py"),
    ],
    ids=str,
)
def test_evaluate_py_ends_with_one_message(words: list[str], expected: str, tmp_path: Path) -> None:
    code, out, err = call("evaluate.py", *FAST, *words, cwd=tmp_path, env=dict(os.environ))
    assert code == 2, err
    assert err.count("Error: ") == 1
    assert expected in err
    assert "Traceback" not in out + err
