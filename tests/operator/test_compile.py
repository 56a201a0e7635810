"""torch.compile and the operator: either order, any length, forward, backward and decoding."""

import logging
import shutil
from typing import Any

import pytest
import torch
from families import MASSIVE, Case, close, logits, planted, sequence, settings
from patch_support import collected, distance, gradients, language_loss
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from training_oracle import GIVEN, TOLERANCE, batch, expected

import wemask
from wemask import WeMaskConfig
from wemask.errors import PatchError

SLOW = pytest.mark.slow  # a compilation of a model of 3 layers takes 2 to 4 s
INDUCTOR = pytest.param(
    "inductor",
    marks=[
        SLOW,
        pytest.mark.skipif(
            shutil.which("g++") is None,
            reason="NOT TESTED: inductor needs a C++ compiler; install g++ (apt-get install g++)",
        ),
    ],
)
BACKENDS = ["eager", pytest.param("aot_eager", marks=SLOW), INDUCTOR]
DYNAMIC = [True, pytest.param(None, marks=SLOW)]  # None: dynamic from the second length on
ROUNDING = 1e-5
VISIBLE = 1e-2


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # floods reports
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small(family: str = "llama") -> Case:
    return planted(family, num_hidden_layers=3)


def rows() -> list[Tensor]:
    """Prompts of several lengths, one without a massive token."""
    ordinary = sequence(8, 4).clamp(min=MASSIVE + 1)
    return [sequence(6, 1), sequence(9, 2, massive_at=5), ordinary]


def compiled(model: Any, backend: Any = "eager", dynamic: bool | None = None) -> Any:
    return torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)


def all_logits(model: Any) -> list[Tensor]:
    return [logits(model, ids) for ids in rows()]


def all_close(a: list[Tensor], b: list[Tensor], tolerance: float = ROUNDING) -> bool:
    return all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "choices", [{}, {"site": "residual_copy"}, pytest.param({"tokens": "first"}, marks=SLOW)]
)
def test_a_compiled_softened_model_is_one_graph_and_right(backend, dynamic, choices):
    case = small()
    off = all_logits(case.model)
    with wemask.soften(case.model, case.report, settings(**choices)):
        on = all_logits(case.model)
        out = all_logits(compiled(case.model, backend, dynamic))
    assert all_close(out, on)
    assert not all_close(out, off, VISIBLE)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "phi", "gemma2", "olmo2"])
def test_other_architectures_are_one_graph_too(family):
    case = small(family)
    with wemask.soften(case.model, case.report, settings()):
        on = all_logits(case.model)
        assert all_close(all_logits(compiled(case.model)), on)


@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize("backend", BACKENDS)
def test_softening_and_removing_reach_a_model_that_was_compiled_and_run(backend, dynamic):
    case = small()
    model = compiled(case.model, backend, dynamic)
    off = all_logits(model)
    for _ in range(2):  # the second time the compiler has seen both classes
        with wemask.soften(model, case.report, settings()):
            on = all_logits(model)
            assert all_close(on, all_logits(case.model))
            assert not all_close(on, off, VISIBLE)
        again = all_logits(model)
        assert all(torch.equal(x, y) for x, y in zip(again, off, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_set_strength_reaches_a_compiled_model_at_few_recompilations(backend):
    case = small()
    counter = CompileCounterWithBackend(backend)
    model, ids = compiled(case.model, counter, dynamic=True), sequence(6, 1)
    off = logits(model, ids)
    with wemask.soften(case.model, case.report, settings()) as handle:
        for strength in (1.0, *(step / 20 for step in range(1, 20)), 1.0):  # as a schedule does
            handle.set_strength(strength)
            assert close(logits(model, ids), logits(case.model, ids), ROUNDING)
        handle.set_strength(0.0)
        assert torch.equal(logits(model, ids), off)
    assert counter.frame_count <= 4


@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.timeout(600)  # AOT autograd takes 30 s a graph with symbolic shapes, unpatched too
@pytest.mark.parametrize("site", ["attention_input", pytest.param("residual_copy", marks=SLOW)])
def test_backward_through_a_compiled_model_equals_the_oracles(backend, dynamic, site):
    case = small()
    parts = [batch(), batch()[:, 1:9].contiguous(), batch()[:, 2:].contiguous()]
    wanted = [expected("llama", case, ids, 0.4, site)[1] for ids in parts]
    config = WeMaskConfig(strength=0.4, site=site)
    with wemask.soften(case.model, case.report, config, dims=GIVEN):
        model = compiled(case.model, backend, dynamic)
        for ids, truth in zip(parts, wanted, strict=True):
            model.zero_grad()
            language_loss(model(input_ids=ids, use_cache=False).logits, ids).backward()
            assert distance(collected(case.model), truth) < TOLERANCE[torch.float32]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_inside_a_compiled_model_changes_no_gradient(reentrant):
    case, ids = small(), batch()
    model: Any = case.model.train()
    with wemask.soften(model, case.report, settings()):
        wanted = gradients(model, ids)
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        out = torch.compile(model, backend="aot_eager")(input_ids=ids, use_cache=False).logits
        language_loss(out, ids).backward()
        assert distance(collected(model), wanted) < TOLERANCE[torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["static", "dynamic"])
def test_a_compiled_forward_generates_what_the_plain_one_does(implementation):
    case, ids = small(), sequence(7, 1)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options |= {"cache_implementation": implementation, "attention_mask": torch.ones_like(ids)}
    with wemask.soften(case.model, case.report, settings()):
        wanted = case.model.generate(ids, **options)  # pyright: ignore
        model: Any = torch.compile(case.model, backend="eager")
        case.model.forward = torch.compile(case.model.forward, backend="eager")
        assert torch.equal(case.model.generate(ids, **options), wanted)  # pyright: ignore
        del case.model.forward
        assert torch.equal(model.generate(ids, **options), wanted)


def test_a_compiled_model_is_not_softened_twice():
    case = small()
    with (
        wemask.soften(case.model, case.report, settings()),
        pytest.raises(PatchError, match="softened already"),
    ):
        wemask.soften(compiled(case.model), case.report, settings())
