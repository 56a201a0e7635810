"""A run whose files were damaged: what is whole is used, what is not is named, nothing is run."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_support import crash, fit, log_of, quick, quiet, settings, trained, weights
from safetensors.torch import load_file, save_file

from wemask.errors import ConfigError, RunFolderError
from wemask.evaluate.arm_run import ArmRun
from wemask.train import prepare as prepare_module
from wemask.train.monitoring import keep_lines
from wemask.train.saved_state import (
    HASHES_NAME,
    is_finished,
    last_checkpoint,
    set_aside,
    tokens_read,
    what_is_wrong,
    write_hashes,
)
from wemask.train.training import train

Damage = Callable[[Path], Any]
DEEP = "[" * 100_000


class Bomb:
    """What a malicious pickle would do."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch /tmp/wemask-was-here",))


def flip(path: Path, place: int = -1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def state(**changes: Any) -> Damage:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "trainer_state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write(name: str, text: str) -> Damage:
    return lambda checkpoint: (checkpoint / name).write_text(text)


def bomb(name: str) -> Damage:
    return lambda checkpoint: torch.save({"state": Bomb()}, checkpoint / name)


def bare_bomb(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Bomb()))


def become_a_file(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.write_text("x")


def become_a_dangling_link(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to("/nonexistent/checkpoint-4")


SEEN = {  # also where nothing was hashed
    "rng state cut short": lambda c: cut(c / "rng_state.pth"),
    "step as text": state(global_step="4"),
    "step -1": state(global_step=-1),
    "step 10**9": state(global_step=10**9),
    "log of text": state(log_history="x"),
    "state {}": write("trainer_state.json", "{}"),
    "state a list": write("trainer_state.json", "[]"),
    "state deep": write("trainer_state.json", DEEP),
    "engine a list": write("engine.json", "[]"),
    "engine unknown": write("engine.json", '{"kind": "bogus", "ranks": 1}'),
    "engine of text": write("engine.json", '{"kind": "ddp", "ranks": "2"}'),
    "engine of 10**9 ranks": write("engine.json", '{"kind": "ddp", "ranks": 1000000000}'),
    "engine deep": write("engine.json", DEEP),
    "optimizer a bomb": bomb("optimizer.pt"),
    "optimizer a bare bomb": bare_bomb,
    "scheduler a bomb": bomb("scheduler.pt"),
    "rng state a bomb": bomb("rng_state.pth"),
    "a file": become_a_file,
    "a dangling link": become_a_dangling_link,
}
HASHED = {
    "a bit of the weights": lambda c: flip(c / "model.safetensors"),
    "a bit of the operator": lambda c: flip(c / "wemask_config.json"),
    "optimizer of another shape": lambda c: torch.save({"state": {}}, c / "optimizer.pt"),
    "hashes a list": write(HASHES_NAME, "[]"),
    "hashes of text": write(HASHES_NAME, '{"model.safetensors": "x"}'),
}
CASES = [(name, hashed) for name in SEEN for hashed in (True, False)]
CASES += [(name, True) for name in HASHED]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A copy of a finished run of four steps, with its checkpoints of steps 2 and 4."""
    folder = tmp_path / "copy" / "default" / trained("method=wemask")[0].name
    shutil.copytree(trained("method=wemask")[0], folder, symlinks=True)
    yield folder
    shutil.rmtree(folder)  # 30 MB each


def again(run: Path, *words: str) -> Any:
    return quick(run.parent.parent, "method=wemask", *words)


@pytest.mark.parametrize(("name", "hashed"), CASES)
def test_the_checkpoint_before_a_damaged_one_is_used(run: Path, name: str, hashed: bool) -> None:
    newest = run / "checkpoints" / "checkpoint-4"
    assert last_checkpoint(run) == (newest, [])
    if not hashed:
        (newest / HASHES_NAME).unlink()
        assert last_checkpoint(run) == (newest, [])
    {**SEEN, **HASHED}[name](newest)
    assert last_checkpoint(run) == (newest.with_name("checkpoint-2"), ["checkpoint-4"])
    assert not Path("/tmp/wemask-was-here").exists()
    set_aside(newest)
    assert last_checkpoint(run) == (newest.with_name("checkpoint-2"), [])


def test_what_was_whole_once_is_kept_and_what_a_kill_left_is_not(run: Path) -> None:
    newest, older = (run / "checkpoints" / f"checkpoint-{step}" for step in (4, 2))
    flip(newest / "model.safetensors")
    assert "damaged-checkpoint-4" in set_aside(newest)
    kept = newest.with_name("damaged-checkpoint-4")
    assert kept.is_dir() and not newest.exists()
    (older / "wemask_files.json").unlink()
    (older / "trainer_state.json").unlink()  # the last but the hashes
    assert "removed" in set_aside(older)
    assert not older.exists()
    newest.symlink_to(kept)
    set_aside(newest)
    assert kept.is_dir() and not newest.is_symlink()


def test_a_whole_checkpoint_may_be_a_link(run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoints" / "checkpoint-4"
    shutil.move(newest, tmp_path / "checkpoint-4")
    newest.symlink_to(tmp_path / "checkpoint-4")
    assert last_checkpoint(run) == (newest, [])


def test_sizes_alone_do_not_read_the_weights(run: Path) -> None:
    newest = run / "checkpoints" / "checkpoint-4"
    flip(newest / "model.safetensors")
    assert what_is_wrong(newest, contents=False) is None
    assert "model.safetensors is damaged" in (what_is_wrong(newest) or "")


def test_a_flipped_bit_costs_the_steps_since_the_checkpoint_before_and_nothing_else(
    run: Path,
) -> None:
    expected = weights(run / "final")
    shutil.rmtree(run / "final")
    flip(run / "checkpoints" / "checkpoint-4" / "model.safetensors")
    (run / "metrics.jsonl").write_bytes(b'{\xff\n[1]\n{"step": "x"}\n{}\n' + DEEP.encode())
    (run / "lock.json").symlink_to("/nonexistent/lock.json")
    folder, text = fit(again(run))
    assert "checkpoint-4 is half-written or damaged and is not used: model.safetensors" in text
    assert "kept as damaged-checkpoint-4" in text and "checkpoint-2" in text
    found = weights(folder / "final")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert log_of(run, 4)["num_tokens"] == log_of(trained("method=wemask")[0], 4)["num_tokens"]


def test_num_tokens_go_on_though_the_log_is_older_than_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logged every 4 steps, saved every 2: no line has the count of the checkpoint."""
    words = ("method=wemask", "trainer.logging_steps=4", "logger.watch_every=0")
    folder = crash(quick(tmp_path, *words), monkeypatch)
    assert tokens_read(folder / "checkpoints" / "checkpoint-2") == 255
    fit(quick(tmp_path, *words))
    assert log_of(folder, 4)["num_tokens"] == 557  # as in a run of one piece


def test_the_count_of_a_checkpoint_of_before_is_that_of_its_log(run: Path) -> None:
    checkpoint = run / "checkpoints" / "checkpoint-2"
    assert tokens_read(checkpoint) == 255
    (checkpoint / "engine.json").write_text('{"kind": "single", "ranks": 1}')
    assert tokens_read(checkpoint) == 255


def test_an_optimizer_of_another_shape_is_one_message(run: Path) -> None:
    shutil.rmtree(run / "final")
    newest = run / "checkpoints" / "checkpoint-4"
    (newest / HASHES_NAME).unlink()
    torch.save({"state": {}, "param_groups": []}, newest / "optimizer.pt")
    with pytest.raises(RunFolderError, match=r"TRL refuses to go on from .*checkpoint-4 \(move it"):
        train(again(run), quiet())


def test_checkpoints_that_are_a_file_are_named(run: Path) -> None:
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("x")
    with pytest.raises(RunFolderError, match="checkpoints is a file"):
        train(again(run), quiet())


@pytest.mark.parametrize("lost", ["weights", "all", "half"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_final_folder_without_its_weights_is_no_finished_run(
    run: Path, lost: str, hashed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = run / "final"
    assert is_finished(run)
    (file,) = final.glob("*.safetensors")
    if not hashed:
        (final / HASHES_NAME).unlink()
    if lost == "half" and not hashed:
        return  # nothing says how large it was; loading it does
    if lost == "all":
        shutil.rmtree(final)
        final.mkdir()
    elif lost == "weights":
        file.unlink()
    else:
        cut(file)
    monkeypatch.setattr(prepare_module, "load_both", None)  # never trained over
    with pytest.raises(RunFolderError, match=f"rm -r {final}"):
        train(again(run), quiet())
    with pytest.raises(RunFolderError, match="was finished, but"):
        _ = ArmRun.of("wemask_sft", again(run)).missing


def test_hashes_are_of_every_file_and_written_last(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    save_file({"w": torch.arange(5)}, tmp_path / "deep" / "a.safetensors")
    write_hashes(tmp_path)
    write_hashes(tmp_path)  # not of itself
    values = json.loads((tmp_path / HASHES_NAME).read_text())
    assert [*values] == ["deep/a.safetensors"]
    import hashlib

    content = (tmp_path / "deep" / "a.safetensors").read_bytes()
    found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert values["deep/a.safetensors"] == found
    assert load_file(tmp_path / "deep" / "a.safetensors")["w"].tolist() == [0, 1, 2, 3, 4]


def test_damaged_lines_of_the_metrics_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[]\n{"step": "x"}\n{}\n{"step": 9}\n' + DEEP.encode())
    keep_lines(path, until=2)
    assert path.read_text() == '{"step": 1}\n'


# --- refused while it is set up -------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "trainer.optim=adamw_bnb_8bit",
        "trainer.adam_beta1=2",
        "trainer.lr_scheduler_type=cosine_with_min_lr trainer.lr_scheduler_kwargs={bogus:1}",
        "trainer.use_liger_kernel=true",
        "trainer.report_to=tensorboard",
    ],
)
def test_what_a_library_refuses_before_the_first_step(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TRL refuses these settings: "):
        train(settings("debug=fast", "logger=none", f"paths.output_dir={tmp_path}", *word.split()))
