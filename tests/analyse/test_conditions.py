"""One condition: what it is called, when there is nothing to do, and its rows."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from report_cases import made_up_report
from torch import nn

from wemask.analyse.conditions import METRICS, Condition, Subject, condition_rows
from wemask.analyse.experiments import EXPERIMENTS
from wemask.analyse.rows import COLUMNS
from wemask.errors import DetectionError
from wemask.measure.layer_sums import Batch, LayerMetrics
from wemask.measure.measurement import Measurement


def layer(index: int, value: float) -> LayerMetrics:
    numbers: dict[str, Any] = {field.name: value for field in fields(LayerMetrics)}
    return LayerMetrics(**numbers | {"layer": index, "sink_mass_by_head": [value]})


def batch(*massive: bool) -> Batch:
    ids = torch.ones(1, len(massive), dtype=torch.long)
    return Batch(input_ids=ids, attention_mask=ids, massive=torch.tensor([massive]))


def test_a_condition_is_known_by_what_was_done_and_nothing_else() -> None:
    one = Condition(experiment="dose", group="wemask", amount=0.5, rate=0.01)
    assert list(one.names()) == list(COLUMNS[:6])
    assert one.key == "dose|wemask|None|0.5|0.01|None"
    assert replace(one, around=lambda batch: None).key == one.key  # pyright: ignore
    assert len({replace(one, **{name: 1}).key for name in ("at", "amount", "rate", "seed")}) == 4


def test_rows_are_the_mean_over_later_layers_and_each_layer() -> None:
    layers = [layer(0, 9.0), layer(1, 1.0), layer(2, 3.0), layer(3, math.nan)]
    found = Measurement(layers=layers, perplexity=7.0, texts=1, tokens=1, massive_tokens=1)
    rows = condition_rows(Condition(experiment="location", group="at", at=2), found, me_layer=0)
    assert len(rows) == 1 + len(METRICS) * (1 + len(layers))
    assert all(list(row) == list(COLUMNS) for row in rows)
    by_place = {(row["metric"], row["layer"]): row["value"] for row in rows}
    assert by_place["perplexity", None] == 7.0
    assert by_place["sink_mass", None] == 2.0  # of 1 and 3: not layer 0, not what is not there
    assert [by_place["sink_mass", i] for i in range(3)] == [9.0, 1.0, 3.0]
    assert {(row["experiment"], row["group"], row["at"]) for row in rows} == {("location", "at", 2)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_without_an_me_layer_or_a_massive_token_there_is_nothing_to_do(name: str) -> None:
    report = made_up_report()
    none = replace(report, found=False, layer=None, nearest_miss="layer 2, nearly")
    for given, batches, why in (
        (none, [batch(False, True)], f"need an ME Layer.*{none.verdict[:20]}"),
        (report, [batch(False, False)], "None of these texts has one"),
        (report, [], "None of these texts has one"),
    ):
        subject = Subject(model=nn.Identity(), report=given, batches=batches)
        with pytest.raises(DetectionError, match=why):
            EXPERIMENTS[name]().conditions(subject)
    subject = Subject(model=nn.Identity(), report=report, batches=[batch(False), batch(True)])
    assert subject.me_layer == report.layer
