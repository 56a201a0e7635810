"""Each metric against a number worked out by hand, or against its published definition."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from torch import Tensor

from wemask.errors import DetectionError
from wemask.measure import metrics
from wemask.measure.metrics import Received

ATTENTION = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],
        [0.9, 0.1, 0.0, 0.0],
        [0.5, 0.3, 0.2, 0.0],
        [0.4, 0.3, 0.2, 0.1],
    ]
)[None, None]  # one head; queries are rows, keys are columns


def received(weights: Tensor, mask: Tensor, step: int = 0) -> Received:
    """In blocks of `step` queries; 0: all at once."""
    batch, heads, length = weights.shape[:3]
    found = Received.nothing(batch, heads, length, weights.device)
    step = step or length
    for first in range(0, length, step):
        found.add(weights[:, :, first : first + step], mask, first)
    return found


def mass(weights: Tensor, mask: Tensor, tokens: Tensor) -> float:
    return float(metrics.sink_mass_by_head(received(weights, mask), mask, tokens).mean())


# --- sinks ----------------------------------------------------------------------------------------


def test_sink_mass_by_hand():
    mask, massive = torch.ones(1, 4), torch.tensor([[True, False, False, False]])
    # its own row is left out: (0.9 + 0.5 + 0.4) / 3
    assert mass(ATTENTION, mask, massive) == pytest.approx(0.6)
    # the last token is a pad: (0.9 + 0.5) / 2
    mask[0, 3] = 0
    assert mass(ATTENTION, mask, massive) == pytest.approx(0.7)
    # two massive tokens: query 1 sees one (0.9), query 2 both (0.5 + 0.3)
    massive[0, 1] = True
    assert mass(ATTENTION, mask, massive) == pytest.approx((0.9 + 0.8) / 2)
    # a massive pad counts for nothing
    assert mass(ATTENTION, mask, massive | (mask == 0)) == pytest.approx((0.9 + 0.8) / 2)
    # two heads average; two rows pool their queries
    heads = torch.cat([ATTENTION, torch.zeros_like(ATTENTION)], 1)
    assert mass(heads, mask, massive) == pytest.approx((0.9 + 0.8) / 4)
    by_head = metrics.sink_mass_by_head(received(heads, mask), mask, massive)
    assert by_head.tolist() == pytest.approx([0.85, 0])
    rows = torch.cat([ATTENTION, torch.zeros_like(ATTENTION)])
    both = mass(rows, mask.repeat(2, 1), massive.repeat(2, 1))
    assert both == pytest.approx((0.9 + 0.8) / 4)
    # no later query at all
    last = torch.tensor([[False, False, False, True]])
    assert mass(ATTENTION, torch.ones(1, 4), last) == 0


def test_uniform_attention_has_the_mass_of_a_uniform_row():
    length = 6
    weights = torch.ones(length, length).tril()
    weights = (weights / weights.sum(-1, keepdim=True))[None, None]
    first = torch.arange(length)[None] == 0
    expected = sum(1 / n for n in range(2, length + 1)) / (length - 1)
    assert mass(weights, torch.ones(1, length), first) == pytest.approx(expected)


def test_sink_scores_and_rate_as_published():
    # alpha_k = mean over i >= k of A[i, k], the token's own row included (arXiv 2410.10781)
    mask = torch.ones(1, 4)
    scores = metrics.sink_scores(received(ATTENTION, mask), mask)
    expected = [(1 + 0.9 + 0.5 + 0.4) / 4, (0.1 + 0.3 + 0.3) / 3, (0.2 + 0.2) / 2, 0.1]
    assert scores[0, 0].tolist() == pytest.approx(expected)
    first = torch.tensor([[True, False, False, False]])
    found = received(ATTENTION, mask)
    assert metrics.sink_rate(found, mask, first).tolist() == [1.0]
    assert metrics.sink_rate(found, mask, first, eps=0.71).tolist() == [0.0]
    assert metrics.sink_rate(found, mask, first, eps=0.69).tolist() == [1.0]
    assert metrics.sink_rate(found, mask, first | True, eps=0.15).tolist() == [0.75]
    # a left pad: token 1 is the first, and three queries look at it
    mask[0, 0] = 0
    scores = metrics.sink_scores(received(ATTENTION, mask), mask)
    assert scores[0, 0].tolist() == pytest.approx([0, *expected[1:]])
    assert math.isnan(metrics.sink_rate(found, mask, first).mean())


@given(
    arrays(np.float64, (2, 2, 5, 5), elements=st.floats(0.01, 1)),
    arrays(np.bool_, (2, 5)),
    st.integers(1, 5),
)
def test_blocks_of_queries_change_nothing(weights, mask, step):
    weights, mask = torch.tensor(weights).float().tril(), torch.tensor(mask)
    whole, parts = received(weights, mask), received(weights, mask, step)
    assert torch.allclose(whole.total, parts.total)
    assert torch.equal(whole.own, parts.own)
    real = mask[:, None, :, None].float()
    assert torch.allclose(whole.total, (weights * real).sum(2), atol=1e-6)
    assert torch.equal(whole.own, (weights * real).diagonal(dim1=-2, dim2=-1))


def test_later_queries():
    tokens = torch.tensor([[False, True, False, False], [True, False, False, True]])
    assert metrics.later_queries(torch.ones(2, 4), tokens) == 2 + 3
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert metrics.later_queries(mask, tokens) == 1 + 0


# --- diversity ------------------------------------------------------------------------------------


def test_spectrum_entropy_rank_and_anisotropy_by_hand():
    # singular values 3, 4, 0: p = 16/25, 9/25
    x = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    p = metrics.spectrum(x)
    assert p.tolist() == pytest.approx([0.64, 0.36, 0.0])
    entropy = -(0.64 * math.log(0.64) + 0.36 * math.log(0.36))
    assert metrics.matrix_entropy(p) == pytest.approx(entropy)
    assert metrics.effective_rank(p) == pytest.approx(math.exp(entropy))
    assert metrics.anisotropy(p) == pytest.approx(0.64)
    # equal orthogonal tokens: as many directions as tokens; one direction: one
    assert metrics.effective_rank(metrics.spectrum(torch.eye(5) * 7)) == pytest.approx(5)
    same = metrics.spectrum(torch.ones(5, 3))
    assert (metrics.effective_rank(same), metrics.anisotropy(same)) == (
        pytest.approx(1),
        pytest.approx(1),
    )
    assert metrics.spectrum(x.T).tolist() == pytest.approx(p.tolist())  # the smaller Gram matrix


def test_a_matrix_without_energy_has_no_spectrum():
    for x in (torch.zeros(3, 2), torch.zeros(0, 2)):
        with pytest.raises(DetectionError, match="without energy"):
            metrics.spectrum(x)


FINITE = st.floats(-100, 100, width=32)
MATRICES = st.tuples(st.integers(2, 6), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=FINITE)
)


@given(MATRICES)
def test_spectrum_is_that_of_the_singular_values(x):
    energy = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
    if energy.sum() < 1e-6:
        return
    p = metrics.spectrum(torch.tensor(x))
    assert p.sum() == pytest.approx(1)
    assert p.numpy() == pytest.approx(energy / energy.sum(), abs=1e-9)
    rank = metrics.effective_rank(p)
    assert 1 - 1e-9 <= rank <= min(x.shape) + 1e-9


def anisotropy_bound(x: torch.Tensor, token: int) -> float:
    """What one token of X [T, D] makes p_1 at least: (c + alpha) / (c + 1) of arXiv 2510.06477.

    c is the energy of the token over that of all the others, alpha the energy-weighted mean squared
    cosine of the others with it. 1 where the others have no energy.
    """
    x = x.double()
    own, others = x[token], torch.cat([x[:token], x[token + 1 :]])
    rest = float(others.square().sum())
    if not rest:
        return 1.0
    unit = own / own.norm().clamp(min=1e-300)
    c, alpha = float(own.square().sum()) / rest, float((others @ unit).square().sum()) / rest
    return (c + alpha) / (c + 1)


@given(MATRICES, st.integers(0, 5), st.floats(1, 1000))
def test_a_massive_token_bounds_the_anisotropy_from_below(x, token, gain):
    # p_1 >= (c + alpha) / (c + 1), arXiv 2510.06477
    x, token = torch.tensor(x), token % len(x)
    x[token] *= gain
    if float(x.double().square().sum()) < 1e-6:
        return
    bound = anisotropy_bound(x, token)
    assert 0 <= bound <= 1 + 1e-9
    assert metrics.anisotropy(metrics.spectrum(x)) >= bound - 1e-9


def test_the_bound_by_hand_and_where_it_is_tight():
    # token 0: energy 100; the others 1 + 1, of which one is parallel to it: c = 50, alpha = 1/2
    x = torch.tensor([[10.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert anisotropy_bound(x, 0) == pytest.approx(50.5 / 51)
    assert metrics.anisotropy(metrics.spectrum(x)) == pytest.approx(50.5 / 51)  # 101 / 102
    assert anisotropy_bound(x[:1], 0) == 1


@given(arrays(np.float64, (4, 3), elements=st.floats(-10, 10)))
def test_mean_cosine_is_that_over_all_pairs(x):
    x = torch.tensor(x)
    units = metrics.unit(x)
    if float(x.norm(dim=-1).min()) < 1e-3:
        return
    pairs = [float(units[i] @ units[j]) for i in range(4) for j in range(i)]
    assert metrics.mean_cosine(units.sum(0), 4) == pytest.approx(sum(pairs) / 6, abs=1e-9)


def test_mean_cosine_needs_two():
    assert math.isnan(metrics.mean_cosine(torch.ones(3), 1))


# --- norms, writes, loss --------------------------------------------------------------------------


def test_energy_and_its_concentration_by_hand():
    shares = metrics.energy_shares(torch.tensor([3.0, 0.0, 4.0, 0.0]))
    assert shares.tolist() == pytest.approx([0.36, 0, 0.64, 0])
    kl = 0.36 * math.log(0.36 * 4) + 0.64 * math.log(0.64 * 4)
    assert metrics.kl_from_uniform(shares) == pytest.approx(kl)
    assert metrics.kl_from_uniform(torch.full((8,), 1 / 8)) == pytest.approx(0, abs=1e-6)
    assert metrics.kl_from_uniform(torch.eye(8)[0]) == pytest.approx(math.log(8))


def test_shares_of_a_write_add_up():
    attention, ffn = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 2.0]])
    whole = attention + ffn  # (4, 2), energy 20
    assert metrics.share_written(attention, whole).tolist() == pytest.approx([4 / 20])
    assert metrics.share_written(ffn, whole).tolist() == pytest.approx([16 / 20])
    against = torch.tensor([[-1.0, 0.0]])
    assert metrics.share_written(against, whole).item() < 0


def test_perplexity():
    assert metrics.perplexity(3 * math.log(5), 3) == pytest.approx(5)
    assert math.isnan(metrics.perplexity(0.0, 0))
