"""The equation on tensors, and the settings."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wemask import StrengthSchedule, WeMaskConfig
from wemask.errors import ConfigError
from wemask.operator.equation import batch_activation_dims, soften_dims, top_dims
from wemask.operator.settings import LearnableStrength
from wemask.operator.tokens import massive_tokens, tokens_at


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


def test_massive_tokens_pass_any_threshold_in_magnitude():
    h = torch.tensor([[[0.0, -11.0, 0.0], [9.0, 9.0, 99.0], [0.0, 0.0, 0.0]]])
    gate = massive_tokens(h, torch.tensor([1, 0]), torch.tensor([10.0, 9.0]))
    assert gate.tolist() == [[True, False, False]]  # dim 2 is not asked; equal is not above


def test_top_dims_breaks_ties_by_index():
    assert top_dims(torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0]), 2).tolist() == [1, 2]


@given(seed=st.integers(0, 99), k=st.integers(1, 8))
def test_batch_activation_is_the_authors_selection(seed, k):
    x = draw((3, 4, 8), seed)
    gate = (torch.arange(4) == 0).unsqueeze(0).expand(3, 4)
    reference = x[:, 0, :].abs().mean(0).topk(k).indices
    assert set(batch_activation_dims(x, gate, k).tolist()) == set(reference.tolist())


class TestFirstTokens:
    """What a layer is given decides; pads, packing and chunks are all in the mask."""

    h = torch.zeros(2, 4, 3)

    def test_left_padding(self):
        real = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]).bool()
        causal = torch.ones(4, 4).tril().bool()
        mask = (causal & real[:, None, :])[:, None]
        expected = [[True, False, False, False], [False, False, True, False]]
        # `generate` gives pads position 0: the positions must not be believed here.
        positions = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
        assert tokens_at(self.h, mask, positions, 0).tolist() == expected
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        assert tokens_at(self.h, additive, positions, 0).tolist() == expected

    def test_packed_documents_by_mask_and_by_positions(self):
        document = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
        causal = torch.ones(4, 4).tril().bool()
        mask = (causal & (document[:, :, None] == document[:, None, :]))[:, None]
        expected = [[True, False, True, False], [True, True, False, False]]
        assert tokens_at(self.h, mask, None, 0).tolist() == expected
        positions = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 2]])
        assert tokens_at(self.h, None, positions, 0).tolist() == expected

    def test_flash_mask_and_cache(self):
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])  # 2 cached + 4 keys
        gate = tokens_at(self.h, mask, None, 2)
        assert gate.tolist() == [[True, False, False, False], [False] * 4]
        assert not tokens_at(self.h, None, None, 2).any()
        assert tokens_at(self.h, None, None, 0).tolist() == [[True, False, False, False]]

    def test_an_unreadable_mask_says_what_to_type(self):
        with pytest.raises(ConfigError, match=r"cannot read a str .*operator\.tokens=massive"):
            tokens_at(self.h, "BlockMask", None, 0)


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
