"""The job script, its quoting, what is submitted, and what squeue's answers mean. No Slurm needed.

`tests/launch/slurm/` runs such scripts on a real one.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from run_support import REPOSITORY, call, settings
from slurm_support import programs

from wemask import __version__
from wemask.cli import main
from wemask.errors import ConfigError, RunFolderError
from wemask.launch import slurm
from wemask.launch.slurm import Planned, evaluation_after, sbatch
from wemask.launch.slurm_queue import ask_queue
from wemask.settings.composition import normalise

EXPECTED = Path(__file__).parent / "slurm" / "expected_train.sbatch"
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
QUICK = ("debug=fast", "logger=none", "launcher=slurm")
HOSTILE = 'it\'s "$(touch pwned)" `touch pwned` #1 %j\\ ;touch pwned'


def planned(*words: str, script: str = "train.py") -> Planned:
    config = settings(*words)
    typed = normalise([word for word in words if not word.startswith("seed=0,")])
    return Planned(config=config, script=script, words=typed)


def script_of(*words: str, sweep: bool = False) -> str:
    runs = [planned(*words)] if not sweep else [planned(*words, f"seed={i}") for i in (0, 1)]
    return slurm.train_job(runs, list(words), sweep).text


# --- the script -----------------------------------------------------------------------------------


def test_the_script_is_the_one_that_is_read_and_reviewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To change it: change the template, look at the difference, copy it to the expected file."""
    monkeypatch.chdir(tmp_path)
    text = script_of(
        *QUICK,
        *("launcher.nodes=2", "launcher.gpus_per_node=8", "launcher.time=1-00:00:00"),
        *("launcher.partition=gpu", "launcher.account=lab", "launcher.cpus_per_task=32"),
        *("launcher.mem=400G", "launcher.setup=[module load cuda]", "launcher.env.NCCL_DEBUG=WARN"),
        *("launcher.options.mail-type=END", "launcher.python=python"),
    )
    text = text.replace(str(REPOSITORY), "/home/me/wemask").replace(str(tmp_path), "/home/me/work")
    text = re.sub(r"__s0__[0-9a-f]{8}", "__s0__HASH", text).replace(__version__, "VERSION")
    assert text == EXPECTED.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["launcher.nodes=2"],
        ["launcher.requeue=false"],
        ["launcher.signal_seconds=0"],
        ["launcher.cpus_per_task=4", "launcher.env.A=b", "launcher.setup=[module load x]"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("sweep", [False, True])
def test_every_script_is_clean_shell(words: list[str], sweep: bool) -> None:
    check_shell(script_of(*QUICK, *words, sweep=sweep))


def check_shell(text: str, *options: str) -> None:
    done = subprocess.run(
        [SHELLCHECK, *options, "-"], input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_an_evaluation_is_clean_shell_and_one_process() -> None:
    run = planned(*QUICK, "launcher.nodes=4", "launcher.gpus_per_node=8", script="evaluate.py")
    text = slurm.evaluate_job([run], [*QUICK, "launcher.nodes=4", "limit=4"], False).text
    check_shell(text)
    assert "#SBATCH --nodes=1\n" in text
    assert "#SBATCH --gpus-per-node=1\n" in text
    assert "set -- debug=fast logger=none limit=4\n" in text
    assert "wemask.launch.ranks" not in text


def test_words_that_only_the_submission_has_do_not_reach_the_job() -> None:
    words = slurm._without_dry_run(["seed=1", "dry_run=true", "++dry_run=true", "data.limit=3"])
    assert words == ["seed=1", "data.limit=3"]


def test_without_requeue_nothing_is_requeued() -> None:
    text = script_of(*QUICK, "launcher.requeue=false")
    assert "#SBATCH --no-requeue\n" in text
    assert "scontrol requeue" not in text


def test_a_sweep_is_one_bounded_array_and_each_task_has_its_words() -> None:
    text = script_of(*QUICK, "launcher.array_limit=3", sweep=True)
    assert "#SBATCH --array=0-1%3\n" in text
    cases = re.findall(r"^(\d+)\)\n +run=(\S+)\n +set -- (.*)$", text, re.M)
    assert [case[0] for case in cases] == ["0", "1"]
    for seed, (_, folder, words) in enumerate(cases):
        assert Path(folder).name.startswith(f"tiny__wemask__s{seed}__")
        assert shlex.split(words)[-1] == f"seed={seed}"


# --- quoting --------------------------------------------------------------------------------------


def harmless(text: str, cwd: Path) -> dict[str, str]:
    """Run a script with everything of Slurm replaced by an echo; what it was given."""
    place = cwd / "programs"
    place.mkdir()
    echo = '#!/usr/bin/env bash\nprintf "%s\\0" "$@" >"$OUT/$(basename "$0").txt"\n'
    for name in ("srun", "scontrol", "squeue", "scancel", "module"):
        (place / name).write_text(echo)
        (place / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": f"{place}:{os.environ['PATH']}",
            "OUT": str(cwd),
            "SLURM_JOB_ID": "12",
            "SLURM_ARRAY_JOB_ID": "12",
            "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_JOB_NODELIST": "n1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: path.read_text() for path in cwd.glob("*.txt")}


@pytest.mark.parametrize("sweep", [False, True])
def test_hostile_names_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: bool
) -> None:
    place = tmp_path / "a" / HOSTILE.replace("/", "_")
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    name = HOSTILE.replace('"', '\\"')
    words = [*QUICK, f'data.system="{name}"', f'launcher.env.NOTE="{name}"']
    words += [f'launcher.options.comment="{name}"', f'launcher.account="{name}"']
    runs = [planned(*words, f"seed={i}") for i in range(2 if sweep else 1)]
    for run in runs:
        (run.folder / "slurm").mkdir(parents=True)
    text = slurm.train_job(runs, words, sweep).text
    check_shell(text, "--exclude=SC2016")  # a dollar in single quotes is what we want
    given = harmless(text, tmp_path)["srun"].split("\0")[:-1]
    assert f'data.system="{name}"' in given
    assert not list(tmp_path.rglob("pwned"))
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    (chdir,) = [shlex.split(line[8:])[0] for line in lines if "--chdir" in line]
    assert chdir == f"--chdir={place}"
    (output,) = [shlex.split(line[8:])[0] for line in lines if "--output" in line]
    assert "%%j" in output
    (account,) = [shlex.split(line[8:])[0] for line in lines if "--account" in line]
    assert account == f"--account={HOSTILE}"
    assert text.index("set -uo") > text.index(
        lines[-1]
    )  # sbatch stops reading at the first command


def test_a_newline_in_a_word_cannot_leave_its_comment(tmp_path: Path) -> None:
    words = [*QUICK, "data.system='a\nb: touch pwned'"]
    text = slurm.train_job([planned(*QUICK)], words, False).text
    (line,) = [line for line in text.splitlines() if line.startswith("# Written by")]
    assert "a b: touch pwned" in line


# --- the evaluation that follows ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=wemask", "seed=1"], "seed=1 arms=[base,training_free,wemask_sft]"),
        (["method=sft", "peft=lora"], "peft=lora arms=[base,sft]"),
        (["launcher.nodes=4", "launcher.env.A=b"], "arms=[base,training_free,wemask_sft]"),
        (["launcher.evaluate_words=['arms=[base]','limit=4']"], "arms=[base] limit=4"),
        (["launcher.evaluate_words=['train_missing=true']"], None),
        (["launcher.evaluate_after=false"], ""),
        (["paths.run_dir=x"], ""),
    ],
    ids=str,
)
def test_the_evaluation_has_the_same_words(words: list[str], expected: str | None) -> None:
    after = evaluation_after([planned(*QUICK, *words)], [*QUICK, *words], False)
    if expected == "":
        assert after is None
        return
    assert after is not None
    assert after[:2] == ["debug=fast", "logger=none"]
    if expected is None:
        assert after[-1] == "train_missing=true"
        assert "train_missing=false" not in after
    else:
        rest = [word for word in after[2:] if word != "train_missing=false"]
        assert rest == expected.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "seed=0,1"], ["-m", "seed=0,1"]),
        (["-m", "seed=range(0,2)"], ["-m", "seed=range(0,2)"]),
        (["-m", "method=sft,wemask"], []),
        (["-m", "method=sft,wemask", "seed=0,1"], ["-m", "seed=0,1"]),
    ],
    ids=lambda words: " ".join(words) or "-",
)
def test_a_sweep_is_evaluated_in_one_report(words: list[str], expected: list[str]) -> None:
    runs = [planned(*QUICK, f"method={method}") for method in ("sft", "wemask")]
    after = evaluation_after(runs, [*QUICK, *words], True)
    assert after is not None
    swept = [word for word in after if word == "-m" or word.startswith(("seed", "method", "arms"))]
    assert swept == expected


# --- submitting -----------------------------------------------------------------------------------


def test_without_slurm_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch was sought and not found") as error:
        sbatch(tmp_path / "train.sbatch")
    assert "dry_run=true" in str(error.value)
    assert ask_queue("12") is None


def test_what_sbatch_says_is_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "sbatch: error: invalid partition specified: nope"  # recorded, 22.05
    programs(tmp_path, monkeypatch, sbatch=f"echo '{refusal}' >&2; exit 1")
    with pytest.raises(ConfigError, match="invalid partition specified: nope"):
        sbatch(tmp_path / "train.sbatch")


def test_the_number_of_a_job_on_a_named_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, monkeypatch, sbatch="echo '12;alps'")
    assert sbatch(tmp_path / "train.sbatch") == "12"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with an sbatch that counts, and an empty queue."""
    count = 'echo "$@" >>"$LOG"; wc -l <"$LOG"'
    empty = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    programs(tmp_path, monkeypatch, sbatch=count, squeue=empty)
    monkeypatch.setenv("LOG", str(tmp_path / "sbatch.log"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*words: str) -> tuple[Path, list[str]]:
    run = planned(*QUICK, *words)
    job = slurm.train_job([run], [*QUICK, *words], False)
    slurm.submit(job, evaluation_after([run], [*QUICK, *words], False))
    return run.folder, Path(os.environ["LOG"]).read_text().splitlines()


def test_a_job_and_its_evaluation_are_submitted_and_kept(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, log = submit()
    script = (folder / "slurm" / "train.sbatch").resolve()
    assert log == [
        f"--parsable {script}",
        "--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes "
        f"{script.with_name('evaluate.sbatch')}",
    ]
    about = json.loads((folder / "slurm" / "job.json").read_text())
    assert about == {"job": "1", "evaluate": "2", "script": str(script)}
    said = capsys.readouterr().out
    assert "Submitted job 1\n" in said
    assert f"wemask status {folder}" in said
    assert "scancel 1" in said


def test_a_run_with_a_job_in_the_queue_is_not_submitted_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = submit("launcher.evaluate_after=false")
    waiting = "1|PENDING|0:00|1:00:00||N/A|Resources"
    programs(here, monkeypatch, squeue=f"echo '{waiting}'")
    with pytest.raises(RunFolderError, match="1 is PENDING") as error:
        submit("launcher.evaluate_after=false")
    assert f"wemask status {folder}" in str(error.value)
    programs(here, monkeypatch, squeue=f"echo '{waiting.replace('PENDING', 'FAILED')}'")
    _, again = submit("launcher.evaluate_after=false")
    assert len(again) == len(log) + 1


def test_a_finished_run_is_not_submitted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = planned(*QUICK)
    (run.folder / "final").mkdir(parents=True)
    (run.folder / "final" / "model.safetensors").touch()
    slurm.submit(slurm.train_job([run], QUICK, False), None)
    assert "Finished already" in capsys.readouterr().out
    assert not (here / "sbatch.log").exists()


def test_a_method_that_trains_nothing_has_no_job(here: Path) -> None:
    from wemask.settings.composition import compose

    with pytest.raises(ConfigError, match="method=base trains nothing"):
        slurm.plan(compose("train", [*QUICK, "method=base"]), "train.py")


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path) -> None:
    code, out, err = call("train.py", *QUICK, "dry_run=true", cwd=tmp_path)
    assert code == 0, err
    assert out.startswith("#!/usr/bin/env bash\n")
    assert "dry_run=" not in out
    assert "# Memory: about 0." in out
    assert "evaluate.py debug=fast" in out
    check_shell(out)
    assert not list(tmp_path.iterdir())


def test_submit_is_train_py_with_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def execv(program: str, words: list[str]) -> None:
        called.append(words[1:])
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    for words in (
        ["submit", "--dry-run", "seed=1"],
        ["submit", "seed=1", "--dry-run"],
        ["submit", "-m", "seed=0,1"],
        ["submit", "launcher=slurm", "launcher.nodes=2"],
    ):
        with pytest.raises(SystemExit):
            main(words)
    script = str(REPOSITORY / "train.py")
    assert called == [
        [script, "launcher=slurm", "seed=1", "dry_run=true"],
        [script, "launcher=slurm", "seed=1", "dry_run=true"],
        [script, "launcher=slurm", "seed=0,1", "-m"],
        [script, "launcher=slurm", "launcher.nodes=2"],
    ]
