"""What one decoder layer leaves behind of each batch: sums, from which its metrics follow.

B batch, T tokens, D hidden size, H heads.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from wemask.decoder.passage import Passage, rows_of
from wemask.measure import metrics
from wemask.measure.metrics import Received

BINS = 2**15  # of positive bfloat16 numbers


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Texts, and which of their tokens are the massive ones."""

    input_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, T], 1 for real tokens
    massive: Tensor  # bool [B, T]

    @property
    def first(self) -> Tensor:
        """bool [B, T]: the first real token of each text."""
        return (self.attention_mask.cumsum(-1) == 1) & self.attention_mask.bool()


@dataclass(kw_only=True)
class LayerMetrics:
    """One decoder layer l, over all texts. NaN where a metric does not apply."""

    layer: int
    massive_max: float  # largest |h[l]| of any token
    massive_ratio: float  # that over the median |h[l]|
    massive_magnitude: float  # largest |h[l, t]| of a massive token t, mean over these tokens
    sink_mass: float  # mean attention that later queries pay to the massive tokens, mean over heads
    sink_mass_by_head: list[float]
    sink_rate: float  # share of (massive token, head) pairs whose sink score exceeds 0.3
    sink_mass_first: float  # sink mass of the first token of each text, massive or not
    sink_rate_first: float  # Sink^0.3 of the first token, the layer's part of arXiv 2410.10781
    value_norm_ratio: float  # norm of a massive token's value state over that of the others
    rigidity_layers: float  # cosine of a massive token's h[l] with its h[l-1], mean
    rigidity_inputs: float
    """Mean cosine between h[l] of massive tokens, over all pairs of them in all texts."""
    attention_input_rigidity: float  # the same for x[l], what attention reads
    attention_input_rigidity_ordinary: float
    """The same for ordinary tokens: what to hold it against."""
    matrix_entropy: float  # of the attention input of a text, in nats, mean over texts
    effective_rank: float  # exp of a text's matrix entropy, mean over texts
    anisotropy: float
    """Share of the attention input's energy in its leading direction, mean over texts."""
    mean_cosine: float  # between the tokens' attention inputs of a text, mean over texts
    energy_kl_before_norm: float
    """KL from uniform of a massive token's energy over dims, in h[l-1], nats, mean."""
    energy_kl_after_norm: float  # the same in x[l]
    attention_share: float
    """Share of what the layer writes into massive tokens that attention wrote, mean."""
    ffn_share: float  # the rest

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


class Mean:
    """A mean of numbers that come one by one, or many at a time."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self.total, self.count = self.total + float(value), self.count + 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


class Direction:
    """The sum of unit vectors, which holds the mean cosine of all their pairs."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Count vectors [n, D] in."""
        if not len(x):
            return
        total = metrics.unit(x.float()).double().sum(0).cpu()
        self.total = total if self.total is None else self.total + total
        self.count += len(x)

    @property
    def cosine(self) -> float:
        return math.nan if self.total is None else metrics.mean_cosine(self.total, self.count)


class Median:
    """A median to three digits, of any number of values, in 256 kB.

    Counts by the first 15 bits (a bfloat16 without sign: bins 0.8% wide), and interpolates.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count |values| in; any shape."""
        bits = values.abs().float().contiguous().view(torch.int32) >> 16
        self.counts += torch.bincount(bits.flatten(), minlength=BINS).cpu()

    @property
    def value(self) -> float:
        middle = (int(self.counts.sum()) + 1) / 2
        below = self.counts.cumsum(0)
        place = int((below >= middle).nonzero()[0])
        inside = (middle - int(below[place]) + int(self.counts[place]) - 0.5) / int(
            self.counts[place]
        )
        bits = torch.tensor([place, place + 1], dtype=torch.int32) << 16
        low, high = bits.view(torch.float32).tolist()
        return low + inside * (high - low)


class LayerSums:
    """Sums of one layer."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.largest = 0.0
        self.median = Median()
        # by the field of `LayerMetrics` that each becomes, and value norms
        self.means: defaultdict[str, Mean] = defaultdict(Mean)
        self.directions: defaultdict[str, Direction] = defaultdict(Direction)
        self.paid: dict[str, Tensor] = {}  # attention paid to later tokens, summed, [H]
        self.above: dict[str, Tensor] = {}  # sinks, counted, [H]
        self.queries: defaultdict[str, int] = defaultdict(int)
        self.sinks: defaultdict[str, int] = defaultdict(int)

    # --- attention --------------------------------------------------------------------------------

    def add_attention(self, received: Received, batch: Batch) -> None:
        """Count in the attention that massive and first tokens receive."""
        mask = batch.attention_mask
        for name, tokens in (("massive", batch.massive), ("first", batch.first)):
            queries = metrics.later_queries(mask, tokens)
            mass = metrics.sink_mass_by_head(received, mask, tokens).double().cpu() * queries
            count = int((tokens & mask.bool()).sum())
            above = torch.zeros_like(mass)
            if count:
                above = metrics.sink_rate(received, mask, tokens).double().cpu() * count
            self.paid[name] = self.paid.get(name, 0) + mass
            self.above[name] = self.above.get(name, 0) + above
            self.queries[name] += queries
            self.sinks[name] += count

    def add_values(self, values: Tensor, batch: Batch) -> None:
        """Count in the norms of value states [B, heads, T, d]."""
        norms = values.float().square().sum((1, 3)).sqrt().cpu()
        mask, massive = (t.bool().cpu() for t in (batch.attention_mask, batch.massive))
        self.means["value_massive"].add(norms[massive & mask].tolist())
        self.means["value_ordinary"].add(norms[mask & ~massive].tolist())

    # --- states -----------------------------------------------------------------------------------

    def add_states(self, passage: Passage, batch: Batch, places: Tensor) -> None:
        """Count in what the layer read and wrote; `places` are those of massive tokens in B * T."""
        real = batch.attention_mask.bool().flatten().nonzero().flatten()
        left = passage.left.reshape(-1, passage.left.shape[-1])
        left = left.index_select(0, real.to(left.device))
        self.largest = max(self.largest, float(left.float().abs().max()))
        self.median.add(left)
        self._add_massive(passage, places)
        if passage.attention_input is not None:
            self._add_inputs(passage.attention_input, batch, places)

    def _add_massive(self, passage: Passage, places: Tensor) -> None:
        if not len(places):
            return
        before, after = rows_of(passage.entered, places), rows_of(passage.left, places)
        self.means["massive_magnitude"].add(after.abs().amax(-1).tolist())
        cosines = torch.nn.functional.cosine_similarity(before, after, dim=-1)
        self.means["rigidity_layers"].add(cosines.tolist())
        self.directions["rigidity_inputs"].add(after)
        shares = [metrics.kl_from_uniform(metrics.energy_shares(row)) for row in before]
        self.means["energy_kl_before_norm"].add(shares)
        if (writes := passage.writes(places)) is not None:
            whole = writes[0] + writes[1]
            self.means["attention_share"].add(metrics.share_written(writes[0], whole).tolist())
            self.means["ffn_share"].add(metrics.share_written(writes[1], whole).tolist())

    def _add_inputs(self, x: Tensor, batch: Batch, places: Tensor) -> None:
        massive = rows_of(x, places)
        self.directions["attention_input_rigidity"].add(massive)
        shares = [metrics.kl_from_uniform(metrics.energy_shares(row)) for row in massive]
        self.means["energy_kl_after_norm"].add(shares)
        for text, mask, marked in zip(
            x, batch.attention_mask.bool(), batch.massive.bool(), strict=True
        ):
            self._add_text(text[mask.to(x.device)])
            ordinary = (mask.cpu() & ~marked.cpu()).to(x.device)
            self.directions["attention_input_rigidity_ordinary"].add(text[ordinary])

    def _add_text(self, x: Tensor) -> None:
        """Diversity of one text's attention input [t, D]."""
        if len(x) < 2:  # one token has one direction, whatever the model
            return
        p = metrics.spectrum(x)
        self.means["matrix_entropy"].add([metrics.matrix_entropy(p)])
        self.means["effective_rank"].add([metrics.effective_rank(p)])
        self.means["anisotropy"].add([metrics.anisotropy(p)])
        cosine = metrics.mean_cosine(metrics.unit(x.float()).double().sum(0), len(x))
        self.means["mean_cosine"].add([cosine])

    # --- result -----------------------------------------------------------------------------------

    def mass_by_head(self, name: str) -> list[float]:
        """Sink mass per head on `massive` or `first` tokens; empty where there is none."""
        if not self.sinks[name]:
            return []
        return (self.paid[name] / max(1, self.queries[name])).tolist()

    def rate(self, name: str) -> float:
        """Sink rate, mean over heads."""
        return float((self.above[name] / self.sinks[name]).mean()) if self.sinks[name] else math.nan

    def result(self) -> LayerMetrics:
        """The layer's metrics over all that was counted in."""
        median, by_head = self.median.value, self.mass_by_head("massive")
        values: dict[str, Any] = {f.name: self.means[f.name].value for f in fields(LayerMetrics)}
        values |= {name: direction.cosine for name, direction in self.directions.items()}
        massive, ordinary = (self.means[f"value_{kind}"] for kind in ("massive", "ordinary"))
        values |= {
            "layer": self.index,
            "massive_max": self.largest,
            "massive_ratio": self.largest / median if median else math.inf,
            "sink_mass": average(by_head),
            "sink_mass_by_head": by_head,
            "sink_rate": self.rate("massive"),
            "sink_mass_first": average(self.mass_by_head("first")),
            "sink_rate_first": self.rate("first"),
            "value_norm_ratio": massive.value / ordinary.value,
        }
        return LayerMetrics(**values)


def average(values: Sequence[float]) -> float:
    """Their mean; NaN where there are none."""
    return sum(values) / len(values) if values else math.nan
