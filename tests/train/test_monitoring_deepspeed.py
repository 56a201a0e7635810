"""A watched training under DeepSpeed ZeRO-3, on two CPU ranks: every forward gathers parameters."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_support import environment
from run_support import FAST, REPOSITORY, fit, settings

ZERO_3 = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_param_persistence_threshold": 0,  # else small norms stay whole, and hide a mistake
    },
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}
# A learned strength is a parameter, too. With a budget that nothing keeps, the interval doubles
# after each measurement; ranks that did not agree on it would wait for each other for ever.
WORDS = (
    *FAST,
    *("method=wemask", "operator.strength=learnable", "trainer.save_strategy=no"),
    *("logger.watch_every=1", "logger.watch_budget=1.0e-9"),
)


# train.py, but for the final model: to write sharded weights is another matter than to watch them.
PROGRAM = f"""
import runpy, sys
sys.path[0] = {str(REPOSITORY)!r}
from wemask.train import training
training._save_final = lambda *_: None
runpy.run_path(sys.path[0] + "/train.py", run_name="__main__")
"""


def on_two_ranks(folder: Path, *words: str) -> tuple[Path, str]:
    """Run train.py under torchrun; returns the run folder, and what was printed."""
    folder.mkdir()
    (folder / "zero3.json").write_text(json.dumps(ZERO_3))
    (folder / "program.py").write_text(PROGRAM)
    words = (*words, f"trainer.deepspeed={folder / 'zero3.json'}", f"paths.output_dir={folder}")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [sys.executable, *torchrun, str(folder / "program.py"), *words],
        env=environment("zero3"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return settings(*words).folder(), done.stdout


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_ranks_measure_and_the_first_one_writes(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    folder, printed = on_two_ranks(tmp_path / "two", *WORDS)
    sharded = lines_of(folder)
    # One line per watched step: two ranks would have written two.
    assert [line["step"] for line in sharded] == [0, 1, 2, 4]
    assert printed.count("Watching took") == 1
    assert all(math.isfinite(value) for line in sharded for value in line.values())
    alone = lines_of(fit(settings(*WORDS, f"paths.output_dir={tmp_path / 'one'}"))[0])
    watched = [key for key in alone[0] if key.startswith("wemask/")]
    assert any(key.startswith("wemask/strength/layer_") for key in watched)
    # The first step has a learning rate of 0: that after it is the first with sharded parameters,
    # and sees the model that a single process begins with.
    for line in sharded[:2]:
        assert {key: line[key] for key in watched} == pytest.approx(
            {key: alone[0][key] for key in watched}, rel=1e-4
        )
    assert sharded[-1]["wemask/massive_max"] != sharded[0]["wemask/massive_max"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_zero_3_too_a_watched_training_is_the_unwatched_one(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    losses = []
    for every in (1, 4):
        words = (*WORDS, f"logger.watch_every={every}", "logger.watch_budget=null")
        losses.append(lines_of(on_two_ranks(tmp_path / str(every), *words)[0])[-1])
    assert losses[0]["step"] == losses[1]["step"] == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
