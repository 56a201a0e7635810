"""The quadratic form that a gated FFN computes where its gate is open, without forming it.

With g_f and u_f the rows of gate and up, and d_k a row of down, the FFN writes on dim k

    y_k = sum_f d_kf act(g_f . x) (u_f . x)  ~  x' S_k x     as act(z) ~ z: silu(8) = 7.997
    S_k = 1/2 sum_f d_kf (g_f u_f' + u_f g_f')

S_k [D, D] is never formed: S_k v = 1/2 (G' (d_k * U v) + U' (d_k * G v)) is enough for its leading
eigenpair (Lanczos) and, some columns at a time, for its Frobenius norm. D is the hidden size, F the
number of neurons, K that of dims, N that of tokens.

At D = 4096, F = 14336 it holds float32 copies of gate and up (0.5 GB), and took 13 to 21 s for the
norm and 5 to 9 s (about 100 products) for the leading pair, per dim, on one thread of a busy 2-core
CPU, with random weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from wemask.decoder.ffn import FFNWeights

DENSE = 32  # up to this hidden size S_k is formed: Lanczos needs more room than that
COLUMNS = 256  # of S_k at once, for its norm
TOLERANCE = 1e-6  # relative, of an eigenvalue: what float32 products allow


@dataclass(frozen=True)
class LeadingPair:
    """The eigenpair of S_k with the largest absolute eigenvalue, and its share of the spectrum."""

    eigenvalue: float
    direction: Tensor  # float32 [D], length 1
    share: float


@dataclass(frozen=True)
class GatedForm:
    """S_k of every massive dim k, as products with vectors; gate and up are shared by all."""

    gate: Tensor  # float32 [F, D]
    up: Tensor  # float32 [F, D]
    down: Tensor  # float32 [K, F]: rows of the output projection

    @classmethod
    def of(cls, parts: Sequence[FFNWeights], dims: Sequence[int]) -> "GatedForm":
        """From the weights of one FFN, or of several whose outputs add up."""
        gates = [p.gate.float() for p in parts if p.gate is not None]
        ups = [p.up.float() for p in parts]
        downs = [p.down[list(dims)].float() for p in parts]
        if len(parts) == 1:  # no second copy of what is large
            return cls(gates[0], ups[0], downs[0])
        return cls(torch.cat(gates), torch.cat(ups), torch.cat(downs, 1))

    def product(self, k: int, v: Tensor) -> Tensor:
        """S_k v for v [D] or [D, columns]."""
        down = self.down[k] if v.ndim == 1 else self.down[k, :, None]
        return self._summed(down, self.gate @ v, self.up @ v)

    def columns(self, k: int) -> Iterator[Tensor]:
        """S_k, [D, up to COLUMNS] at a time."""
        down = self.down[k, :, None]
        for start in range(0, self.gate.shape[1], COLUMNS):
            here = slice(start, start + COLUMNS)
            yield self._summed(down, self.gate[:, here], self.up[:, here])

    def _summed(self, down: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        """1/2 (G' (d * up) + U' (d * gate))."""
        return (self.gate.T @ (down * up) + self.up.T @ (down * gate)) / 2

    def leading(self, k: int) -> LeadingPair:
        """The leading eigenpair: the same in every call, the sign of its direction arbitrary."""
        width, device = self.gate.shape[1], self.gate.device
        energy = sum(float(part.double().square().sum()) for part in self.columns(k))
        if not energy:
            return LeadingPair(0.0, torch.zeros(width, device=device), 0.0)
        if width <= DENSE:
            whole = torch.cat(list(self.columns(k)), 1).double().cpu().numpy()
            values, vectors = np.linalg.eigh(whole)
        else:
            values, vectors = self._lanczos(k)
        largest = int(np.abs(values).argmax())
        direction = torch.from_numpy(vectors[:, largest].astype(np.float32)).to(device)
        return LeadingPair(float(values[largest]), direction, float(values[largest] ** 2 / energy))

    def _lanczos(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The two largest: one alone converges slowly beside another of opposite sign."""
        width = self.gate.shape[1]

        def product(v: np.ndarray) -> np.ndarray:
            given = torch.from_numpy(np.ascontiguousarray(v)).to(self.gate)
            return self.product(k, given).double().cpu().numpy()

        operator: Any = LinearOperator((width, width), matvec=product, dtype=np.float64)  # pyright: ignore
        start = np.random.default_rng(0).standard_normal(width)
        # scipy's stubs take the default tol=0 for its type
        found: Any = eigsh(operator, k=2, which="LM", v0=start, tol=TOLERANCE)  # pyright: ignore
        return found

    def predict(self, k: int, pair: LeadingPair, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the whole form and its leading pair alone give for x [N, D]: each [N]."""
        x = x.to(self.gate)
        whole = ((x @ self.gate.T) * (x @ self.up.T)) @ self.down[k]
        return whole, pair.eigenvalue * (x @ pair.direction) ** 2
