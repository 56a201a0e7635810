"""Each engine on two CPU ranks trains what one process trains: losses, operator, weights, resume.

Tolerances are relative: fp32 1e-5 (measured: 1.4e-6), bf16 2e-2 (DeepSpeed keeps bf16 weights
with fp32 masters, one process keeps fp32 weights under autocast).
"""

import json
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from engine_support import ENGINES, RUNS, alone, is_fsdp, lines_of, on_two_ranks, words

import wemask
from wemask.checkpoint.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 4
CLOSE = {"full": 1e-5, "lora": 1e-5, "bf16": 2e-2}
HAS_DEEPSPEED = find_spec("deepspeed") is not None
MEASURED = ("loss", "wemask/massive_max", "wemask/sink_mass", "wemask/strength")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("zero"):
        pytest.importorskip("deepspeed")
    return request.param


@cache
def launched(fsdp: bool, folder: Path) -> str:
    """Run all engines in one launch, since a start takes longer than four steps; what was said."""
    engines = [e for e in ENGINES if is_fsdp(e) == fsdp and (HAS_DEEPSPEED or "zero" not in e)]
    runs = [words(e, run, folder / e) for e in engines for run in RUNS]
    done = on_two_ranks(engines[0], runs)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("second")


@pytest.fixture
def place(engine: str, first: Path) -> Path:
    """Trained by this engine."""
    launched(is_fsdp(engine), first)
    return first / engine


@cache
def half_done(first: Path, folder: Path, fsdp: bool) -> None:
    """What a kill after the first checkpoint leaves of each run."""
    for path in first.glob("*/*"):
        if is_fsdp(path.parent.name) == fsdp:
            copy = folder / path.parent.name / path.name
            shutil.copytree(path, copy)
            shutil.rmtree(copy / "final")
            shutil.rmtree(copy / "checkpoints" / "checkpoint-4")


def compare(run: str, found: Path, wanted: Path) -> None:
    ours, theirs = lines_of(found), lines_of(wanted)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [0, 1, 2, 3, 4]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["wemask/tokens_touched"] == other["wemask/tokens_touched"] > 0
        for key in (key for key in MEASURED if key in other):
            assert mine[key] == pytest.approx(other[key], rel=CLOSE[run]), (mine["step"], key)


def test_it_trains_what_one_process_trains(place: Path) -> None:
    for run in RUNS:
        compare(run, place / run, alone(run))


def test_the_final_weights_are_those_of_one_process(place: Path) -> None:
    ids = torch.arange(5, 45).reshape(2, 20)
    for run in RUNS:
        final = place / run / "final"
        assert list(final.glob("*.safetensors"))
        assert not list(final.glob("*.bin")) + list(final.glob("*.pt"))
        (model, tokenizer), (other, _) = wemask.load(final), wemask.load(alone(run) / "final")
        assert tokenizer is not None
        with torch.no_grad():
            ours, theirs = (m(input_ids=ids).logits.float() for m in (model, other))
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() < (0.1 if run == "bf16" else 1e-5) * scale


def test_a_learned_strength_is_trained_and_saved(place: Path) -> None:
    saved, other = _manifests(place)
    assert saved["learned"].keys() == other["learned"].keys() != set()
    for layer, theta in other["learned"].items():
        assert saved["learned"][layer] == pytest.approx(theta, rel=1e-4)
    assert len(set(other["learned"].values())) > 1  # each layer went its own way
    assert saved["weights_sample"] is not None


def test_the_gates_are_calibrated_on_the_trained_weights_of_all_ranks(place: Path) -> None:
    for run in RUNS:
        finals = (place / run / "final", alone(run) / "final")
        ours, theirs = (read_manifest(final) for final in finals)
        assert ours.report is not None and theirs.report is not None
        assert ours.calibrated is not None and ours.calibrated.step == STEPS
        assert ours.report.gates != ours.calibrated.first.gates
        for layer in theirs.layers:
            wanted = pytest.approx(theirs.report.gates[layer].thresholds, rel=10 * CLOSE[run])
            assert ours.report.gates[layer].thresholds == wanted


def _manifests(place: Path) -> list[dict]:
    finals = (place / "full" / "final", alone("full") / "final")
    return [json.loads((final / "wemask_config.json").read_text()) for final in finals]


def test_it_resumes_exactly(engine: str, place: Path, second: Path) -> None:
    half_done(place.parent, second, is_fsdp(engine))
    said = launched(is_fsdp(engine), second)
    for run in RUNS:
        close = 1e-5 if "offload" in engine and run != "bf16" else 1e-6  # see EXACT
        folder = second / engine / run
        assert f"Resuming from {folder / 'checkpoints' / 'checkpoint-2'}" in said
        after, before = lines_of(folder), lines_of(place / run)
        assert [line["step"] for line in after] == [0, 1, 2, 3, 4]
        for mine, other in zip(after, before, strict=True):
            for key in (key for key in MEASURED if key in other):
                assert mine[key] == pytest.approx(other[key], rel=close), (run, mine["step"], key)
