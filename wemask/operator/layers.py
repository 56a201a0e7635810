"""The mechanism: a decoder layer and its attention become subclasses of themselves.

The layer finds the tokens in the residual that it is given, its attention softens its own input,
both call `super().forward`. Nothing is wrapped, renamed or kept between forwards. Under
site=residual_stream only the layer is swapped, and softens the residual itself.
"""

import inspect
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from wemask.errors import PatchError
from wemask.operator.equation import batch_activation_dims, damp_uniformly, fill_dims, soften_dims
from wemask.operator.settings import LearnableStrength, WeMaskConfig
from wemask.operator.tokens import massive_tokens, tokens_at


class Softening(nn.Module):
    """What one softened layer needs: which tokens, which dims, how much.

    Nothing of it is in the model's state_dict, whose keys stay as they were: the buffers come from
    the report, and a learned strength is kept in wemask_config.json, for an adapter as for a whole
    model (an adapter's folder holds no parameter of the base).
    """

    dims: Tensor | None
    fill: Tensor | None  # float32 [k]: what `dims` go towards; None: zero
    massive_dims: Tensor
    thresholds: Tensor
    theta: nn.Parameter | None  # [1] and not [], which FSDP2 cannot shard

    def __init__(
        self,
        *,
        index: int,
        config: WeMaskConfig,
        budget: int,
        thresholds: dict[int, float],
        norm_name: str | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.index = index
        self.tokens, self.position = config.tokens, config.position
        self.stream = config.site == "residual_stream"
        self.uniform = config.dims == "uniform"
        self.budget = budget
        # By name, since PEFT may put a trained copy in the norm's place (modules_to_save).
        self.norm_name = norm_name if config.site == "residual_copy" else None
        self.register_buffer("dims", None, persistent=False)
        self.register_buffer("fill", None, persistent=False)
        self.register_buffer("massive_dims", torch.empty(0, device=device), persistent=False)
        self.register_buffer("thresholds", None, persistent=False)
        self.by_content, self.now = config.by_content, Now()
        self.set_thresholds(thresholds)
        self.strength: float | None = config.final_strength
        self.register_parameter("theta", None)
        if isinstance(config.strength, LearnableStrength):
            self.strength, self.scale = None, config.strength.scale
            self.theta = nn.Parameter(torch.tensor([config.strength.theta()], device=device))
        self.observed: Observation | None = None

    def set_thresholds(self, thresholds: dict[int, float]) -> None:
        """Tell massive tokens by these from the next forward on: dim -> tau."""
        device, taus = self.massive_dims.device, [*thresholds.values()]
        self.massive_dims = torch.tensor([*thresholds], dtype=torch.int64, device=device)
        self.thresholds = torch.tensor(taus, dtype=torch.float32, device=device)
        self.now.bound = min(taus, default=0.0) if self.by_content else 0.0

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Leave theta out; the class docstring says why."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Expect nothing."""

    def s(self) -> float | Tensor:
        """The strength in force: a number, or where it is learned a 0-dim tensor."""
        if self.strength is not None:
            return self.strength
        assert self.theta is not None
        return self.s_of(self.theta)

    def s_of(self, theta: Tensor) -> Tensor:
        """The strength that a theta [1] means, 0-dim."""
        # A bfloat16 s has two digits; float64 stays.
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        return torch.sigmoid(self.scale * theta).squeeze(0)

    def open(self, layer: Any, residual: Tensor, argument: Callable[[str], Any]) -> None:
        """Find this forward's tokens in the residual [B, T, D] that enters the layer."""
        self.now.gate = self._find(residual, argument)
        if self.norm_name is not None:
            self.now.residual, self.now.norm = residual, getattr(layer, self.norm_name)

    def edit(self, residual: Tensor, argument: Callable[[str], Any]) -> Tensor:
        """Return the residual [B, T, D] that enters the layer, softened itself."""
        return self._soften(residual, self._find(residual, argument))

    def _find(self, residual: Tensor, argument: Callable[[str], Any]) -> Tensor:
        if self.massive_dims.device != residual.device:
            self.to(residual.device)  # accelerate runs offloaded layers on another device
        if self.by_content:
            if self.observed is not None:
                self.observed.units = self._units(residual)
            return massive_tokens(residual, self.massive_dims, self.thresholds)
        if self.position is None:
            return torch.arange(residual.shape[1], device=residual.device).unsqueeze(0) == 0
        past = argument("past_key_values")
        length = self._cached_length(argument("layer_past") if past is None else past)
        mask, positions = argument("attention_mask"), argument("position_ids")
        gate = tokens_at(residual, mask, positions, length, self.position)
        if self.tokens == "wrong":  # no thresholds: none is massive
            gate = gate & ~massive_tokens(residual, self.massive_dims, self.thresholds)
        return gate

    def _units(self, residual: Tensor) -> Tensor:
        """Largest |h| of each token over the thresholds, float32 [B, T]; massive above 1."""
        columns = residual.detach().index_select(-1, self.massive_dims).float()
        return (columns.abs() / self.thresholds).amax(-1)

    def _cached_length(self, past: Any) -> int:
        if past is None:
            return 0
        try:
            return past.get_seq_length(self.index)
        except ValueError:  # a linear attention layer keeps no tokens; the other layers count
            return past.get_seq_length()

    def forward(self, x: Tensor) -> Tensor:
        """Return the softened attention input [B, T, D] for the tokens that `open` found."""
        now = self.now
        gate, residual, norm = now.gate, now.residual, now.norm
        now.gate, now.residual, now.norm = None, None, None
        if gate is None:
            raise PatchError(
                f"The attention of softened layer {self.index} was called without its layer. Call "
                "the layer or the model, or remove the softening first."
            )
        source = x if residual is None else residual
        softened = self._soften(source, gate)
        return softened if residual is None or norm is None else norm(softened)

    def _soften(self, x: Tensor, gate: Tensor) -> Tensor:
        dims = self.dims
        if dims is None:
            dims = batch_activation_dims(x, gate.expand(x.shape[:2]), self.budget)
        if self.uniform:
            softened = damp_uniformly(x, gate, dims, self.s())
        elif self.fill is not None:
            softened = fill_dims(x, gate, dims, self.s(), self.fill)
        else:
            softened = soften_dims(x, gate, dims, self.s())
        if self.observed is not None:
            self.observed.add(x, softened, gate)
        return softened


class Now:
    """What a layer tells its attention within one forward.

    A plain object, which both have at hand: to look up a submodule or buffer costs a decode step
    more than to look at its token.
    """

    __slots__ = ("bound", "gate", "norm", "ordinary", "residual")

    def __init__(self) -> None:
        self.bound = 0.0  # what no coordinate of an ordinary token exceeds; 0: not known
        self.ordinary = False  # no token is massive
        self.gate: Tensor | None = None  # bool [B, T]
        self.residual: Tensor | None = None  # [B, T, D], where the norm has to be run again
        self.norm: nn.Module | None = None

    def glance(self, residual: Tensor) -> bool:
        """True where a glance at [B, T, D] shows that no token is massive: a CPU's decode step.

        A GPU would have to be waited for, a compiled graph would break, and in training a step
        without a massive token must still give a learned strength its gradient (of zero).
        """
        if residual.shape[1] > 1 or residual.device.type != "cpu" or not self.bound:
            return False
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        lowest, highest = residual.aminmax()
        return -self.bound <= lowest.item() and highest.item() <= self.bound  # NaN: not ordinary


class Observation:
    """What the probe prompt showed in one layer: tokens touched, sums of |x| and x over them.

    `mask` [B, T] has 1 for real tokens, of the forwards to come; None: there are no pads.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask
        self.tokens = 0
        self.units: Tensor | None = None  # |h| over thresholds, float32 [B, T]; None: no gate asked
        self.scores: Tensor | None = None  # of |x|, float32 [D]
        self.total: Tensor | None = None  # of x, float32 [D]
        self.energy = self.removed = 0.0  # of these tokens: sum of x^2, and what of it is gone

    def add(self, x: Tensor, softened: Tensor, gate: Tensor) -> None:
        gate = gate.expand(x.shape[:2])
        if self.mask is not None:
            gate = gate & self.mask.to(gate.device).bool()
        self.tokens += int(gate.sum())
        touched = x.detach().float() * gate.unsqueeze(-1)
        self.scores, self.total = touched.abs().sum((0, 1)), touched.sum((0, 1))
        left = softened.detach().float() * gate.unsqueeze(-1)
        self.energy = float(touched.square().sum())
        self.removed = self.energy - float(left.square().sum())


class _Layer:
    """A decoder layer that looks at its own arguments."""

    wemask_now: Now
    _attention_name: str
    _argument_names: tuple[str, ...]

    def _softening(self) -> Softening:
        return getattr(self, self._attention_name).softening

    def _reader(self, args: tuple, kwargs: dict[str, Any]) -> Callable[[str], Any]:
        """Arguments of this forward by name; None where one was not given."""

        def argument(name: str) -> Any:
            if name in kwargs:
                return kwargs[name]
            names = self._argument_names
            position = names.index(name) if name in names else len(args)
            return args[position] if position < len(args) else None

        return argument


class SoftenedLayer(_Layer):
    """Mixed in before the class of a decoder layer: finds the tokens in its residual input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        residual = args[0] if args else kwargs[self._argument_names[0]]
        self.wemask_now.ordinary = self.wemask_now.glance(residual)
        if not self.wemask_now.ordinary:
            self._softening().open(self, residual, self._reader(args, kwargs))
        return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class SoftenedStream(_Layer):
    """The same for site=residual_stream: softens what enters the layer, out of place.

    Its attention keeps its class and reads, as the FFN and all later layers do, what is left.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        name = self._argument_names[0]
        residual = args[0] if args else kwargs[name]
        if not self.wemask_now.glance(residual):
            residual = self._softening().edit(residual, self._reader(args, kwargs))
            if args:
                args = (residual, *args[1:])
            else:
                kwargs[name] = residual
        return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class SoftenedAttention:
    """Mixed in before the class of an attention module: softens its input."""

    softening: Softening
    wemask_now: Now
    _argument_names: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.wemask_now.ordinary:
            self.wemask_now.ordinary = False
        elif args:
            args = (self.softening(args[0]), *args[1:])
        else:
            name = self._argument_names[0]
            kwargs[name] = self.softening(kwargs[name])
        return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def swap_classes(layer: nn.Module, attention: nn.Module, attention_name: str) -> None:
    """Make a layer and its attention, which has its `softening`, subclasses of themselves.

    Raises:
        PatchError: something else replaced the forward of one; the other may be swapped then.
    """
    stream = attention.softening.stream  # pyright: ignore[reportAttributeAccessIssue]
    pairs: list[tuple[nn.Module, type]] = [(layer, SoftenedStream if stream else SoftenedLayer)]
    pairs += [] if stream else [(attention, SoftenedAttention)]
    for module, mixin in pairs:
        _swap_class(module, _softened_class(mixin, type(module), attention_name))


def restore_classes(layer: nn.Module, attention: nn.Module) -> None:
    """Undo `swap_classes`, also where it stopped half way."""
    for module in (layer, attention):
        if not isinstance(module, (_Layer, SoftenedAttention)):
            continue
        original = type(module).__bases__[1]  # of the dynamic class, after the mixin
        module.__class__ = original
        if "_old_forward" in vars(module):
            module._old_forward = types.MethodType(original.forward, module)  # pyright: ignore


@cache
def _softened_class(mixin: type, original: type, attention_name: str) -> type:
    """Subclass of `original` with its name, by which FSDP, PEFT and transformers look it up."""
    parameters = inspect.signature(original.forward).parameters  # pyright: ignore
    body = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "_attention_name": attention_name,
        "_argument_names": tuple(parameters)[1:],
    }
    return type(original.__name__, (mixin, original), body)


def _swap_class(module: nn.Module, new: type) -> None:
    """Make `module` an instance of its subclass `new`, also under accelerate's device_map."""
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
