"""The equation on tensors, and those of the controls."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wemask.operator.equation import (
    batch_activation_dims,
    damp_uniformly,
    fill_dims,
    soften_dims,
    top_dims,
)


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 6),
    width=st.integers(1, 9),
    strength=st.floats(0, 1),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_equation_element_by_element(rows, length, width, strength, seed, dtype):
    x = draw((rows, length, width), seed, dtype)
    gate = draw((rows, length), seed + 1) > 0
    dims = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[: 1 + width // 2]
    before = x.clone()
    out = soften_dims(x, gate, dims, strength)
    rounding = 4 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
    for b in range(rows):
        for t in range(length):
            for d in range(width):
                value, old = float(out[b, t, d]), float(x[b, t, d])
                if bool(gate[b, t]) and d in dims.tolist():
                    assert abs(value - old * (1 - strength)) <= rounding * abs(old)
                else:
                    assert value == old
    assert torch.equal(x, before)
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_is_the_identity_bit_for_bit(dtype):
    x = draw((2, 5, 8), 0, dtype)
    x[0, 0, 0], x[0, 0, 1] = -0.0, float("inf")
    out = soften_dims(x, torch.ones(2, 5, dtype=torch.bool), torch.arange(8), 0.0)
    assert torch.equal(out.view(torch.uint8), x.view(torch.uint8))


def test_strength_may_be_a_tensor_with_a_gradient():
    x, strength = draw((1, 3, 4), 0), torch.tensor(0.5, requires_grad=True)
    gate, dims = torch.tensor([[True, False, True]]), torch.tensor([1, 3])
    soften_dims(x, gate, dims, strength).sum().backward()
    assert strength.grad is not None
    torch.testing.assert_close(strength.grad, -x[0, [0, 2]][:, dims].sum())


def test_gradient_of_the_input_is_the_mask():
    x = draw((1, 2, 4), 0).requires_grad_()
    soften_dims(x, torch.tensor([[True, False]]), torch.tensor([2]), 0.25).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[1, 1, 0.75, 1], [1, 1, 1, 1]]]


def test_gate_of_one_row_broadcasts():
    x = draw((3, 2, 4), 0)
    out = soften_dims(x, torch.tensor([[True, False]]), torch.tensor([0]), 1.0)
    assert (out[:, 0, 0] == 0).all()
    assert torch.equal(out[:, 1], x[:, 1])


def test_top_dims_breaks_ties_by_index():
    assert top_dims(torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0]), 2).tolist() == [1, 2]


@given(seed=st.integers(0, 99), k=st.integers(1, 8))
def test_batch_activation_is_the_authors_selection(seed, k):
    x = draw((3, 4, 8), seed)
    gate = (torch.arange(4) == 0).unsqueeze(0).expand(3, 4)
    reference = x[:, 0, :].abs().mean(0).topk(k).indices
    assert set(batch_activation_dims(x, gate, k).tolist()) == set(reference.tolist())


class TestGradient:
    """The gradient by hand is autograd's own of the plain formula."""

    @staticmethod
    def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
        gate = torch.tensor([[True, False, False], [False, False, True]])
        return x, gate, torch.tensor([1, 4])

    def test_first_and_second_derivatives_by_finite_differences(self):
        x, gate, dims = self.case()
        s = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, s: soften_dims(x, gate, dims, s), (x, s))
        assert torch.autograd.gradgradcheck(lambda x: soften_dims(x, gate, dims, 0.3), (x,))

    def test_nothing_of_width_d_is_kept_for_backward(self):
        x, gate, dims = self.case()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.shape) or t, lambda t: t
        ):
            soften_dims(x, gate, dims, 1.0)
        assert sorted(map(tuple, kept)) == [(2,), (2, 3)]


def drawn(seed: int, dtype: torch.dtype, width: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """x [2, 5, width] with a token that is all zero and a negative zero; a gate; some dims."""
    x, gate = draw((2, 5, width), seed, dtype), draw((2, 5), seed + 1) > 0
    x[0, 1], x[1, 2, 0] = 0, -0.0
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    return x, gate, order[: 1 + seed % width]


DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@given(seed=st.integers(0, 99), strength=st.floats(0, 1), dtype=DTYPES)
def test_uniform_keeps_the_norm_that_softening_would_leave(seed, strength, dtype):
    x, gate, dims = drawn(seed, dtype)
    before = x.clone()
    out = damp_uniformly(x, gate, dims, strength)
    want = soften_dims(x.double(), gate, dims, strength).norm(dim=-1)
    rounding = 8 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
    assert torch.allclose(out.double().norm(dim=-1), want, rtol=rounding, atol=1e-6)
    assert torch.equal(out[~gate], x[~gate]) and out.dtype == dtype
    direction = torch.nn.functional.cosine_similarity(out.double(), x.double(), dim=-1)
    alive = (x.double().norm(dim=-1) > 0) & (want > 1e-4)
    assert torch.allclose(direction[alive], torch.ones_like(direction[alive]), atol=1e-4)
    assert torch.equal(x, before)


@given(seed=st.integers(0, 99), strength=st.floats(0, 1), dtype=DTYPES)
def test_fill_moves_the_dims_of_the_tokens_towards_the_values(seed, strength, dtype):
    x, gate, dims = drawn(seed, dtype)
    values, before = draw((len(dims),), seed + 2), x.clone()
    out = fill_dims(x, gate, dims, strength, values)
    expected = before.to(torch.float64, copy=True)
    expected[..., dims] = expected[..., dims] * (1 - strength) + strength * values.double()
    expected = torch.where(gate.unsqueeze(-1), expected, x.double())
    rounding = 4 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
    assert torch.allclose(out.double(), expected, rtol=rounding, atol=4 * rounding)
    assert torch.equal(x, before) and out.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(5))
def test_controls_at_strength_zero_are_the_identity_bit_for_bit(dtype, seed):
    x, gate, dims = drawn(seed, dtype)
    zeros = (0.0, torch.tensor(0.0))
    outs = [damp_uniformly(x.mT.contiguous().mT, gate, dims, s) for s in zeros]
    outs += [fill_dims(x, gate, dims, s, torch.ones(len(dims))) for s in zeros]
    for out in outs:
        assert torch.equal(out.contiguous().view(torch.uint8), x.view(torch.uint8))


@pytest.mark.parametrize("equation", ["uniform", "fill"])
@pytest.mark.parametrize("width", [1, 6])  # 1: all of a token is removed at strength 1
def test_gradients_of_controls_by_finite_differences_and_none_is_nan(equation, width):
    x = draw((1, 3, width), 0, torch.float64).requires_grad_()
    gate, dims = torch.tensor([[True, False, True]]), torch.arange((width + 1) // 2)
    values = torch.full((len(dims),), 2.0, dtype=torch.float64)
    apply: Any = damp_uniformly if equation == "uniform" else partial(fill_dims, values=values)
    s = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s: apply(x, gate, dims, s), (x, s))
    zero = torch.zeros(1, 3, width, requires_grad=True)
    for at in (zero, x):
        (grad,) = torch.autograd.grad(apply(at, gate, dims, 1.0).sum(), at)
        assert grad.isfinite().all()
