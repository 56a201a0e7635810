"""The mechanism: a decoder layer and its attention become subclasses of themselves.

The layer finds the tokens in the residual that it is given, its attention softens its own input,
both call `super().forward`. Nothing is wrapped, renamed or kept between forwards.
"""

import inspect
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from wemask import operator
from wemask.errors import PatchError
from wemask.operator import WeMaskConfig


class Softening(nn.Module):
    """What one softened layer needs: which tokens, which dims, how much. No parameters.

    Its buffers are not persistent: the model's state_dict keeps its keys.
    """

    dims: Tensor | None
    massive_dims: Tensor | None
    thresholds: Tensor | None

    def __init__(
        self,
        *,
        index: int,
        config: WeMaskConfig,
        budget: int,
        thresholds: dict[int, float],
        norm: nn.Module | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.index = index
        self.tokens = config.tokens
        self.budget = budget
        self.strength = config.final_strength
        self.before_norm = config.site == "residual_copy" and norm is not None
        self._norm = (norm,)  # in a tuple: a second registration would rename parameters
        self.register_buffer("dims", None, persistent=False)
        massive = torch.tensor(list(thresholds), dtype=torch.int64, device=device)
        self.register_buffer("massive_dims", massive, persistent=False)
        values = torch.tensor(list(thresholds.values()), dtype=torch.float32, device=device)
        self.register_buffer("thresholds", values, persistent=False)
        self.observed: Observation | None = None
        self._gate: Tensor | None = None
        self._residual: Tensor | None = None

    def open(self, residual: Tensor, argument: Callable[[str], Any]) -> None:
        """Find this forward's tokens in the residual [B, T, D] that enters the layer."""
        self._gate = self._find(residual, argument)
        self._residual = residual if self.before_norm else None

    def _find(self, residual: Tensor, argument: Callable[[str], Any]) -> Tensor:
        if self.tokens == "massive":
            assert self.massive_dims is not None and self.thresholds is not None
            return operator.massive_tokens(residual, self.massive_dims, self.thresholds)
        if self.tokens == "position0":
            return torch.arange(residual.shape[1], device=residual.device).unsqueeze(0) == 0
        past = argument("past_key_values")
        past = argument("layer_past") if past is None else past
        length = 0 if past is None else past.get_seq_length(self.index)
        mask, positions = argument("attention_mask"), argument("position_ids")
        return operator.first_tokens(residual, mask, positions, length)

    def forward(self, x: Tensor) -> Tensor:
        """Return the softened attention input [B, T, D] for the tokens that `open` found."""
        gate, residual, norm = self._gate, self._residual, self._norm[0]
        if gate is None:
            raise PatchError(
                f"The attention of softened layer {self.index} was called without its layer. Call "
                "the layer or the model, or remove the softening first."
            )
        self._gate = self._residual = None
        if residual is not None and norm is not None:
            return norm(self._soften(residual, gate))
        return self._soften(x, gate)

    def _soften(self, x: Tensor, gate: Tensor) -> Tensor:
        if self.observed is not None:
            self.observed.add(x, gate)
        dims = self.dims
        if dims is None:
            dims = operator.batch_activation_dims(x, gate.expand(x.shape[:2]), self.budget)
        return operator.soften_dims(x, gate, dims, self.strength)


class Observation:
    """What the probe prompt showed in one layer: tokens touched and mean |x| over them."""

    def __init__(self) -> None:
        self.tokens = 0
        self.scores: Tensor | None = None  # sum of |x| over touched tokens, float32 [D]

    def add(self, x: Tensor, gate: Tensor) -> None:
        gate = gate.expand(x.shape[:2])
        self.tokens += int(gate.sum())
        self.scores = (x.detach().float().abs() * gate.unsqueeze(-1)).sum((0, 1))


class SoftenedLayer:
    """Mixed in before the class of a decoder layer: finds the tokens in its residual input."""

    _attention_name: str
    _argument_names: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        def argument(name: str) -> Any:
            if name in kwargs:
                return kwargs[name]
            names = self._argument_names
            position = names.index(name) if name in names else len(args)
            return args[position] if position < len(args) else None

        softening = getattr(self, self._attention_name).softening
        softening.open(args[0] if args else kwargs[self._argument_names[0]], argument)
        return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class SoftenedAttention:
    """Mixed in before the class of an attention module: softens its input."""

    softening: Softening
    _argument_names: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            args = (self.softening(args[0]), *args[1:])
        else:
            name = self._argument_names[0]
            kwargs[name] = self.softening(kwargs[name])
        return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def softened_class(mixin: type, original: type, attention_name: str) -> type:
    """Subclass of `original` with its name, by which FSDP, PEFT and transformers look it up."""
    names = tuple(inspect.signature(original.forward).parameters)[1:]  # pyright: ignore
    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "_attention_name": attention_name,
        "_argument_names": names,
    }
    return type(original.__name__, (mixin, original), body)


def swap_class(module: nn.Module, new: type) -> None:
    """Make `module` an instance of its subclass `new`, also under accelerate's device_map.

    Raises:
        PatchError: something else replaced the forward of this instance.
    """
    module.__class__ = new
    if "forward" not in vars(module):
        return
    # accelerate (device_map) replaces `forward` on the instance and keeps the original beside it.
    if "_old_forward" not in vars(module):
        raise PatchError(
            f"The forward of {new.__name__} was replaced on the instance (unsloth and some kernel "
            "libraries do that), so the softening would never run. Load the plain model."
        )
    module._old_forward = types.MethodType(new.forward, module)  # pyright: ignore


def restore_class(module: nn.Module) -> None:
    """Undo `swap_class`."""
    original = type(module).__mro__[2]  # after the dynamic class and the mixin
    module.__class__ = original
    if "_old_forward" in vars(module):
        module._old_forward = types.MethodType(original.forward, module)  # pyright: ignore
