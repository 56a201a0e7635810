"""Fields of SFTConfig and LoraConfig: what is refused before anything is loaded."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_support import refused, settings
from trl.trainer.sft_config import SFTConfig

from wemask.errors import ConfigError
from wemask.settings.library_fields import check_finite, trainer_fields

# Numbers for which SFTConfig itself says that below 0 means something.
FREE = {"max_steps", "local_rank"}
NUMBERS = [
    field.name
    for field in dataclasses.fields(SFTConfig)
    if ("bool" not in str(field.type) and {"int", "float"} & {*str(field.type).split()})
    or field.type in (int, float)
]


def test_the_only_numbers_below_0_are_those_whose_default_is() -> None:
    assert {"weight_decay", "max_grad_norm", "save_steps", "dataloader_num_workers"} <= {*NUMBERS}
    for name in NUMBERS:
        if name in FREE | {"seed"}:
            continue
        with pytest.raises(ConfigError, match=f"trainer.{name} must be"):
            trainer_fields({name: -1})


@pytest.mark.parametrize("name", ["weight_decay", "max_grad_norm", "learning_rate"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_number_is_nan_or_infinite(name: str, value: str) -> None:
    assert f"trainer.{name} must be a finite number" in refused(f"trainer.{name}={value}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trainer.save_steps=0", "trainer.save_steps must be above 0"),
        ("trainer.max_steps=10000000000000000000000000", "must be a number of 64 bits"),
        ("trainer.max_steps=-1 trainer.num_train_epochs=nan", "must be a finite number"),
        ("trainer.train_sampling_strategy=bogus", "is one of random, sequential"),
        ("trainer.train_sampling_strategy=randm", "Did you mean 'random'"),
        ("trainer.packing_strategy=bdf", "Did you mean 'bfd'"),
        ("trainer.resume_from_checkpoint=x", "the same command resumes"),
        ("trainer.model_init_kwargs={bogus:1}", "wemask loads the model"),
        ("trainer.do_train=true", "would do nothing"),
        ("trainer.activation_checkpointing_kwargs={use_reentrent:true}", "'use_reentrant'"),
        ("trainer.dataset_kwargs={bogus:1}", "trainer.dataset_kwargs.bogus would do nothing"),
        (
            "trainer.lr_scheduler_type=constant trainer.lr_scheduler_kwargs={min_lr:1}",
            "trainer.lr_scheduler_kwargs.min_lr would do nothing",
        ),
        ("peft=lora peft.lora_alpha=nan", "peft.lora_alpha must be a finite number"),
    ],
)
def test_what_would_do_nothing_or_something_else_is_refused(words: str, said: str) -> None:
    assert said in refused(*words.split())


def test_what_is_read_passes() -> None:
    words = (
        "trainer.activation_checkpointing_kwargs={use_reentrant:true,determinism_check:none}",
        "trainer.lr_scheduler_type=cosine_with_min_lr",
        "trainer.lr_scheduler_kwargs={min_lr:0.00001}",
        "trainer.save_steps=0.25",
        "trainer.max_steps=-1",
    )
    made = settings(*words).trainer
    assert made["lr_scheduler_kwargs"] == {"min_lr": 1e-05} and made["save_steps"] == 0.25


PLAIN = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=3)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(
    PLAIN | FINITE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)
BAD = st.sampled_from([float("nan"), float("inf"), -float("inf"), 2**63, -(10**400)])


@given(NESTED, BAD)
def test_a_bad_number_is_found_however_deep(values: Any, bad: float) -> None:
    assert [*check_finite(values)] == []
    (line,) = check_finite({"a": [values, {"b": bad}]})
    assert line.startswith("a.1.b must be a ")
