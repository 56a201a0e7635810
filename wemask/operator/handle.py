"""The handle of a softened model: what was touched, the strength in force, and the way back.

`observe` and `observing` say what the softening does to a prompt.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Block
from wemask.decoder.passage import evaluating
from wemask.decoder.sharded import runnable, whole
from wemask.errors import PatchError
from wemask.operator.layers import Observation, Softening, restore_classes, swap_classes
from wemask.operator.settings import WeMaskConfig, check_strength

if TYPE_CHECKING:
    from wemask.detection.me_layer import MELayerReport


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What detection found in a softened model later, when its gates were calibrated again."""

    step: int | None
    """Optimizer step; None: by `wemask recalibrate`."""
    first: "MELayerReport"
    """What the model was softened with, before any training."""
    found: "MELayerReport"


class SoftenHandle:
    """A softened model: what was touched, and the way back.

    Use it as a context manager, or call `remove()`.

    Attributes:
        config: the settings.
        report: the detected ME Layer with the gates in force, or None when everything was given by
            number.
        calibrated: what the gates in force come from, where they were calibrated again.
        layers: the softened layers.
        left_alone: layers that were chosen but whose gate tells no massive tokens, with the reason.
        dims: per layer the softened dims; None where they are chosen anew in each forward.
        fill: per layer what these dims go towards; empty where that is zero.
        tokens_touched: per layer, how many tokens of the probe prompt are softened: as last seen,
            when the model was softened, calibrated or saved.
        touched_first: the same when it was softened first, before any training; empty where that is
            not known any more (of a run of version 0.1).
        removed_energy: share of these tokens' squared norm that the softening removed there.
    """

    def __init__(
        self, model: nn.Module, config: WeMaskConfig, report: "MELayerReport | None"
    ) -> None:
        self.config = config
        self.report = report
        self.calibrated: Calibrated | None = None
        self.layers: list[int] = []
        self.left_alone: dict[int, str] = {}
        self.dims: dict[int, list[int] | None] = {}
        self.fill: dict[int, list[float]] = {}
        self.tokens_touched: dict[int, int] = {}
        self.touched_first: dict[int, int] = {}
        self.removed_energy = 0.0
        self.model = model
        self.blocks: list[Block] = []

    @property
    def silent(self) -> list[int]:
        """The layers that touched a token at first and touch none now: training took it away."""
        touched = self.tokens_touched
        return [i for i in self.layers if self.touched_first.get(i, 1) and not touched.get(i)]

    @property
    def strength(self) -> float:
        """The strength in force; the mean over the softened layers where it is learned."""
        return sum(self.strengths.values()) / len(self.strengths)

    @property
    def strengths(self) -> dict[int, float]:
        """The strength in force, per softened layer; where theta is sharded, all ranks must ask."""
        return {
            s.index: float(s.s_of(whole(s.theta))) if s.strength is None else s.strength
            for s in self.softenings()
        }

    @property
    def learned(self) -> dict[int, float]:
        """The trained theta per softened layer; empty unless the strength is learnable.

        Where theta is sharded, all ranks must ask, and it cannot be set. Setting it raises
        PatchError where a layer is missing.
        """
        return {s.index: float(whole(s.theta)) for s in self.softenings() if s.theta is not None}

    @learned.setter
    def learned(self, values: Mapping[int, float]) -> None:
        thetas = {s.index: s.theta for s in self.softenings() if s.theta is not None}
        if thetas.keys() != values.keys():
            raise PatchError(
                f"Learned strengths were given for the layers {sorted(values)}; this softening "
                f"learns one for each of {sorted(thetas)}."
            )
        with torch.no_grad():
            for index, theta in thetas.items():
                theta.fill_(values[index])

    def set_strength(self, strength: float) -> None:
        """Change s in all softened layers, between forwards; a learned one is set aside.

        Raises:
            ConfigError: it is no number from 0 to 1.
            PatchError: the softening was removed.
        """
        strength = check_strength(strength)
        for softening in self.softenings():
            softening.strength = strength

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Run a block with another strength; the one in force, also a learned one, comes back."""
        before = [(softening, softening.strength) for softening in self.softenings()]
        self.set_strength(strength)
        try:
            yield
        finally:
            for softening, value in before:
                softening.strength = value

    def use_gates(self, report: "MELayerReport", calibrated: Calibrated | None) -> None:
        """Tell tokens by the gates of a report from the next forward on, in the same layers."""
        self.report, self.calibrated = report, calibrated
        if self.config.uses_gates:
            for softening in self.softenings():
                if gate := report.gates.get(softening.index):
                    softening.set_thresholds(gate.of(self.config.tokens))

    def look(self, model: nn.Module | None = None) -> None:
        """See what the softening does to the probe prompt now.

        Args:
            model: what runs, where that is not the softened model itself: under FSDP2 the outermost
                module. Where parameters are sharded, all ranks must look.
        """
        observed = observe(self, self.model if model is None else model)
        self.tokens_touched = {index: o.tokens for index, o in observed.items()}
        energy = sum(o.energy for o in observed.values())
        removed = sum(o.removed for o in observed.values())
        self.removed_energy = removed / energy if energy else 0.0

    def softenings(self) -> list[Softening]:
        if not self.blocks:
            raise PatchError("This softening was removed. Call wemask.soften again.")
        return [b.attention.softening for b in self.blocks]  # pyright: ignore[reportReturnType]

    def remove(self) -> None:
        """Take the softening out; the model is then what it was, bit for bit.

        Raises:
            PatchError: it was removed before.
        """
        if getattr(self.model, "wemask_handle", None) is not self:
            raise PatchError("This softening was removed before. Call wemask.soften again.")
        self.uninstall()

    def install(self, block: Block, softening: Softening) -> None:
        """Make this layer a softened one; `wemask.soften` does so for all that it chose."""
        block.attention.softening = softening
        block.layer.wemask_now = block.attention.wemask_now = softening.now  # pyright: ignore
        self.blocks.append(block)
        swap_classes(block.layer, block.attention, str(block.name_of(block.attention)))

    def uninstall(self) -> None:
        """Give every layer its own class back, also where only some are softened yet."""
        for block in self.blocks:
            restore_classes(block.layer, block.attention)
            del block.layer.wemask_now, block.attention.wemask_now, block.attention.softening
        self.blocks = []
        if getattr(self.model, "wemask_handle", None) is self:
            del self.model.wemask_handle

    def __enter__(self) -> "SoftenHandle":
        return self

    def __exit__(self, *error: object) -> None:
        if getattr(self.model, "wemask_handle", None) is self:  # not removed inside the block
            self.remove()

    def __repr__(self) -> str:
        alone = f", left_alone={sorted(self.left_alone)}" if self.left_alone else ""
        return f"SoftenHandle(layers={self.layers}{alone}, tokens_touched={self.tokens_touched})"


@contextmanager
def observing(handle: SoftenHandle, mask: Tensor | None = None) -> Iterator[dict[int, Observation]]:
    """Within it, each softened layer says what it touches; of pads (0 in the mask) nothing."""
    observed = {s.index: Observation(mask) for s in handle.softenings()}
    try:
        for softening in handle.softenings():
            softening.observed = observed[softening.index]
        yield observed
    finally:
        for softening in handle.softenings():
            softening.observed = None


@torch.no_grad()
def observe(
    handle: SoftenHandle, model: nn.Module, input_ids: Tensor | None = None, **inputs: Any
) -> dict[int, Observation]:
    """Run a prompt (default: the report's) and say what each softened layer touched."""
    if input_ids is None:
        input_ids = probe_ids(model, handle.report)
    with observing(handle) as observed, evaluating(model):
        runnable(model, handle.model)(input_ids=input_ids, use_cache=False, **inputs)
    return observed


def probe_ids(model: nn.Module, report: "MELayerReport | None") -> Tensor:
    """Token ids [1, T] that show a massive token: the report's, else the first ids of the model."""
    embeddings = model.get_input_embeddings().weight  # pyright: ignore
    if report is not None and report.probe_ids:
        return torch.tensor([report.probe_ids], device=device_of(model))
    return torch.arange(min(8, embeddings.shape[0]), device=device_of(model)).unsqueeze(0)


def device_of(module: nn.Module) -> torch.device:
    """Where its first weights are; the CPU where all are on the meta device."""
    return next((p.device for p in module.parameters() if not p.is_meta), torch.device("cpu"))
