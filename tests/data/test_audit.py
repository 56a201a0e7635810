"""Whole datasets as the trainer will see them."""

import pytest
from chat_support import (
    CHATML,
    MARKED,
    QWEN3,
    STRICT,
    build_tokenizer,
    calling,
    conversation,
    half_trained,
    pair,
    sft_rows,
)

from wemask.data import audit as audit_module
from wemask.data import chat
from wemask.data.audit import audit
from wemask.errors import DataError


def test_truncation_and_what_it_drops_are_those_of_sft_trainer(tmp_path):
    tokenizer = build_tokenizer(MARKED)
    examples = [pair(), pair("eggs " * 40, "17"), pair("eggs", "17 " * 40)]
    loss = chat.choose_loss(examples[0], tokenizer)
    rows = sft_rows(examples, tokenizer, loss, tmp_path, max_length=30)
    found = audit(examples, tokenizer, loss, max_length=30)
    assert (found.n, found.truncated, found.untrained) == (3, 2, ["here"])
    assert len(rows) == 2
    assert found.longest == max(len(chat.loss_mask(e, tokenizer).input_ids) for e in examples)
    cut = chat.loss_mask(examples[2], tokenizer, loss, max_length=30)
    assert cut.input_ids == rows[1]["input_ids"]
    assert cut.trained == [label != -100 for label in rows[1]["labels"]]
    assert "1 are DROPPED" in str(found)
    assert "none is truncated" in str(audit(examples[:1], tokenizer, loss, max_length=None))


def test_a_template_that_refuses_an_example_is_an_error_with_its_place():
    tokenizer = build_tokenizer(STRICT + CHATML)
    loss = chat.choose_loss(pair(), tokenizer)
    odd = pair()
    odd["prompt"] = [{"role": "system", "content": "Be brief."}, *odd["prompt"]]
    with pytest.raises(DataError, match=r"here: the chat template.*no system.*system, user"):
        audit([odd], tokenizer, loss, max_length=None)


def test_a_prompt_that_is_no_prefix_is_counted_over_all_examples(monkeypatch):
    """Not of the first only: this template differs where there is a system message."""
    late = "{% if messages[0]['role'] == 'system' %}12 + {% endif %}"
    tokenizer = build_tokenizer(
        CHATML.replace("assistant\n{% endif", f"assistant\n{late}{{% endif")
    )
    odd = {**pair(answer="ducks"), "source": "line 2"}
    odd["prompt"] = [{"role": "system", "content": "Be brief."}, *odd["prompt"]]
    examples = [pair(), odd, pair(), odd]
    loss = chat.choose_loss(examples[0], tokenizer)
    (line,) = audit(examples, tokenizer, loss, max_length=None).warnings()
    assert "in 2 of the 4 examples looked at" in line
    assert "'12 + '" in line
    assert "line 2" in line
    monkeypatch.setattr(audit_module, "LOOKED", 2)
    assert audit(examples, tokenizer, loss, max_length=None).looked == 2


def test_what_the_template_does_not_show_is_counted():
    found = {}
    for name, template in {"qwen3": QWEN3, "marked": MARKED}.items():
        tokenizer = build_tokenizer(template)
        examples = [conversation("Hi", "Hello"), calling(), calling()]
        loss = chat.choose_loss(examples[0], tokenizer)
        found[name] = audit(examples, tokenizer, loss, max_length=None)
    assert found["qwen3"].warnings() == []
    assert found["qwen3"].silent == {}
    assert found["marked"].hidden == {"reasoning": 2, "tools": 2, "tool calls": 2}
    assert "the reasoning of 2 of the 3 examples" in "".join(found["marked"].warnings())
    assert found["marked"].silent == {1: "here", 2: "here"}


def test_thoughts_of_earlier_turns_that_qwen3_hides_are_counted():
    example = pair()
    thoughtful = {"role": "assistant", "content": "17", "reasoning_content": "ducks are heavy"}
    shown = {**example, "completion": [thoughtful]}
    hidden = {**example, "prompt": [*example["prompt"], thoughtful, *example["prompt"]]}
    tokenizer = build_tokenizer(QWEN3)
    loss = chat.choose_loss(example, tokenizer)
    found = audit([example, shown, hidden], tokenizer, loss, max_length=None)
    assert found.hidden == {"reasoning": 1}
    assert found.silent == {}


def test_conversations_in_which_some_turns_are_trained_are_counted():
    tokenizer = build_tokenizer(MARKED)
    examples = [conversation("Hi", "Hello", "Ho", "Hoho"), half_trained()]
    loss = chat.choose_loss(examples[0], tokenizer)
    assert audit(examples, tokenizer, loss, max_length=None).masked == 1


def test_a_template_that_drops_the_answer_leaves_nothing_to_train():
    dropping = "{{ messages[0]['content'] }}"
    tokenizer = build_tokenizer(dropping)
    loss = chat.LossChoice(completion_only=True, assistant_only=False)
    assert audit([pair()], tokenizer, loss, max_length=None).untrained == ["here"]
