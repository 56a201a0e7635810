"""Settings of `launcher=`: what they accept, and that they change no result."""

import pytest
import yaml
from run_support import REPOSITORY, settings

from wemask.errors import ConfigError
from wemask.settings.composition import normalise
from wemask.settings.launcher import OURS, LauncherConfig, seconds


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        settings(*words)
    return str(error.value)


def test_the_default_is_one_process_here() -> None:
    launcher = settings().launcher
    assert launcher == LauncherConfig()
    assert (launcher.name, launcher.world) == ("local", 1)


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_every_file_names_only_fields(name: str) -> None:
    values = yaml.safe_load((REPOSITORY / "conf" / "launcher" / f"{name}.yaml").read_text())
    assert settings(f"launcher={name}").launcher == LauncherConfig(**values)


@pytest.mark.parametrize(
    "words",
    [
        ["launcher.processes=2"],
        ["launcher=slurm", "launcher.nodes=4", "launcher.time=1-0", "launcher.env.A=b"],
    ],
    ids=" ".join,
)
def test_a_launcher_changes_neither_identity_nor_folder(words: list[str]) -> None:
    assert settings(*words).identity() == settings().identity()
    assert settings(*words).folder() == settings().folder()


def test_ranks_are_one_for_each_gpu_unless_said() -> None:
    def world(*words: str) -> int:
        return settings("launcher=slurm", *words).launcher.world

    assert world() == 1
    assert world("launcher.nodes=4", "launcher.gpus_per_node=8") == 32
    assert world("launcher.nodes=2", "launcher.gpus_per_node=0") == 2
    assert world("launcher.gpus_per_node=8", "launcher.processes_per_node=2") == 2


def test_lists_mappings_and_options_of_sbatch_arrive() -> None:
    launcher = settings(
        "launcher=slurm",
        "launcher.setup=[module load cuda,'source ~/venv/bin/activate']",
        "launcher.options.mail-type=END",
        "launcher.options.exclusive=true",
        "launcher.env.HF_HUB_OFFLINE=1",
        "launcher.evaluate_words=['limit=4']",
    ).launcher
    assert launcher.setup == ("module load cuda", "source ~/venv/bin/activate")
    assert launcher.options == {"mail-type": "END", "exclusive": True}
    assert launcher.env == {"HF_HUB_OFFLINE": 1}
    assert launcher.evaluate_words == ("limit=4",)
    assert settings("launcher=slurm", "launcher.options={comment: a}").launcher.options == {
        "comment": "a"
    }


def test_normalise_leaves_other_launcher_words_alone() -> None:
    assert normalise(["launcher.nodes=2"]) == ["launcher.nodes=2"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["launcher.processe=2"], ["'launcher.processes'"]),
        (["launcher=slurn"], ["local, slurm", "'slurm'"]),
        (["launcher=slurm", "launcher.noodes=2"], ["'launcher.nodes'"]),
        (["launcher=slurm", "+launcher.partitions=x"], ["launcher.partitions", "'partition'"]),
        (["launcher.nodes=4"], ["It is one of launcher=slurm"]),
        (["launcher.name=ray"], ["'local' or 'slurm'", "'ray'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_unknown_key_or_value_names_the_nearest(words: list[str], expected: list[str]) -> None:
    message = refused(*words)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    "word",
    [
        "nodes=0",
        "nodes=two",
        "nodes=1.5",
        "gpus_per_node=-1",
        "processes_per_node=0",
        "cpus_per_task=0",
        "array_limit=0",
        "signal_seconds=-1",
        "partition=5",
        "partition='a\tb'",
        "account=[a]",
        "time=soon",
        "time=1:2:3:4",
        "mem=-1",
        "setup=x",
        "setup=[1]",
        "options=x",
        "options={Mail: x}",
        "options={mail-type: [a]}",
        "env=[a]",
        "env={1A: x}",
        "env={A: [b]}",
        "requeue=maybe",
        "evaluate_after=1",
        "evaluate_words=x",
    ],
)
def test_a_value_that_makes_no_sense_is_named(word: str) -> None:
    message = refused("launcher=slurm", f"launcher.{word}")
    assert f"launcher.{word.partition('=')[0]}" in message


def test_all_problems_are_reported_together() -> None:
    message = refused("launcher=slurm", "launcher.nodes=0", "launcher.time=soon", "seed=x")
    assert all(word in message for word in ("launcher.nodes", "launcher.time", "seed"))


@pytest.mark.parametrize("option", sorted(OURS))
def test_an_option_that_the_script_sets_itself_is_refused(option: str) -> None:
    message = refused("launcher=slurm", f"launcher.options.{option}=1")
    assert OURS[option] in message


def test_processes_must_be_a_count() -> None:
    assert "launcher.processes" in refused("launcher.processes=0")


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (90, 5400),
        ("90", 5400),
        ("1:30", 90),
        ("01:30:00", 5400),
        ("2-12", 216000),
        ("1-0:30", 88200),
        ("1-0:30:05", 88205),
    ],
)
def test_times_are_those_of_sbatch(time: str | int, expected: int) -> None:
    assert seconds(time) == expected


def test_a_job_that_would_be_told_to_stop_at_once_is_refused() -> None:
    message = refused("launcher=slurm", "launcher.time=5")
    assert "at once" in message
    assert settings("launcher=slurm", "launcher.time=5", "launcher.signal_seconds=60")
