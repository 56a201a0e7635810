"""What detection reads: built-in texts, as they are and as chats, and what users give."""

from typing import Any

import pytest
import torch
from families import shared

import wemask
from wemask.detection.calibration import (
    CALIBRATION_TEXTS,
    HELD_OUT_TEXTS,
    LONGER_TEXTS,
    LONGEST,
    calibration_inputs,
    halves,
)
from wemask.errors import DetectionError


class Tokenizer:
    """One token a character; a chat template that wants certain roles."""

    def __init__(self, roles: tuple[str, ...] | None = None) -> None:
        self.chat_template = None if roles is None else "a template"
        self.roles = roles

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 50 + 8 for c in text]}

    def apply_chat_template(self, turns: list[dict[str, str]], **options: Any) -> dict[str, Any]:
        assert options == {"add_generation_prompt": True, "return_dict": True}
        if tuple(turn["role"] for turn in turns) != self.roles:
            raise ValueError("Conversation roles must alternate")
        return {"input_ids": [5, *self(turns[-1]["content"])["input_ids"], 6]}


def rows(*arguments: Any, **options: Any) -> list[list[int]]:
    ids, mask = calibration_inputs(*arguments, **options)
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


def test_texts_and_their_chats_are_neighbours():
    assert rows(Tokenizer(), texts=["abc"]) == [[ord(c) % 50 + 8 for c in "abc"]]
    plain, chat = rows(Tokenizer(("user",)), texts=["abc"])
    assert chat == [5, *plain, 6]
    assert rows(Tokenizer(("user",)), texts=["abc"], chats=False) == [plain]
    assert rows(Tokenizer(("system", "user")), texts=["abc"]) == [plain, chat]
    assert halves(torch.arange(8)).tolist() == [True, True, False, False] * 2


def test_the_built_in_texts():
    assert len(rows(Tokenizer())) == len(CALIBRATION_TEXTS) + len(LONGER_TEXTS)
    assert len(rows(Tokenizer(("user",)))) == 2 * len(CALIBRATION_TEXTS) + len(LONGER_TEXTS)
    assert not {*CALIBRATION_TEXTS, *LONGER_TEXTS} & {*HELD_OUT_TEXTS}
    assert max(map(len, rows(Tokenizer()))) == LONGEST


def test_examples_are_read_behind_the_texts():
    assert rows(Tokenizer(), texts=["ab"], examples=[[1, 2, 3], range(200)])[1:] == [
        [1, 2, 3],
        list(range(LONGEST)),
    ]


@pytest.mark.parametrize("texts", [[], [""], ["x", "y"], ["", "x"]])
def test_texts_that_are_too_short(texts):
    with pytest.raises(DetectionError, match=r"empty, or none has two tokens.*detection\.texts"):
        calibration_inputs(Tokenizer(), texts=texts)


def test_a_template_that_fails_on_a_user_turn():
    with pytest.raises(DetectionError, match=r"fails on both .*must alternate.*chats=false"):
        calibration_inputs(Tokenizer(("user", "assistant")), texts=["some text"])


def test_another_models_tokenizer():
    case = shared()

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    with pytest.raises(DetectionError, match=r"not in the model's vocabulary of 64.*own tokenizer"):
        wemask.detect(case.model, tokenizer)
