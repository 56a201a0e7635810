"""An arm under the settings of a run: its operator, its seed, and when its results are others."""

from pathlib import Path

import pytest

from wemask.evaluate.arm_run import ArmRun
from wemask.evaluate.arms import ARMS
from wemask.settings.composition import compose
from wemask.settings.config import run_config


def run_of(name: str, folder: Path, *overrides: str) -> ArmRun:
    words = ("debug=fast", "logger=none", f"paths.output_dir={folder}", *overrides)
    return ArmRun.of(name, run_config(compose("train", words)))


@pytest.mark.parametrize("name", ARMS)
def test_the_operator_is_on_where_the_arm_is_softened(name: str, tmp_path: Path) -> None:
    run = run_of(name, tmp_path)
    softened = ARMS[name].method in ("training_free", "wemask") or ARMS[name].softened_after
    assert (run.operator is not None) == softened
    assert (run.seed is not None) == (ARMS[name].method in ("sft", "wemask") or ARMS[name].drawn)
    for key, value in ARMS[name].changes.items():
        assert getattr(run.config.operator, key) == value


def test_its_own_words_are_on_the_command_line_that_resumes_it(tmp_path: Path) -> None:
    run = run_of("random_dims_sft", tmp_path, "seed=3")
    assert run.words[0] == "method=wemask"
    assert {"operator.dims=random", "operator.seed=3"} <= {*run.words}
    assert run.config.typed[-len(run.words) :] == (*run.words,)


def test_seeds_are_repetitions_and_other_settings_are_not(tmp_path: Path) -> None:
    one, other = (run_of("wemask_sft", tmp_path, f"seed={seed}") for seed in (0, 1))
    assert one.settings() == other.settings()
    assert one.fingerprint() != other.fingerprint()
    assert one.settings() != run_of("wemask_sft", tmp_path, "operator.rate=0.5").settings()
    drawn, again = (run_of("random_dims", tmp_path, f"seed={seed}") for seed in (0, 1))
    assert (drawn.seed, again.seed) == (0, 1)
    assert drawn.settings() == again.settings()
    assert "seed" not in drawn.settings()["operator"]


def test_a_run_that_was_trained_again_has_another_fingerprint(tmp_path: Path) -> None:
    run = run_of("sft", tmp_path)
    assert run.missing and not run_of("base", tmp_path).missing
    before = run.fingerprint()
    run.final.mkdir(parents=True)
    (run.final / "model.safetensors").write_bytes(b"weights")
    assert not run.missing
    assert run.fingerprint() != before


def test_what_is_said_of_an_arm_is_plain_and_whole(tmp_path: Path) -> None:
    run = run_of("sft_then_wemask", tmp_path)
    about = run.about({"layers": 1})
    assert (about["arm"], about["method"]) == ("sft_then_wemask", "sft")
    assert about["operator"] == run.config.operator.to_dict()
    assert about["run_folder"] == str(run.config.folder())
    assert about["budget"] == {"layers": 1}
    assert run.folder == run.config.folder() / "softened"
    assert run_of("base", tmp_path).about(None)["run_folder"] is None
