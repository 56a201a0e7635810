"""Ranks that somebody has started: recognised, and in one process a plain call."""

import pytest
from rank_support import no_ranks

from wemask import distributed
from wemask.errors import ConfigError

bare = pytest.fixture(no_ranks)


# Recorded on Slurm 22.05, `sbatch --nodes=2 --ntasks-per-node=1`: in the batch script, in `srun`.
BATCH = {
    "SLURM_JOB_ID": "12",
    "SLURM_LOCALID": "0",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NPROCS": "2",
    "SLURM_NODEID": "0",
}


STEP = {
    **BATCH,
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
}


def test_a_task_of_srun_is_a_rank() -> None:
    found = distributed.srun_ranks({**STEP, "MASTER_ADDR": "10.0.0.1"})
    assert found == {
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "10012",
    }


def test_the_first_node_is_where_slurm_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"hostnames": "n1\nn2", "node": "NodeName=n1 Arch=x NodeAddr=10.1.2.3 NodeHostName=x"}
    monkeypatch.setattr(distributed, "_ask", lambda *command: said[command[2]])
    assert distributed.srun_ranks(STEP)["MASTER_ADDR"] == "10.1.2.3"


def test_without_scontrol_the_message_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="Set MASTER_ADDR"):
        distributed.srun_ranks(STEP)


def test_a_batch_script_is_one_process_whatever_it_asked_for() -> None:
    assert distributed.srun_ranks(BATCH) == {}
    assert distributed.srun_ranks({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert distributed.srun_ranks({}) == {}


def test_ports_differ_between_jobs_and_are_not_ephemeral() -> None:
    ports = [distributed.port_of(job) for job in range(1, 20000)]
    assert len(set(ports)) == len(ports)
    assert min(ports) > 1024
    assert max(distributed.port_of(job) for job in (19999, 20000, 10**7)) < 32768


def test_accelerate_launch_that_made_one_of_two_is_refused(bare: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets for its one process."""
    bare.setenv("ACCELERATE_MIXED_PRECISION", "no")
    bare.setenv("ACCELERATE_USE_CPU", "True")
    bare.setenv("MASTER_ADDR", "127.0.0.1")
    bare.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match=r"launcher\.processes=2"):
        distributed.adopt_environment()


def test_accelerate_launch_of_one_process_is_fine(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("ACCELERATE_MIXED_PRECISION", "no")
    distributed.adopt_environment()


def test_alone_everything_is_a_plain_call() -> None:
    assert distributed.on_main(lambda: [1]) == [1]
    assert distributed.any_rank(True) is True
    assert distributed.any_rank(False) is False
    assert distributed.largest(2.0, -1.0) == [2.0, -1.0]
    assert distributed.broadcast_object("x") == "x"
    distributed.agree("a", "nothing")


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "x"}, "RANK must be a whole number, found 'x'"),
        ({"RANK": "-1"}, "RANK must be"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE must be"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be"),
        ({"LOCAL_RANK": "0x1"}, "LOCAL_RANK must be"),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE 2"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE missing"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "MASTER_ADDR, MASTER_PORT missing"),
        ({"RANK": None}, "RANK missing"),
    ],
)
def test_rank_variables_that_are_odd_or_partial_are_one_message(
    bare: pytest.MonkeyPatch, changes: dict[str, str | None], said: str
) -> None:
    for name, value in {**TORCHRUN, **changes}.items():
        if value is not None:
            bare.setenv(name, value)
    with pytest.raises(ConfigError, match=said) as error:
        distributed.adopt_environment()
    assert "unset " in str(error.value)
    assert distributed.rank() >= 0 and distributed.world() >= 1  # whoever says it asks for them


def test_whole_rank_variables_and_a_world_of_one_are_fine(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("WORLD_SIZE", "1")
    distributed.adopt_environment()
    for name, value in TORCHRUN.items():
        bare.setenv(name, value)
    distributed.adopt_environment()
    assert (distributed.rank(), distributed.world()) == (0, 2)


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize("value", ["x", "", "1.5"])
def test_odd_variables_of_srun_are_one_message(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"srun sets {name} to a whole number"):
        distributed.srun_ranks({**STEP, "MASTER_ADDR": "10.0.0.1", name: value})
