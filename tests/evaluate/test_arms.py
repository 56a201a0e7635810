"""What each arm is, and what it stands beside."""

import pytest

from wemask.evaluate.arms import ARMS, CONTROLS, DRAWN, control_changes
from wemask.operator.settings import WeMaskConfig
from wemask.settings.config import METHODS


def test_every_arm_is_of_a_known_method_and_is_compared_with_a_known_arm() -> None:
    for arm in ARMS.values():
        assert arm.method in METHODS
        assert {arm.reference, arm.control_of} - {None} <= set(ARMS)


def test_every_control_stands_beside_the_real_arm_of_its_method() -> None:
    for name in CONTROLS:
        for suffix, real in (("", "training_free"), ("_sft", "wemask_sft")):
            arm = ARMS[name + suffix]
            assert (arm.method, arm.reference) == (ARMS[real].method, ARMS[real].reference)
            assert (arm.control_of, arm.drawn) == (real, name in DRAWN)


@pytest.mark.parametrize("name", [*CONTROLS, "primary_tokens"])
def test_a_control_changes_something_that_the_operator_has(name: str) -> None:
    changes = control_changes(name)
    assert changes
    assert set(changes) <= set(WeMaskConfig().to_dict())


def test_arms_of_one_run_keep_their_results_apart() -> None:
    for one, other in (("sft", "sft_then_wemask"), ("base", "base_again")):
        assert ARMS[one].method == ARMS[other].method
        assert ARMS[one].subfolder != ARMS[other].subfolder
