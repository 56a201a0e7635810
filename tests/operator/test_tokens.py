"""Which tokens: by content, or at a place of what a layer is given."""

import pytest
import torch
from torch import Tensor

from wemask.errors import ConfigError
from wemask.operator.tokens import massive_tokens, tokens_at


def test_massive_tokens_pass_any_threshold_in_magnitude():
    h = torch.tensor([[[0.0, -11.0, 0.0], [9.0, 9.0, 99.0], [0.0, 0.0, 0.0]]])
    gate = massive_tokens(h, torch.tensor([1, 0]), torch.tensor([10.0, 9.0]))
    assert gate.tolist() == [[True, False, False]]  # dim 2 is not asked; equal is not above


class TestFirstTokens:
    """What a layer is given decides; pads, packing and chunks are all in the mask."""

    h = torch.zeros(2, 4, 3)

    def test_left_padding(self):
        real = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]).bool()
        causal = torch.ones(4, 4).tril().bool()
        mask = (causal & real[:, None, :])[:, None]
        expected = [[True, False, False, False], [False, False, True, False]]
        # `generate` gives pads position 0: the positions must not be believed here.
        positions = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
        assert tokens_at(self.h, mask, positions, 0).tolist() == expected
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        assert tokens_at(self.h, additive, positions, 0).tolist() == expected

    def test_packed_documents_by_mask_and_by_positions(self):
        document = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
        causal = torch.ones(4, 4).tril().bool()
        mask = (causal & (document[:, :, None] == document[:, None, :]))[:, None]
        expected = [[True, False, True, False], [True, True, False, False]]
        assert tokens_at(self.h, mask, None, 0).tolist() == expected
        positions = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 2]])
        assert tokens_at(self.h, None, positions, 0).tolist() == expected

    def test_flash_mask_and_cache(self):
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])  # 2 cached + 4 keys
        gate = tokens_at(self.h, mask, None, 2)
        assert gate.tolist() == [[True, False, False, False], [False] * 4]
        assert not tokens_at(self.h, None, None, 2).any()
        assert tokens_at(self.h, None, None, 0).tolist() == [[True, False, False, False]]

    def test_an_unreadable_mask_says_what_to_type(self):
        with pytest.raises(ConfigError, match=r"cannot read a str .*operator\.tokens=massive"):
            tokens_at(self.h, "BlockMask", None, 0)


class TestTokensAt:
    """Pads, packing, chunks and windows, for a place that is not the first."""

    h = torch.zeros(2, 4, 3)

    def gate(self, visible: Tensor, positions: Tensor | None = None, place: int = 1) -> list:
        return tokens_at(self.h, visible[:, None], positions, 0, place).tolist()

    def test_padding_on_either_side(self):
        causal = torch.ones(4, 4).tril().bool()
        left = causal & torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool()[:, None, :]
        positions = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])  # a pad at "1" is not believed
        assert self.gate(left, positions) == [
            [False, True, False, False],
            [False, False, True, False],
        ]
        right = causal & torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()[:, None, :]
        assert self.gate(right) == [[False, True, False, False]] * 2  # and no pad of row 1

    def test_packed_documents_by_mask_and_by_positions(self):
        document = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
        causal = torch.ones(4, 4).tril().bool()
        mask = causal & (document[:, :, None] == document[:, None, :])
        expected = [[False, True, False, True], [False, False, True, False]]
        assert self.gate(mask) == expected
        positions = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 2]])
        assert tokens_at(self.h, None, positions, 0, 1).tolist() == expected

    def test_flash_mask_and_cache(self):
        mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]])  # 2 cached + 4 keys
        gate = tokens_at(self.h, mask, None, 2, 2)
        assert gate.tolist() == [[False, False, False, True], [True, False, False, False]]
        pads = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])
        assert tokens_at(self.h, pads, None, 0, 1).tolist() == [
            [False] * 4,
            [False, True, False, False],
        ]
        assert tokens_at(self.h, None, None, 2, 3).tolist() == [[False, True, False, False]]
