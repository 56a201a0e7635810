"""The settings of the operator: every problem together, each with the nearest name."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wemask import StrengthSchedule, WeMaskConfig
from wemask.errors import ConfigError
from wemask.operator.settings import LearnableStrength


class TestConfig:
    """Every problem together, each with the nearest name."""

    def test_defaults_are_the_papers(self):
        assert WeMaskConfig().to_dict() == {
            "rate": 0.001,
            "layers": "after_me",
            "tokens": "massive",
            "dims": "me_norm",
            "site": "attention_input",
            "fill": "zero",
            "strength": 1.0,
            "seed": 0,
        }

    def test_all_problems_at_once(self):
        with pytest.raises(ConfigError) as raised:
            WeMaskConfig(
                rate=0.0,
                layers="after",
                tokens="masive",
                dims="me_nrm",
                site="residul_copy",
                fill="means",
                strength=2.0,
                seed=1.5,  # pyright: ignore[reportArgumentType]
            )
        lines = str(raised.value).splitlines()
        starts = [line.split()[0] for line in lines]
        assert starts == ["rate", "layers", "tokens", "dims", "site", "fill", "strength", "seed"]
        for line, near in zip(
            lines[1:6], ("after_me", "massive", "me_norm", "residual_copy", "mean"), strict=True
        ):
            assert line.endswith(f"Did you mean {near!r}?")

    @pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan"), float("inf"), "0.1", True, None])
    def test_rate_out_of_range(self, rate):
        with pytest.raises(ConfigError, match=r"0 < rate <= 1, got"):
            WeMaskConfig(rate=rate)

    @pytest.mark.parametrize("layers", [(), (1, 1), (-1,), (1.0,), (True,), 3, None, ["2"]])
    def test_layers_that_are_none(self, layers):
        with pytest.raises(ConfigError, match="layers is one of"):
            WeMaskConfig(layers=layers)

    @pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "1", None, True])
    def test_strength_out_of_range(self, strength):
        with pytest.raises(ConfigError, match="strength must be a number from 0 to 1"):
            WeMaskConfig(strength=strength)

    @pytest.mark.parametrize("layers", ["from_me", "before_me"])
    def test_before_the_me_layer_no_token_is_massive(self, layers):
        with pytest.raises(ConfigError, match=f"layers={layers} .* Type tokens=first"):
            WeMaskConfig(layers=layers)
        assert WeMaskConfig(layers=layers, tokens="first").layers == layers

    def test_schedule_from_plain_values_and_its_problems_together(self):
        config = WeMaskConfig(strength={"start": 0.5, "end": 1.0, "steps": 4})  # pyright: ignore
        schedule = config.strength
        assert isinstance(schedule, StrengthSchedule)
        assert [schedule.at(i) for i in (-1, 0, 2, 4, 9)] == [0.5, 0.5, 0.75, 1.0, 1.0]
        assert config.final_strength == 1.0
        with pytest.raises(ConfigError) as raised:
            WeMaskConfig(rate=2, strength={"start": 2, "end": -1, "steps": 0})  # pyright: ignore
        assert len(str(raised.value).splitlines()) == 4
        with pytest.raises(ConfigError, match=r"strength\.stpes .* Did you mean 'steps'"):
            WeMaskConfig(strength={"stpes": 3})  # pyright: ignore[reportArgumentType]

    @given(
        rate=st.floats(1e-6, 1),
        layers=st.sampled_from(["after_me", "next", [3, 1]]),
        dims=st.sampled_from(["me_norm", "random", "massive"]),
        strength=st.one_of(st.floats(0, 1), st.just({"start": 0.1, "end": 0.9, "steps": 7})),
    )
    def test_plain_values_round_trip(self, rate, layers, dims, strength):
        config = WeMaskConfig(rate=rate, layers=layers, dims=dims, strength=strength)
        assert WeMaskConfig.from_dict(config.to_dict()) == config

    @pytest.mark.parametrize(
        ("value", "every"), [("never", None), ("at_end", None), (1, 1), (50, 50)]
    )
    def test_when_the_gates_are_calibrated_again(self, value, every):
        config = WeMaskConfig(recalibrate=value)
        assert config.recalibrate_every == every
        assert WeMaskConfig.from_dict(config.to_dict()) == config
        # Runs from before the setting keep the names of their folders.
        assert ("recalibrate" in config.to_dict()) == (value != "at_end")

    @pytest.mark.parametrize("value", ["at_edn", 0, -3, 2.5, True, None, "50", [1]])
    def test_other_times_are_refused(self, value):
        with pytest.raises(ConfigError, match="recalibrate is one of never, at_end, or a number"):
            WeMaskConfig(recalibrate=value)

    def test_unknown_keys_name_the_nearest(self):
        with pytest.raises(ConfigError) as raised:
            WeMaskConfig.from_dict({"rat": 0.1, "layer": "next"})
        first, second = str(raised.value).splitlines()
        assert first.startswith("operator.rat ") and first.endswith("Did you mean 'rate'?")
        assert second.startswith("operator.layer ") and second.endswith("Did you mean 'layers'?")

    @given(rate=st.floats(1e-6, 1), width=st.integers(1, 8192))
    def test_budget_is_at_least_one_and_at_most_all(self, rate, width):
        assert WeMaskConfig(rate=rate).budget(width) == max(1, round(rate * width))
        authors = WeMaskConfig(rate=rate, dims="batch_activation")
        if int(rate * width):
            assert authors.budget(width) == int(rate * width)
        else:
            with pytest.raises(ConfigError, match="softens int"):
                authors.budget(width)

    def test_what_needs_a_report(self):
        free = {"layers": [2], "tokens": "first"}
        for dims in ("attn_norm", "batch_activation", "random"):
            assert not WeMaskConfig(dims=dims, **free).needs_report
        for dims in ("me_norm", "massive", "activation", "lowest"):
            assert WeMaskConfig(dims=dims, **free).needs_report
        assert WeMaskConfig(dims="random", layers=(2,)).needs_report
        assert WeMaskConfig(dims="random", tokens="first").needs_report


class TestLearnable:
    def test_the_word_the_mapping_and_the_dataclass_mean_the_same(self):
        word = WeMaskConfig(strength="learnable").strength
        assert word == LearnableStrength() == LearnableStrength(initial=0.9, scale=100.0)
        mapped: Any = {"initial": 0.4}
        config = WeMaskConfig(strength=mapped)
        assert config.strength == LearnableStrength(initial=0.4)
        assert WeMaskConfig.from_dict(config.to_dict()) == config
        assert config.final_strength == 0.4

    @pytest.mark.parametrize("initial", [0.01, 0.5, 0.9, 0.999])
    def test_theta_gives_the_initial_strength(self, initial):
        strength = LearnableStrength(initial=initial, scale=50)
        s = torch.sigmoid(torch.tensor(50 * strength.theta(), dtype=torch.float64))
        assert float(s) == pytest.approx(initial, rel=1e-12)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"initial": 1.0}, "cannot leave 0 or 1"),
            ({"initial": 0}, "between 0 and 1, both excluded"),
            ({"scale": 0}, r"strength\.scale must be a number > 0"),
            ({"initial": 0.5, "steps": 3}, "mixes a schedule"),
            ({"inital": 0.5}, "Did you mean 'initial'"),
            ("learnt", "from 0 to 1, or learnable; got 'learnt'"),
        ],
    )
    def test_problems(self, values, message):
        with pytest.raises(ConfigError, match=message):
            WeMaskConfig(strength=values)


@pytest.mark.parametrize("site", ["residual_copy", "residual_stream"])
def test_uniform_before_a_norm_is_refused(site):
    with pytest.raises(ConfigError, match="the norm that reads the residual undoes a factor"):
        WeMaskConfig(dims="uniform", site=site)


@pytest.mark.parametrize("dims", ["uniform", "batch_activation"])
def test_fill_needs_dims_that_stay(dims):
    with pytest.raises(ConfigError, match="fill=mean needs the same few dims"):
        WeMaskConfig(dims=dims, fill="mean")
