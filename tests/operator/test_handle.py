"""The handle of a softened model: what it says, and the way back."""

import pytest
import torch
from families import (
    MASSIVE,
    build,
    planted,
    sequence,
    settings,
    shared,
)
from patch_support import unpatched

import wemask
from wemask import StrengthSchedule
from wemask.errors import ConfigError, PatchError
from wemask.operator.handle import observe, probe_ids


def test_the_handle_says_what_was_touched():
    case = shared()
    with wemask.soften(case.model, case.report, settings()) as handle:
        assert handle.layers == [2, 3, 4]
        assert handle.tokens_touched == {2: 1, 3: 1, 4: 1}
        assert {len(d or []) for d in handle.dims.values()} == {8}
        assert handle.strength == 1.0 and handle.report is case.report
        assert repr(handle) == ("SoftenHandle(layers=[2, 3, 4], tokens_touched={2: 1, 3: 1, 4: 1})")
        ids = torch.cat([sequence(8, 1), sequence(8, 2, massive_at=5)])
        ids[1, 7] = MASSIVE
        assert {o.tokens for o in observe(handle, case.model, ids).values()} == {3}
        handle.set_strength(0.25)
        assert handle.strength == 0.25
        with pytest.raises(ConfigError, match="strength must be a number from 0 to 1"):
            handle.set_strength(1.5)


def test_a_schedule_starts_from_its_end_value():
    case = shared()
    schedule = StrengthSchedule(start=0.1, end=0.75, steps=10)
    with wemask.soften(case.model, case.report, settings(strength=schedule)) as handle:
        assert handle.strength == 0.75


def test_the_with_block_cleans_up_after_an_error():
    case = planted("llama")

    def body() -> None:
        with wemask.soften(case.model, case.report, settings()):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        body()
    assert unpatched(case.model)


def test_probe_ids_without_a_report_stay_in_the_vocabulary():
    assert probe_ids(build("llama", vocab_size=5), None).tolist() == [[0, 1, 2, 3, 4]]


def test_removing_inside_the_block_is_no_error_and_hides_none():
    c = shared("llama", 0)

    def fail() -> None:
        with wemask.soften(c.model, c.report, settings()) as handle:
            handle.remove()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()


def test_another_strength_within_a_block_and_the_own_one_after_it():
    case = shared()
    with wemask.soften(case.model, case.report, settings(strength="learnable")) as handle:
        learned = handle.learned
        assert handle.strength == pytest.approx(0.9) and set(learned) == {2, 3, 4}
        with handle.at_strength(0.25):
            assert set(handle.strengths.values()) == {0.25}
        assert handle.strength == pytest.approx(0.9)
        handle.learned = {i: 2 * theta for i, theta in learned.items()}
        assert handle.strength > 0.95
        with pytest.raises(PatchError, match=r"for the layers \[2\]; .* each of \[2, 3, 4\]"):
            handle.learned = {2: 0.1}
