"""What a layer leaves behind of each batch: sums, and the metrics that follow from them."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from wemask.measure.layer_sums import (
    Batch,
    Direction,
    LayerMetrics,
    LayerSums,
    Mean,
    Median,
    average,
)
from wemask.measure.metrics import Received


def test_the_first_token_of_left_padded_texts():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    one = Batch(input_ids=mask, attention_mask=mask, massive=mask.bool())
    assert one.first.tolist() == [[False, False, True, False], [True, False, False, False]]


def test_the_streamed_median():
    torch.manual_seed(0)
    values = torch.randn(30, 1000).exp()
    median = Median()
    for row in values:
        median.add(-row)
    assert median.value == pytest.approx(float(values.median()), rel=2e-3)
    zeros = Median()
    zeros.add(torch.zeros(5))
    assert zeros.value == pytest.approx(0, abs=1e-30)


def test_means_and_directions_of_parts_are_those_of_the_whole():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    mean, direction = Mean(), Direction()
    for part in x.split([3, 0, 4]):
        mean.add(part[:, 0].tolist())
        direction.add(part)
    assert mean.value == pytest.approx(float(x[:, 0].mean()), rel=1e-6)
    units = x / x.norm(dim=-1, keepdim=True)
    pairs = [float(units[i] @ units[j]) for i in range(7) for j in range(i)]
    assert direction.cosine == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert math.isnan(Mean().value) and math.isnan(Direction().cosine)
    assert math.isnan(average([])) and average([1.0, 2.0]) == 1.5


def received(weights: Tensor, mask: Tensor) -> Received:
    found = Received.nothing(*weights.shape[:2], weights.shape[-1], weights.device)
    found.add(weights, mask)
    return found


def test_attention_to_the_first_token_of_two_batches_by_hand():
    """Half of each later query's attention goes to the first token, which is no massive one."""
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]])[None, None]
    mask = torch.ones(1, 3, dtype=torch.int64)
    batch = Batch(input_ids=mask, attention_mask=mask, massive=torch.zeros_like(mask).bool())
    sums = LayerSums(2)
    for _ in range(2):
        sums.add_attention(received(weights, mask), batch)
    sums.median.add(torch.ones(1))
    row = sums.result()
    assert (row.layer, row.sink_mass_first, row.sink_rate_first) == (2, 0.5, 1.0)
    assert row.sink_mass_by_head == [] and math.isnan(row.sink_mass) and math.isnan(row.sink_rate)


def test_norms_of_values_and_what_no_batch_had():
    values = torch.tensor([[[[3.0], [1.0], [100.0]]]])  # [1, 1 head, 3 tokens, 1]
    mask = torch.tensor([[1, 1, 0]])
    batch = Batch(input_ids=mask, attention_mask=mask, massive=torch.tensor([[True, False, False]]))
    sums = LayerSums(0)
    sums.add_values(values, batch)
    sums.median.add(torch.full((3,), 2.0))
    row = sums.result()
    assert row.value_norm_ratio == 3.0
    without = {k for k, v in row.to_dict().items() if v is None}
    assert without == {f.name for f in fields(LayerMetrics)} - {
        *("layer", "massive_max", "massive_ratio", "sink_mass_by_head", "value_norm_ratio")
    }
