"""What goes wrong on two ranks ends both, soon, with one message; the same command goes on.

Plain DDP and ZeRO-2 stand for all: what differs between engines is which files are whole, and that
is tested for each in test_saved_state.py.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from engine_support import environment, lines_of, on_two_ranks, words
from run_support import call

from wemask.train.saved_state import last_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ZeRO-2: read, do not change."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero2")
    done = on_two_ranks("zero2", [words("zero2", "full", folder)])
    assert done.returncode == 0, done.stdout
    return folder


def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    """Without a process group DeepSpeed would seek MPI."""
    pytest.importorskip("deepspeed")
    code, _, err = call("train.py", *words("zero2", "full", tmp_path), env=environment("zero2"))
    assert code == 0, err
    assert (tmp_path / "full" / "final").exists()
    engine = json.loads((last_checkpoint(tmp_path / "full")[0] / "engine.json").read_text())
    assert engine.pop("tokens") > 0
    assert engine == {"kind": "zero", "ranks": 1, "stage": 2}


@pytest.fixture
def unfinished(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "full", tmp_path / "full")
    shutil.rmtree(tmp_path / "full" / "final")
    return tmp_path


@pytest.mark.parametrize("fault", ["corrupt", "missing"])
def test_a_shard_that_is_gone_costs_one_checkpoint(
    unfinished: Path, made: Path, fault: str
) -> None:
    newest = unfinished / "full" / "checkpoints" / "checkpoint-4"
    shard = newest / "global_step4" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    if fault == "missing":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    done = on_two_ranks("zero2", [words("zero2", "full", unfinished)])
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("checkpoint-4 is half-written or damaged") == 1
    assert shard.name in done.stdout
    assert "checkpoints/checkpoint-2." in done.stdout
    losses = [[line.get("loss") for line in lines_of(f / "full")] for f in (unfinished, made)]
    assert losses[0][1:] == pytest.approx(losses[1][1:], rel=1e-6)


def test_another_number_of_ranks_is_refused_and_nothing_is_lost(unfinished: Path) -> None:
    given = words("zero2", "full", unfinished)
    alone = [word for word in given if not word.startswith("deepspeed=")]
    code, _, err = call("tests/support/engine_worker.py", json.dumps([alone]))
    assert code == 2
    assert "was written by DeepSpeed ZeRO-2 on 2 ranks; this is one process" in err
    assert "python train.py launcher.processes=2" in err
    assert last_checkpoint(unfinished / "full")[0] is not None
    done = on_two_ranks("ddp", [alone])
    assert done.returncode != 0
    assert "this is DDP on 2 ranks. It continues as it began" in done.stdout
    assert (unfinished / "full" / "checkpoints" / "checkpoint-4").exists()


def test_fsdp_on_cpu_ranks_does_not_become_ddp_in_silence(tmp_path: Path) -> None:
    given = [*words("ddp", "lora", tmp_path), "fsdp=full_shard"]  # with use_cpu=true
    done = on_two_ranks("ddp", [given])
    assert done.returncode != 0
    assert "Asked for FSDP2 on 2 ranks, but DDP on 2 ranks runs" in done.stdout


def test_a_folder_that_cannot_be_written_ends_all_ranks_with_one_message() -> None:
    given = words("ddp", "full", Path("/proc/nobody/may"))
    began = time.monotonic()
    code, out, err = call("train.py", *given, "launcher.processes=2", env=environment("ddp"))
    assert time.monotonic() - began < 90
    assert code == 2
    assert (out + err).count("cannot be written") == 1, out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(("engine", "megabytes"), [("ddp", 24), ("zero2", 32)])
def test_a_full_disk_ends_all_ranks_with_one_message(
    tmp_path: Path, engine: str, megabytes: int
) -> None:
    if engine != "ddp":
        pytest.importorskip("deepspeed")
    disk = tmp_path / "disk"
    disk.mkdir()
    # One checkpoint fits, two do not: 17 MB are weights and both moments; ZeRO-2 has weights twice.
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "wemask-test", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        given = words(engine, "full", disk)
        began = time.monotonic()
        done = on_two_ranks(engine, [given])
        assert time.monotonic() - began < 120
        assert done.returncode != 0
        assert "cannot be written" in done.stdout
        assert "the same command resumes" in done.stdout
        newest, broken = last_checkpoint(disk / "full")
        assert newest is not None and newest.name == "checkpoint-2"
        assert broken == ["checkpoint-4"]
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        done = on_two_ranks(engine, [given])
        assert done.returncode == 0, done.stdout
        assert "checkpoints/checkpoint-2." in done.stdout
        assert (disk / "full" / "final").exists()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_rank_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    given = [*words("ddp", "lora", tmp_path), "trainer.ddp_timeout=10"]
    began = time.monotonic()
    done = on_two_ranks("ddp", [given], hang_at_step=2)
    assert time.monotonic() - began < 120  # rank 1 would sleep for 300 s
    assert done.returncode != 0
    # Gloo has more than one way to say it.
    assert "Rank 0 waited in vain for another rank (" in done.stdout
    assert "The same command resumes" in done.stdout
