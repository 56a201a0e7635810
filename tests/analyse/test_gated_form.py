"""The form that is never formed, against one that is."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from wemask.analyse import gated_form
from wemask.analyse.gated_form import DENSE, GatedForm

WIDTHS = st.integers(1, 80)  # both sides of DENSE
NEURONS = st.integers(1, 90)
SEEDS = st.integers(0, 2**16)


def drawn(width: int, neurons: int, seed: int, dims: int = 2) -> GatedForm:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((neurons, width), (neurons, width), (dims, neurons))
    return GatedForm(*(torch.randn(shape, generator=generator) for shape in shapes))


def dense(form: GatedForm, k: int) -> np.ndarray:
    """1/2 sum_f d_kf (g_f u_f' + u_f g_f'), one outer product after the other, in float64."""
    total = np.zeros((form.gate.shape[1],) * 2)
    gate, up, down = (t.double().numpy() for t in (form.gate, form.up, form.down))
    for g, u, d in zip(gate, up, down[k], strict=True):
        total += d * (np.outer(g, u) + np.outer(u, g)) / 2
    return total


@given(WIDTHS, NEURONS, SEEDS)
def test_products_columns_and_values(width, neurons, seed):
    form = drawn(width, neurons, seed)
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(seed + 1))
    for k in range(2):
        whole = dense(form, k)
        scale = np.abs(whole).max() + 1e-6
        products = form.product(k, x.T).numpy()
        assert np.abs(products - whole @ x.T.numpy()).max() < 1e-4 * scale * width
        assert torch.allclose(form.product(k, x[0]), form.product(k, x.T)[:, 0], atol=1e-3 * scale)
        columns = torch.cat(list(form.columns(k)), 1).numpy()
        assert np.abs(columns - whole).max() < 1e-4 * scale
        values, _ = form.predict(k, form.leading(k), x)
        expected = np.einsum("nd,de,ne->n", x.numpy(), whole, x.numpy())
        assert np.abs(values.numpy() - expected).max() < 1e-4 * scale * width**2


@given(WIDTHS, NEURONS, SEEDS)
def test_the_leading_pair_and_its_share(width, neurons, seed):
    form = drawn(width, neurons, seed)
    values, vectors = np.linalg.eigh(dense(form, 1))
    order = np.abs(values).argsort()[::-1]
    largest = np.abs(values[order[0]])
    assume(largest > 1e-3)
    pair = form.leading(1)
    assert abs(pair.eigenvalue) == pytest.approx(largest, rel=1e-4)
    assert pair.share == pytest.approx(largest**2 / (values**2).sum(), rel=1e-3)
    assert 0 < pair.share <= 1 + 1e-4
    assert float(pair.direction.norm()) == pytest.approx(1, abs=1e-4)
    if width == 1 or np.abs(values[order[1]]) < 0.95 * largest:  # else two could be meant
        assert pair.eigenvalue == pytest.approx(values[order[0]], rel=1e-4)
        cosine = float(np.abs(pair.direction.numpy() @ vectors[:, order[0]]))
        assert cosine == pytest.approx(1, abs=1e-4)
    residual = form.product(1, pair.direction) - pair.eigenvalue * pair.direction
    assert float(residual.norm()) < 1e-3 * largest


@given(SEEDS)
def test_both_ways_agree_and_repeat(seed):
    form = drawn(DENSE, 40, seed)
    values, _ = form._lanczos(0)
    pair = form.leading(0)  # formed at this width
    assert np.abs(values).max() == pytest.approx(abs(pair.eigenvalue), rel=1e-4)
    wide = drawn(DENSE + 32, 60, seed)
    first, second = wide.leading(0), wide.leading(0)
    assert first.eigenvalue == second.eigenvalue
    assert torch.equal(first.direction, second.direction)


def one_neuron(width: int, g: Tensor, u: Tensor, d: float) -> GatedForm:
    return GatedForm(g[None], u[None], torch.tensor([[d]]))


@pytest.mark.parametrize("width", [16, 64])
def test_one_neuron_by_hand(width):
    """d (g u' + u g') / 2 has the eigenvalues d (g.u +- |g||u|) / 2, and no others."""
    e = torch.eye(width)
    same = one_neuron(width, 8 * e[3], e[3], 5.0).leading(0)
    assert same.eigenvalue == pytest.approx(40, rel=1e-5)
    assert same.share == pytest.approx(1, rel=1e-5)
    assert abs(float(same.direction[3])) == pytest.approx(1, abs=1e-5)
    against = one_neuron(width, 8 * e[3], -e[3], 5.0).leading(0)
    assert against.eigenvalue == pytest.approx(-40, rel=1e-5)
    across = one_neuron(width, 8 * e[3], e[4], 5.0).leading(0)
    assert abs(across.eigenvalue) == pytest.approx(20, rel=1e-5)
    assert across.share == pytest.approx(0.5, rel=1e-5)


def test_a_form_of_zeros_has_no_direction():
    for width in (8, 64):
        pair = one_neuron(width, torch.ones(width), torch.ones(width), 0.0).leading(0)
        assert (pair.eigenvalue, pair.share) == (0.0, 0.0) and not pair.direction.any()


def test_the_norm_does_not_depend_on_how_many_columns_are_held(monkeypatch):
    form = drawn(70, 30, 0)
    shares = []
    for columns in (1, 7, 70, 512):
        monkeypatch.setattr(gated_form, "COLUMNS", columns)
        assert max(part.shape[1] for part in form.columns(0)) == min(columns, 70)
        shares.append(form.leading(0).share)
    assert shares == pytest.approx([shares[0]] * 4, rel=1e-5)
