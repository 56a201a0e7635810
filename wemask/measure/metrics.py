"""The metrics, as pure functions of tensors, each with its definition and its source.

    sink score     alpha_k = mean over queries i >= k of A[i, k]              (arXiv 2410.10781)
    sink rate      share of (layer, head) pairs whose alpha_k exceeds eps     (arXiv 2410.10781)
    sink mass      mean attention that LATER queries i > k pay to a token: its own row is left out,
                   since the first token's own row is always 1
    spectrum       p_j = sigma_j^2 / ||X||_F^2 of a token matrix X [T, D]     (arXiv 2510.06477)
    matrix entropy H = -sum p_j log p_j, effective rank exp(H), anisotropy p_1
    rigidity       cosine of a token's state in different layers, or of massive tokens in
                   different inputs

B batch, H heads, T tokens, D hidden size. `measurement.py` gathers them over a model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wemask.errors import DetectionError

SINK = 0.3  # eps of the sink rate, as in arXiv 2410.10781


# ------------------------------------------------------------------------------------- attention


@dataclass(kw_only=True)
class Received:
    """Attention that each token of one layer receives from the real queries of its text."""

    total: Tensor  # sum over all real queries, float32 [B, H, T]
    own: Tensor  # of that, from the token itself, [B, H, T]

    @classmethod
    def nothing(cls, batch: int, heads: int, length: int, device: torch.device) -> "Received":
        """Before any query was seen."""
        zeros = torch.zeros(batch, heads, length, device=device)
        return cls(total=zeros, own=zeros.clone())

    def add(self, weights: Tensor, mask: Tensor, first_query: int = 0) -> None:
        """Count the queries of a block [B, H, queries, T] in, but for pads (0 in the mask [B, T]).

        The first of them is the token `first_query`.
        """
        queries = torch.arange(weights.shape[2], device=weights.device)
        real = mask.to(weights.device).bool()[:, None, queries + first_query]  # [B, 1, queries]
        self.total += torch.einsum("bhqk,bcq->bhk", weights.float(), real.float())
        diagonal = weights.float()[:, :, queries, queries + first_query]
        self.own[:, :, queries + first_query] += diagonal * real


def sink_scores(received: Received, mask: Tensor) -> Tensor:
    """alpha_k of arXiv 2410.10781: mean over real queries i >= k of A[i, k], [B, H, T].

    Pads, for which there is no query, get 0.
    """
    real = mask.to(received.total.device).float()
    queries = real.flip(-1).cumsum(-1).flip(-1)  # real tokens at and after k
    return received.total / queries.clamp(min=1)[:, None] * real[:, None]


def sink_rate(received: Received, mask: Tensor, tokens: Tensor, eps: float = SINK) -> Tensor:
    """Share of the tokens, bool [B, T], whose sink score exceeds `eps`, per head [H]; NaN without.

    Its mean over heads and layers is Sink^eps of arXiv 2410.10781.
    """
    chosen = (tokens & mask.bool()).to(received.total.device)
    above = (sink_scores(received, mask) > eps).float()
    return (above * chosen[:, None]).sum((0, 2)) / chosen.sum()


def later_queries(mask: Tensor, tokens: Tensor) -> int:
    """Real queries that come after at least one of the tokens, over all texts."""
    chosen = (tokens & mask.bool()).long()
    return int(((chosen.cumsum(-1) - chosen > 0) & mask.bool()).sum())


def sink_mass_by_head(received: Received, mask: Tensor, tokens: Tensor) -> Tensor:
    """Mean attention to the tokens over later real queries, for every head [H], 0 to 1.

    A query that follows several of the tokens pays them the sum. Zeros where no query comes after.
    """
    chosen = (tokens & mask.bool()).to(received.total.device)
    paid = ((received.total - received.own) * chosen[:, None]).sum((0, 2))
    return paid / max(1, later_queries(mask, tokens))


# ------------------------------------------------------------------------------------- diversity


def spectrum(x: Tensor) -> Tensor:
    """p_j = sigma_j^2 / ||X||_F^2 of a token matrix, descending, float64 [min(T, D)].

    From the smaller of the two Gram matrices.

    Raises:
        DetectionError: X [T, D] is empty or zero, so that it has no spectrum.
    """
    x = x.double()
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    energy = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    if not len(energy) or not energy[0] > 0:
        raise DetectionError(
            f"A token matrix of shape {list(x.shape)} without energy: no spectrum."
        )
    return energy / energy.sum()


def matrix_entropy(p: Tensor) -> float:
    """H = -sum p_j log p_j of a spectrum, in nats: 0 for one direction, log T for T equal ones."""
    return float(-torch.special.xlogy(p, p).sum())


def effective_rank(p: Tensor) -> float:
    """exp(H): how many directions the tokens use."""
    return math.exp(matrix_entropy(p))


def anisotropy(p: Tensor) -> float:
    """p_1, the share of the energy in the leading direction."""
    return float(p[0])


def mean_cosine(units: Tensor, count: int) -> float:
    """Mean cosine over all pairs of `count` vectors, from the sum [D] of their unit vectors.

    |sum u|^2 = n + the cosines of all ordered pairs, so no pair is ever formed. NaN below two.
    """
    if count < 2:
        return math.nan
    return (float(units.double().square().sum()) - count) / (count * (count - 1))


def unit(x: Tensor) -> Tensor:
    """Vectors [..., D] of length 1; zeros stay zeros."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-30)


# ---------------------------------------------------------------------------- norms and energies


def kl_from_uniform(p: Tensor) -> float:
    """KL(p || uniform) in nats of shares p [D]: 0 when spread evenly, log D when all in one dim."""
    return float(torch.special.xlogy(p, p).sum() + math.log(len(p)))


def energy_shares(x: Tensor) -> Tensor:
    """x_d^2 / |x|^2 of a vector [D], float64."""
    energy = x.double().square()
    return energy / energy.sum().clamp(min=1e-300)


def share_written(part: Tensor, whole: Tensor) -> Tensor:
    """Share of a write that one part of it did: <part, whole> / |whole|^2, [n] of [n, D] each.

    The shares of the parts of a sum add up to 1; one that works against the rest is below 0.
    """
    energy = whole.double().square().sum(-1).clamp(min=1e-300)
    return (part.double() * whole.double()).sum(-1) / energy


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean next-token loss; NaN without tokens."""
    return math.exp(nats / tokens) if tokens else math.nan
