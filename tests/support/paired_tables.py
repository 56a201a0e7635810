"""Right/wrong scores of two arms, by their discordant counts."""

import numpy as np


def table(a_only: int, b_only: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Right/wrong scores of two arms with these discordant counts; the other items both right."""
    a = np.r_[np.ones(a_only), np.zeros(b_only), np.ones(n - a_only - b_only)]
    b = np.r_[np.zeros(a_only), np.ones(b_only), np.ones(n - a_only - b_only)]
    return a, b
