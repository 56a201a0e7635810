"""The worker that compares formulas: it can be stopped, killed, forked around, and runs no code."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wemask.errors import ConfigError
from wemask.evaluate.scoring import symbolic
from wemask.evaluate.scoring.answers import is_correct, judge


@pytest.fixture
def quick_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker that gives up after a second; gone afterwards, with the verdicts it left."""
    symbolic._shut_down()
    symbolic.symbolically_equal.cache_clear()
    monkeypatch.setattr(symbolic, "TIME_LIMIT", 1.0)
    yield
    symbolic._shut_down()
    symbolic.symbolically_equal.cache_clear()


def test_a_comparison_that_hangs_is_stopped_in_any_thread(quick_worker: None) -> None:
    tower = r"\boxed{9^{9^{9^{9}}}}"  # one multiplication in C, which no signal interrupts
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(judge(tower, "5")))
    start = time.monotonic()
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert time.monotonic() - start < 30
    assert not verdicts[0].correct
    assert verdicts[0].reason == f"boxed; {symbolic.TIMED_OUT}"
    assert is_correct(r"\boxed{1+x}", "x+1")  # by a new worker


def test_threads_share_the_worker(quick_worker: None) -> None:
    wrong = []

    def work(k: int) -> None:
        if not is_correct(rf"\boxed{{x+{k}}}", f"{k}+x") or is_correct(rf"\boxed{{x+{k}}}", "x-1"):
            wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []


def test_a_worker_that_died_is_replaced(quick_worker: None) -> None:
    assert is_correct(r"\boxed{x+1}", "1+x")
    assert symbolic._worker is not None
    symbolic._worker.process.kill()
    assert is_correct(r"\boxed{x+2}", "2+x")


def test_a_fork_does_not_use_its_parents_worker(quick_worker: None) -> None:
    assert is_correct(r"\boxed{x+1}", "1+x")
    parents = symbolic._worker
    assert parents is not None
    symbolic._forget()  # what runs in the child after os.fork()
    try:
        assert symbolic._worker is None
        assert is_correct(r"\boxed{x+2}", "2+x")
        assert symbolic._worker is not None
        assert symbolic._worker.process.pid != parents.process.pid
    finally:
        symbolic._inherited.remove(parents)
        parents.stop()


def test_an_interrupted_comparison_leaves_no_stale_reply(
    quick_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_correct(r"\boxed{x+1}", "1+x")

    def interrupted(self: object, gold: str, value: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(symbolic._Worker, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            is_correct(r"\boxed{x+2}", "3+x")
    assert symbolic._worker is None
    assert is_correct(r"\boxed{x+2}", "2+x")


def test_a_daemonic_process_of_an_unguarded_script_may_judge(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, wemask\n"
        "judge = lambda: print(wemask.answers.is_correct(r'\\boxed{x+1}', '1+x'), flush=True)\n"
        "judge()\n"
        "context = multiprocessing.get_context('fork')\n"
        "child = context.Process(target=judge, daemon=True)\n"
        "child.start()\n"
        "child.join()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_a_worker_that_cannot_start_says_what_to_install(
    quick_worker: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "math_verify"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('No module named math_verify')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    with pytest.raises(ConfigError, match=r"pip install 'math-verify\[antlr4_9_3\]'"):
        is_correct(r"\boxed{x+1}", "1+x")


def test_response_code_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    for code in (
        f"__import__('os').system('touch {target}')",
        rf"\text{{__import__('os').system('touch {target}')}}",
        f"exec(open('{target}','w'))",
        rf"\input{{{target}}}",
        rf"\write18{{touch {target}}}",
    ):
        assert not is_correct(rf"\boxed{{{code}}}", "5")
        assert not is_correct(rf"\boxed{{{code}}}", "x+5")
    assert not target.exists()
