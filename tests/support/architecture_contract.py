"""What every architecture is held to, as measurements.

`test_architecture_contract.py` asserts them, `architecture_page.py` writes them down.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from families import (
    LAYERS,
    VOCABULARY,
    WIDTH,
    Case,
    build,
    detect,
    logits,
    planted,
    sequence,
    settings,
)
from patch_support import batched_logits, cached_logits, gradients, same
from torch import Tensor, nn
from unclean_trials import planted_unclean, unclean

import wemask
from wemask.decoder.parts import find_decoder
from wemask.planted import Planted, plant

SEEDS = range(20)
TOLERANCE = 1e-5  # of the largest |logit|; a softening moves logits by 1e-2 and more

# --- detection ----------------------------------------------------------------------------------

KINDS = ("one token", "two tokens", "a later delimiter")


@dataclass(frozen=True)
class Trial:
    """One draw: what is planted, and the texts in which it is to be found."""

    truth: Planted
    ids: Tensor  # [8, 14]


def trial(seed: int) -> Trial:
    """Layer, tokens, dims and magnitude drawn by seed; the kinds of massive tokens take turns."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, count: int = 1) -> list[int]:
        return (low + torch.randperm(high - low, generator=generator)[:count]).tolist()

    kind = KINDS[seed % len(KINDS)]
    tokens = draw(8, VOCABULARY, 2 if kind == "two tokens" else 1)
    ordinary = torch.tensor([t for t in range(8, VOCABULARY) if t not in tokens])
    ids = ordinary[torch.randint(len(ordinary), (8, 14), generator=generator)]
    for row in range(8):
        place = draw(4, 14)[0] if kind == "a later delimiter" else row % 5
        ids[row, place] = tokens[row % len(tokens)]
    truth = Planted(
        layer=draw(0, LAYERS - 1)[0],
        token_ids=tuple(tokens),
        dims=tuple(draw(0, WIDTH - 3, draw(1, 4)[0])),
        magnitude=float(draw(4000, 16000)[0]),
    )
    return Trial(truth, ids)


@torch.no_grad()
def detection_errors(family: str, seed: int, dtype: torch.dtype = torch.float32) -> list[str]:
    """What detection got wrong on a planted model and on its unplanted twin; empty when exact."""
    drawn = trial(seed)
    model: Any = build(family, seed)
    truth, ids = drawn.truth, drawn.ids
    twin = detect(model.to(dtype), input_ids=ids)
    errors = [f"a false find: {twin.verdict}"] if twin.found or twin.emergences else []
    model = build(family, seed)
    plant(
        model,
        layer=truth.layer,
        token_ids=truth.token_ids,
        dims=truth.dims,
        magnitude=truth.magnitude,
        seed=seed,
    )
    report = detect(model.to(dtype), input_ids=ids)
    places = torch.isin(ids, torch.tensor(truth.token_ids)).nonzero().tolist()
    state = layer_outputs(model, ids)[truth.layer]
    largest = {d: float(state[..., d].float().abs().max()) for d in truth.dims}
    found = {
        "layer": ([e.layer for e in report.emergences], [truth.layer]),
        "dims": (sorted(report.dims), sorted(truth.dims)),
        "tokens": (sorted([t.text, t.position] for t in report.tokens), places),
        "magnitudes": (dict(zip(report.dims, report.magnitudes, strict=True)), largest),
    }
    errors += [f"{what}: {got}, not {true}" for what, (got, true) in found.items() if got != true]
    off = [m for m in largest.values() if abs(m - truth.magnitude) > 0.1 * truth.magnitude]
    return errors + [f"planted {truth.magnitude:g}, became {m:g}" for m in off]


@torch.no_grad()
def unclean_errors(family: str, seed: int, dtype: torch.dtype = torch.float32) -> list[str]:
    """What detection and its gates got wrong on a model as unclean as real ones."""
    drawn = unclean(seed)
    model: Any = copy.deepcopy(planted_unclean(family, seed))
    model.to(dtype)
    report = detect(model, input_ids=drawn.ids)
    found = {
        "layer": (report.layer, drawn.layer),
        "emergences": ([e.layer for e in report.emergences], drawn.births),
    }
    errors = [f"{what}: {got}, not {true}" for what, (got, true) in found.items() if got != true]
    states = layer_outputs(model, drawn.others)
    for layer in range(drawn.layer + 1, len(states)):
        if (gate := report.gates.get(layer)) is None:
            errors.append(f"layer {layer} has no gate")
            continue
        kinds = [("massive", gate.thresholds, drawn.massive(layer - 1))]
        if gate.primary or not drawn.faint:
            kinds.append(("primary", gate.primary, drawn.primary(layer - 1)))
        for kind, thresholds, true in kinds:
            got = picked(states[layer - 1], thresholds)
            wrong = drawn.others[got != torch.isin(drawn.others, torch.tensor(sorted(true)))]
            if len(wrong):
                errors.append(
                    f"tokens={kind} at layer {layer}: wrong on {sorted({*wrong.tolist()})}"
                )
    return errors


def picked(h: Tensor, thresholds: Mapping[int, float]) -> Tensor:
    """bool [B, T]: the tokens above the threshold of any dim, from a layer's input [B, T, D]."""
    above = [h[..., dim].float().abs() > tau for dim, tau in thresholds.items()]
    return torch.stack([torch.zeros(h.shape[:-1], dtype=torch.bool), *above]).any(0)


def layer_outputs(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """h[l] [B, T, D] of all layers, by plain hooks."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.layer.register_forward_hook(keep) for block in find_decoder(model).blocks]
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return kept


# --- the contract, on logits: each line gives the largest difference ----------------------------

ROWS = (sequence(9, 1, massive_at=2), sequence(6, 2), sequence(9, 3))


def difference(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| in units of the largest |b|."""
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


def padding(model: nn.Module) -> float:
    """A left or right padded batch against each sequence alone."""
    alone = [logits(model, row)[0] for row in ROWS]
    return max(
        difference(out, one)
        for left in (True, False)
        for out, one in zip(batched_logits(model, ROWS, left=left), alone, strict=True)
    )


def caching(model: nn.Module) -> float:
    """Prefill, then token by token, and chunks, against the full forward."""
    full = logits(model, ROWS[0])
    return max(difference(cached_logits(model, ROWS[0], c), full) for c in ([1], [4], [4, 3]))


def packing(model: nn.Module) -> float:
    """Documents in one row, told apart by their positions, against each alone."""
    positions = torch.cat([torch.arange(row.shape[1]) for row in ROWS]).unsqueeze(0)
    out = logits(model, torch.cat(ROWS, 1), position_ids=positions)
    parts = out.split([row.shape[1] for row in ROWS], 1)
    return max(difference(p, logits(model, r)) for p, r in zip(parts, ROWS, strict=True))


LINES: dict[str, Callable[[nn.Module], float]] = {
    "padding": padding,
    "cache": caching,
    "packing": packing,
}


@contextmanager
def softened(case: Case, **changes: Any) -> Iterator[nn.Module]:
    with wemask.soften(case.model, case.report, settings(**changes)):
        yield case.model


def identical(case: Case) -> bool:
    """s=0, and a removed softening, are the model bit for bit, under the same names; s=1 is not."""
    model = case.model
    before = [logits(model, row) for row in ROWS]
    names = [list(model.state_dict()), [n for n, _ in model.named_parameters()]]

    def same() -> bool:
        return all(torch.equal(logits(model, r), b) for r, b in zip(ROWS, before, strict=True))

    with wemask.soften(model, case.report, settings()) as handle:
        named = [list(model.state_dict()), [n for n, _ in model.named_parameters()]] == names
        fires = all(
            difference(logits(model, row), off) > 1e-2
            for row, off in zip(ROWS, before, strict=True)
        )
        # tokens before the massive one do not see it (experts sum them in another order)
        causal = difference(logits(model, ROWS[0])[:, :2], before[0][:, :2]) < 1e-6
        handle.set_strength(0.0)
        off = same()
    return named and fires and causal and off and same()


def checkpointed(family: str, *, reentrant: bool = False) -> bool:
    """Gradients under activation checkpointing are those without, and not the unsoftened ones."""
    case, ids = planted(family), sequence()
    model: Any = case.model.train()
    with softened(case, site="residual_copy"):
        plain = gradients(model, ids)
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        recomputed = gradients(model, ids)
    model.activation_checkpointing_disable()
    equal = plain.keys() == recomputed.keys() and all(
        difference(recomputed[name], plain[name]) <= 1e-6 for name in plain
    )
    return equal and not same(gradients(model, ids), plain)
