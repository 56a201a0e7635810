"""Data that are kept apart to choose a checkpoint by."""

import logging

import datasets
import pytest
from data_support import GSM, assistant, load, user, write
from hypothesis import given, settings
from hypothesis import strategies as st

from wemask.data.examples import DataConfig, load_examples
from wemask.data.validation import load_split, prompt_key, split_off
from wemask.errors import ConfigError, DataError

SAME = ["How many eggs?", "how many  eggs", "How many EGGS?!\n", "Ｈow many eggs"]


def split(path, **values):
    return load_split(DataConfig(name="jsonl", path=str(path), **values))


def prompts(examples) -> set[str]:
    return {prompt_key(example) for example in examples}


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=30),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_both_sides_hold_all_examples_and_no_prompt_is_on_both(texts, share, seed):
    rows = [{"text": text, "source": str(i)} for i, text in enumerate(texts)]
    examples = datasets.Dataset.from_list(rows)
    if len(prompts(examples)) < 2:
        with pytest.raises(DataError, match="one prompt"):
            split_off(examples, share, seed)
        return
    rest, apart = split_off(examples, share, seed)
    assert len(apart) >= 1 and len(rest) >= 1
    assert sorted([*rest["source"], *apart["source"]], key=int) == examples["source"][:]
    assert not prompts(rest) & prompts(apart)
    shuffled = examples.select(range(len(rows))[::-1])
    if len(prompts(examples)) == len(rows):  # groups of one: the draw hangs on the texts alone
        assert prompts(split_off(shuffled, share, seed)[1]) == prompts(apart)


def test_the_share_is_met_and_drawn_by_the_seed():
    config = DataConfig(n_train=400, validation=0.05)
    rest, apart = load_split(config)
    assert apart is not None
    assert (len(rest), len(apart)) == (380, 20)
    again = load_split(config)[1]
    assert again is not None and again["source"][:] == apart["source"][:]
    assert load_split(DataConfig(n_train=400))[1] is None
    whole = load_examples(DataConfig(n_train=400))
    other = split_off(whole, 0.05, 1)[1]
    assert other["source"][:] != apart["source"][:]


def test_records_of_one_prompt_stay_together_whatever_their_punctuation(tmp_path):
    rows = [{"question": text, "answer": str(i)} for i, text in enumerate(SAME)]
    path = write(tmp_path / "x.jsonl", [*rows, *GSM])
    for seed in range(8):
        rest, apart = split(path, validation=0.5, seed=seed)
        assert not prompts(rest) & prompts(apart)
        kept = [example["prompt"][0]["content"] for example in apart]
        assert sum(text in SAME for text in kept) in (0, len(SAME))


def test_a_conversation_is_drawn_by_what_is_asked_first(tmp_path):
    rows = [{"messages": [user("Hi"), assistant(str(i)), user("q"), assistant("a")]}
            for i in range(3)]  # fmt: skip
    with pytest.raises(DataError, match=r"All 3 examples have one prompt.*data.validation=FILE"):
        split(write(tmp_path / "x.jsonl", rows), validation=0.3)


def test_a_file_is_read_like_the_training_data_and_leaks_are_counted(tmp_path, caplog):
    path = write(tmp_path / "x.jsonl", GSM)
    other = [{"question": "new?", "answer": "1"}, GSM[0]]
    apart = write(tmp_path / "val.jsonl", other)
    with caplog.at_level(logging.WARNING):
        rest, found = split(path, validation=str(apart))
    assert (len(rest), len(found)) == (5, 2)
    assert "1 of the 2 validation examples" in caplog.text


def test_turns_of_a_validation_file_are_put_as_the_training_data_are(tmp_path):
    several = [{"messages": [user("q"), assistant("a"), user("r"), assistant("b")]}]
    one = [{"messages": [user("x"), assistant("y")]}]
    many, single = write(tmp_path / "m.jsonl", several), write(tmp_path / "s.jsonl", one)
    assert split(many, validation=str(single))[1].column_names == ["messages", "source"]
    with pytest.raises(DataError, match=r"data\.turns=last"):
        split(single, validation=str(many))
    text = write(tmp_path / "t.jsonl", [{"text": "t"}])
    with pytest.raises(DataError, match="makes text, source; the training data make prompt"):
        split(single, validation=str(text))
    assert load(text).column_names == ["text", "source"]


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, True, " ", float("nan"), ["a"]])
def test_what_is_neither_a_share_nor_a_file_is_refused(value):
    with pytest.raises(ConfigError, match=r"data\.validation must be a share"):
        DataConfig(validation=value)
