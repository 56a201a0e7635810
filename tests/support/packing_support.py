"""Documents of random lengths, and the same packed into one row."""

import torch
from families import sequence
from hypothesis import strategies as st
from torch import Tensor

LENGTHS = st.lists(st.integers(1, 14), min_size=1, max_size=4)


SEED = st.integers(0, 999)


def documents(lengths: list[int], seed: int) -> list[Tensor]:
    """Sequences [1, t], each with one massive token somewhere."""
    return [sequence(n, seed + i, massive_at=(seed + i) % n) for i, n in enumerate(lengths)]


def packed(rows: list[Tensor]) -> dict[str, Tensor]:
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows]).unsqueeze(0)
    return {"input_ids": torch.cat(rows, 1), "position_ids": positions}
