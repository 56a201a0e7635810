"""Several outputs per item: seeds, avg@k, and a kill between draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_support import run, synthetic_oracle

from wemask.evaluate.evaluation import TaskConfig, TaskResult
from wemask.evaluate.harness import WemaskLM

TASK = TaskConfig(name="synthetic", limit=6, max_new_tokens=24, n_samples=3, temperature=1.0)


def drawn(tiny: Any, folder: Path, task: TaskConfig = TASK, **kwargs: Any) -> TaskResult:
    return run(tiny.model, tiny, [task], folder, **kwargs)["synthetic"]


def outputs(result: TaskResult, draw: int) -> list[str]:
    return [sample["output"] for sample in result.samples if sample["draw"] == draw]


def test_draws_of_an_item_stand_together_and_differ(tiny: Any, tmp_path: Path) -> None:
    result = drawn(tiny, tmp_path)
    assert [sample["draw"] for sample in result.samples] == [0, 1, 2] * 6
    assert [sample["id"] for sample in result.samples[::3]] == result.ids
    assert len(set(result.ids)) == 6
    passes = [outputs(result, draw) for draw in range(3)]
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert {tuple(s["prompt"] for s in result.samples[i::3]) for i in range(3)} == {
        tuple(s["prompt"] for s in result.samples[::3])
    }


def test_a_score_is_the_share_of_right_draws(tiny: Any, tmp_path: Path) -> None:
    result = run(synthetic_oracle(tiny, 6, {0, 4}), tiny, [TASK], tmp_path)["synthetic"]
    assert result.scores == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    some = [{**s, "correct": s["correct"] and s["draw"] == 1} for s in result.samples]
    assert replace(result, samples=some).scores == [1 / 3, 0.0, 0.0, 0.0, 1 / 3, 0.0]  # pyright: ignore
    assert replace(result, samples=some).accuracy == pytest.approx(1 / 9)  # pyright: ignore


def test_draws_depend_on_the_seed_and_on_nothing_before_them(tiny: Any, tmp_path: Path) -> None:
    result = drawn(tiny, tmp_path / "a")
    assert drawn(tiny, tmp_path / "b").samples == result.samples
    fewer = drawn(tiny, tmp_path / "c", replace(TASK, n_samples=2))
    assert [outputs(fewer, i) for i in (0, 1)] == [outputs(result, i) for i in (0, 1)]
    assert outputs(drawn(tiny, tmp_path / "d", seed=1), 0) != outputs(result, 0)


def test_a_low_temperature_and_a_small_top_p_are_greedy(tiny: Any, tmp_path: Path) -> None:
    greedy = drawn(tiny, tmp_path / "g", replace(TASK, n_samples=1, temperature=None))
    zero = drawn(tiny, tmp_path / "z", replace(TASK, n_samples=1, temperature=0))
    cold = drawn(tiny, tmp_path / "c", replace(TASK, n_samples=2, temperature=1e-4))
    narrow = drawn(tiny, tmp_path / "n", replace(TASK, n_samples=2, top_p=1e-6))
    expected = outputs(greedy, 0)
    assert outputs(zero, 0) == expected
    for result in (cold, narrow):
        assert [outputs(result, i) for i in (0, 1)] == [expected, expected]


def test_sampling_is_not_cut_at_the_likeliest_tokens(tiny: Any) -> None:
    lm = WemaskLM(tiny.model, tiny.tokenizer, progress=False)
    sampled = lm._decoding(5, {"until": [], "do_sample": True, "temperature": 0.6, "top_p": 0.9})
    assert (sampled.top_k, sampled.top_p, sampled.temperature) == (0, 0.9, 0.6)
    asked = lm._decoding(5, {"until": [], "do_sample": True, "temperature": 1.0, "top_k": 7})
    assert asked.top_k == 7


@pytest.mark.parametrize("finished", [0, 1, 3, 5])
def test_a_kill_changes_no_draw(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    whole = drawn(tiny, tmp_path / "whole")  # two batches in each of three draws
    generate, calls = WemaskLM._generate, list[int]()

    def killed(lm: WemaskLM, *args: Any) -> Any:
        if len(calls) == finished:
            raise KeyboardInterrupt
        calls.append(1)
        return generate(lm, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WemaskLM, "_generate", killed)
        with pytest.raises(KeyboardInterrupt):
            drawn(tiny, tmp_path / "killed")
    monkeypatch.setattr(WemaskLM, "_generate", lambda *args: calls.append(1) or generate(*args))
    resumed = drawn(tiny, tmp_path / "killed")
    assert len(calls) == 6
    assert resumed.samples == whole.samples
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert (resumed.note, resumed.conditions) == (whole.note, whole.conditions)
