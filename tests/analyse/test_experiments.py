"""Causal experiments on models in which the cause is known: a planted neuron, and planted sinks."""

from typing import Any

import pandas as pd
import pytest
import torch
from families import DIMS, LAYERS, MAGNITUDE, MASSIVE, ME_LAYER, build, detect, shared, texts
from planted.sinks import plant_sinks

import wemask
from wemask.analyse.conditions import METRICS, Condition, Subject
from wemask.analyse.experiments import (
    EXPERIMENTS,
    Dose,
    Location,
    Necessity,
    Specificity,
    Sufficiency,
    massive_vector,
    other_dims,
    run_experiment,
    softened_dims,
    spread,
)
from wemask.analyse.rows import COLUMNS, table
from wemask.errors import ConfigError
from wemask.evaluate.arms import CONTROLS
from wemask.measure.layer_sums import Batch
from wemask.measure.measurement import measure
from wemask.planted import plant


def batches(rows: int = 6) -> list[Batch]:
    ids = texts(rows=rows)
    mask = torch.ones_like(ids)
    return [
        Batch(input_ids=i, attention_mask=m, massive=i == MASSIVE)
        for i, m in zip(ids.split(3), mask.split(3), strict=True)
    ]


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A llama whose layer 1 makes token 7 massive, and whose later heads sink on what is."""
    model = build("llama")
    truth = plant(model, layer=ME_LAYER, token_ids=[MASSIVE], dims=DIMS, magnitude=MAGNITUDE)
    plant_sinks(model, truth)
    return Subject(model=model, report=detect(model), batches=batches())


def later(frame: pd.DataFrame, metric: str, **where: Any) -> float:
    """The one mean over later layers of a condition."""
    rows = frame[(frame.metric == metric) & frame.layer.isna()]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, (where, len(rows))
    return float(rows.value.iloc[0])


# --- ground truth ---------------------------------------------------------------------------------


def test_necessity_finds_the_planted_layer_and_no_other(subject):
    frame = run_experiment(Necessity(), subject)
    intact = later(frame, "sink_mass", group="ffn_output", amount=1.0)
    assert later(frame, "massive_magnitude", group="ffn_output", amount=1.0) > 0.9 * MAGNITUDE
    assert intact > 0.5
    for site in ("ffn_input", "ffn_output"):
        # without the planted neuron's write: no massive activation, no sink
        assert later(frame, "massive_magnitude", group=site, amount=0.0) < 0.02 * MAGNITUDE
        assert later(frame, "sink_mass", group=site, amount=0.0) < 0.5 * intact
        assert later(frame, "sink_rate", group=site, amount=0.0) < later(
            frame, "sink_rate", group=site, amount=1.0
        )
    # the write is linear in what is left of it
    half = later(frame, "massive_magnitude", group="ffn_output", amount=0.5)
    assert half == pytest.approx(0.5 * MAGNITUDE, rel=0.05)
    # other layers do nothing
    for layer in set(range(LAYERS)) - {ME_LAYER}:
        where = {"group": "other_layer", "at": layer}
        magnitude = later(frame, "massive_magnitude", **where)
        assert magnitude == pytest.approx(MAGNITUDE, rel=0.05)
        assert later(frame, "sink_mass", **where) == pytest.approx(intact, abs=0.05)


def test_scaling_by_one_changes_nothing(subject):
    frame = run_experiment(Necessity(scales=(1.0,), other_layers=0), subject)
    intact = measure(subject.model, subject.batches)
    for site in ("ffn_input", "ffn_output"):
        for row in intact.layers:
            here = frame[(frame.group == site) & (frame.layer == row.layer)]
            assert float(here[here.metric == "sink_mass"].value.iloc[0]) == row.sink_mass
        assert later(frame, "perplexity", group=site) == intact.perplexity


def test_sufficiency_the_vector_brings_them_back(subject):
    frame = run_experiment(Sufficiency(seeds=2), subject)
    intact, removed = (later(frame, "sink_mass", group=g) for g in ("intact", "removed"))
    restored = later(frame, "sink_mass", group="restored", amount=1.0)
    assert removed < 0.5 * intact
    assert restored == pytest.approx(intact, abs=0.02)
    assert later(frame, "massive_magnitude", group="restored", amount=1.0) == pytest.approx(
        later(frame, "massive_magnitude", group="intact"), rel=0.02
    )
    # other dims make a massive token, but no sink: the planted heads read the massive dims
    for seed in (0, 1):
        where = {"group": "other_dims", "seed": seed}
        assert later(frame, "massive_magnitude", **where) > 0.9 * MAGNITUDE
        assert later(frame, "sink_mass", **where) < 0.6 * intact
    # any token that carries the vector becomes a sink
    before = later(frame, "sink_mass", group="other_token_before")
    after = later(frame, "sink_mass", group="other_token")
    assert before < 0.4 < 0.5 * intact + 0.1 < after


def test_location_only_after_the_me_layer(subject):
    frame = run_experiment(Location(strength=1.0), subject)
    intact = later(frame, "sink_mass", group="intact")
    for group in ("before", "at"):
        assert later(frame, "sink_mass", group=group) == pytest.approx(intact, abs=0.03)
    alone = [later(frame, "sink_mass", group="one_layer", at=i) for i in range(LAYERS)]
    assert all(abs(mass - intact) < 0.03 for mass in alone[: ME_LAYER + 1])


def test_location_is_the_operator_where_that_applies(subject):
    """The same change by hooks as by `wemask.soften`, after the ME Layer."""
    frame = run_experiment(Location(strength=0.7, seeds=0), subject)
    operator = wemask.WeMaskConfig(strength=0.7)
    with wemask.soften(subject.model, subject.report, operator):
        softened = measure(subject.model, subject.batches)
    here = frame[(frame.group == "after") & frame.layer.notna()]
    for metric in METRICS:
        for row in softened.layers:
            value = here[(here.metric == metric) & (here.layer == row.layer)].value.iloc[0]
            assert value == pytest.approx(getattr(row, metric), rel=1e-4, nan_ok=True), metric


def test_specificity_has_the_operator_beside_every_control(subject):
    frame = run_experiment(Specificity(seeds=2), subject)
    assert set(frame.group) == {"intact", "wemask", *CONTROLS}
    drawn = frame[frame.group == "random_dims"]
    assert set(drawn.seed) == {0, 1}
    # set-zero takes the massive activation itself away, and the sinks with it
    intact = later(frame, "sink_mass", group="intact")
    assert later(frame, "massive_magnitude", group="set_zero") < 0.02 * MAGNITUDE
    assert later(frame, "sink_mass", group="set_zero") < 0.5 * intact
    assert later(frame, "sink_mass", group="wrong_token", seed=0) > 0.9 * intact


def test_dose_grows_with_the_strength(subject):
    experiment = Dose(rates=(0.1, 1.0), strengths=(0.0, 0.5, 1.0))
    frame = run_experiment(experiment, subject)
    intact = later(frame, "sink_mass", group="intact")
    for rate in (0.1, 1.0):
        assert later(frame, "sink_mass", group="wemask", rate=rate, amount=0.0) == intact
    full = [later(frame, "sink_mass", group="wemask", rate=1.0, amount=s) for s in (0.5, 1.0)]
    assert intact > full[0] > full[1]


@pytest.mark.parametrize(
    "family", ["gpt2", "phi3", "falcon", "gemma2", "opt", "qwen2_moe", "olmo2"]
)
def test_necessity_in_other_architectures(family):
    case = shared(family)
    subject = Subject(model=case.model, report=case.report, batches=batches())
    frame = run_experiment(Necessity(scales=(0.0, 1.0), other_layers=1), subject)
    with_it = later(frame, "massive_magnitude", group="ffn_output", amount=1.0)
    without = later(frame, "massive_magnitude", group="ffn_output", amount=0.0)
    assert with_it == pytest.approx(MAGNITUDE, rel=0.3)
    assert without < 0.05 * with_it


@pytest.mark.parametrize("family", ["gpt2", "olmo", "phi3", "gemma2"])
def test_all_experiments_run_in_other_architectures(family):
    case = shared(family)
    subject = Subject(
        model=case.model,
        report=case.report,
        batches=batches(3),
        operator=wemask.WeMaskConfig(dims="massive"),
    )
    for experiment in EXPERIMENTS.values():
        frame = run_experiment(experiment(), subject)
        assert frame.value.notna().any() and len(set(frame.group)) > 1


# --- the table ------------------------------------------------------------------------------------


def test_the_table_is_tidy_and_survives_parquet_and_csv(subject, tmp_path):
    frame = run_experiment(Necessity(scales=(0.0,), other_layers=1), subject)
    assert tuple(frame.columns) == COLUMNS
    conditions = 3
    assert len(frame) == conditions * (1 + len(METRICS) * (1 + LAYERS))
    assert not frame.duplicated(list(COLUMNS[:-1])).any()
    frame.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), frame)
    frame.to_csv(tmp_path / "t.csv", index=False)
    again = table(pd.read_csv(tmp_path / "t.csv").to_dict("records"))
    pd.testing.assert_frame_equal(again, frame)


def test_conditions_have_keys_of_their_own(subject):
    for experiment in EXPERIMENTS.values():
        keys = [condition.key for condition in experiment().conditions(subject)]
        assert len(set(keys)) == len(keys) > 1


def test_nothing_is_left_in_the_model(subject):
    ids = texts(rows=2)
    before = subject.model(input_ids=ids, use_cache=False).logits
    for experiment in (Sufficiency(seeds=1), Location(seeds=1), Specificity(seeds=1)):
        run_experiment(experiment, subject)
    assert torch.equal(subject.model(input_ids=ids, use_cache=False).logits, before)
    assert not hasattr(subject.model, "wemask_handle")


# --- errors and small parts -----------------------------------------------------------------------


def test_unknown_controls_are_refused():
    with pytest.raises(ConfigError, match="random_dims"):
        Specificity(controls=("nonsense",))


def test_impossible_conditions_are_left_out(subject, monkeypatch):
    from wemask.analyse import experiments
    from wemask.errors import PatchError

    real = Subject.measure

    def measure_or_not(self: Subject, condition: Condition) -> Any:
        if condition.group == "uniform":
            raise PatchError("no")
        return real(self, condition)

    monkeypatch.setattr(Subject, "measure", measure_or_not)
    frame = experiments.run_experiment(Specificity(seeds=1), subject)
    assert set(frame.group) == {"intact", "wemask", *CONTROLS} - {"uniform"}


def test_the_massive_vector_is_the_mean_over_massive_tokens(subject):
    vector = massive_vector(subject)
    assert vector.abs().tolist() == pytest.approx([MAGNITUDE] * len(DIMS), rel=0.1)


def test_other_dims_avoid_the_massive_ones():
    for seed in range(20):
        drawn = other_dims([1, 2], 6, seed)
        assert len(set(drawn)) == 2 and not {1, 2} & set(drawn)


def test_softened_dims_are_the_operators(subject):
    with wemask.soften(subject.model, subject.report, subject.operator) as handle:
        assert set(handle.dims[ME_LAYER + 1] or []) == set(softened_dims(subject))
    normless = shared("olmo")
    without = Subject(model=normless.model, report=normless.report, batches=batches())
    assert softened_dims(without) == normless.report.dims


def test_spread():
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(33), 3) == [0, 16, 32]
    assert spread([4, 7], 0) == []
