"""What flows through a decoder layer: hooks that hand over its parts as soon as it has run.

B batch, T tokens, D hidden size. Nothing is kept from one layer to the next.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Block, Decoder
from wemask.errors import ModelError


@dataclass(kw_only=True)
class Passage:
    """What one decoder layer read and wrote in one forward, [B, T, D] each; h[l-1] -> h[l]."""

    block: Block
    entered: Tensor  # h[l-1], the residual stream that entered the layer
    attention_input: Tensor | None = None
    """x[l], what attention read, softened where the layer is; None unless it was asked for."""
    attended: Tensor | None = None  # what the attention module returned
    middle: Tensor | None = None  # the residual stream that the FFN half of the layer read
    left: Tensor  # h[l], the residual stream at the layer's output

    def writes(self, places: Tensor) -> tuple[Tensor, Tensor] | None:
        """What attention and FFN added to some tokens, float32 [n, D] each, on the CPU.

        Args:
            places: int64 [n], where in B * T the tokens are.

        Returns:
            None where the FFN half read nothing that we know.
        """
        if self.middle is None:
            return None
        entered, middle, left = (
            rows_of(tensor, places) for tensor in (self.entered, self.middle, self.left)
        )
        if torch.equal(middle, entered) and self.attended is not None:  # parallel block
            middle = entered + rows_of(self.attended, places)
        return middle - entered, left - middle


def rows_of(tensor: Tensor, places: Tensor) -> Tensor:
    """Tokens of [B, T, D] by their places in B * T: float32 [n, D] on the CPU."""
    return tensor.reshape(-1, tensor.shape[-1])[places.to(tensor.device)].float().cpu()


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """What a module was called with first, by place or by name."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def first_output(output: Any) -> Any:
    """The tensor that a module returns, alone or before others."""
    return output[0] if isinstance(output, (tuple, list)) else output


@contextmanager
def hooked(hooks: Iterable[Any]) -> Iterator[None]:
    """Within it, modules have these hooks: what `register_forward_hook` and the like return."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield


@contextmanager
def watching(
    decoder: Decoder,
    passed: Callable[[Passage], None],
    started: Callable[[Tensor], None] = lambda h: None,
    *,
    inputs: bool = False,
) -> Iterator[None]:
    """Within it, each forward calls `started` with h[-1], then `passed` after every layer.

    Args:
        decoder: whose layers.
        passed: gets what went through a layer.
        started: gets the embedding output [B, T, D].
        inputs: also hand over what attention read.
    """
    seen: dict[str, Any] = {}  # of the layer that runs now, by the fields of `Passage`
    watch = (hook for block in decoder.blocks for hook in _watch(block, seen, started, passed))
    with hooked(watch), hooked(_watch_inputs(decoder, seen) if inputs else ()):
        yield


def _watch(
    block: Block,
    seen: dict[str, Any],
    started: Callable[[Tensor], None],
    passed: Callable[[Passage], None],
) -> Iterator[Any]:
    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.clear()
        seen["entered"] = first_argument(args, kwargs)
        if block.index == 0:
            started(seen["entered"])

    def attend(module: nn.Module, args: tuple, output: Any) -> None:
        seen["attended"] = first_output(output)

    def read(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen["middle"] = first_argument(args, kwargs)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        passage = Passage(block=block, left=first_output(output), **seen)
        seen.clear()
        passed(passage)

    reads = block.ffn_norm if block.ffn_norm is not None else block.ffn
    yield block.layer.register_forward_pre_hook(enter, with_kwargs=True)
    yield block.attention.register_forward_hook(attend)
    yield reads.register_forward_pre_hook(read, with_kwargs=True)
    yield block.layer.register_forward_hook(leave)


def _watch_inputs(decoder: Decoder, seen: dict[str, Any]) -> Iterator[Any]:
    def read(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen["attention_input"] = first_argument(args, kwargs)

    def soften(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen["attention_input"] = output

    for block in decoder.blocks:
        yield block.attention.register_forward_pre_hook(read, with_kwargs=True)
        # A softened attention changes its input after that hook has seen it.
        softening: Any = getattr(block.attention, "softening", None)
        if softening is not None and not softening.stream:
            yield softening.register_forward_hook(soften)


@contextmanager
def checking_flow(decoder: Decoder) -> Iterator[None]:
    """Within it, a forward pass must show the parts at work in the order that their names promise.

    Raises:
        ModelError: the residual is not [B, T, D] (hyper-connections), or what was taken for the
            norm before attention or FFN ran after it (post-norm under pre-norm names).
    """
    order: dict[nn.Module, int] = {}

    def start(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        h = args[0] if args else kwargs["hidden_states"]
        if h.ndim != 3 or h.shape[-1] != decoder.hidden_size:
            raise ModelError(
                f"{type(module).__name__} reads a residual of shape {list(h.shape)}; "
                f"[batch, tokens, {decoder.hidden_size}] is needed. wemask cannot soften that."
            )

    def ran(module: nn.Module, args: tuple, output: Any) -> None:
        order.setdefault(module, len(order))

    entered = (b.layer.register_forward_pre_hook(start, with_kwargs=True) for b in decoder.blocks)
    parts = [p for b in decoder.blocks for p in (b.attention_norm, b.attention, b.ffn_norm, b.ffn)]
    runs = (part.register_forward_hook(ran) for part in parts if part is not None)
    with hooked(entered), hooked(runs):
        yield
    for block in decoder.blocks:
        pairs = {
            "attention": (block.attention_norm, block.attention),
            "ffn": (block.ffn_norm, block.ffn),
        }
        for part, (norm, reader) in pairs.items():
            if norm is not None and order.get(norm, -1) > order.get(reader, len(order)):
                raise ModelError(
                    f"Layer {block.index} ({type(block.layer).__name__}) runs "
                    f"{type(norm).__name__} after its {part}, not before it as its name promises. "
                    "If no norm feeds attention and FFN, say so: "
                    'model.wemask_parts = {"attention_norm": None, "ffn_norm": None}'
                )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode; every module gets back its own mode, as it was.

    Under FSDP2 a forward that no backward follows may leave parameters gathered: they are shards
    again after it, which is how one knows the engine, and what is gathered to be saved.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
            if hasattr(module, "reshard"):
                module.reshard()  # pyright: ignore[reportCallIssue]


def without_logits(model: nn.Module) -> dict[str, Any]:
    """Arguments of a forward whose logits nobody reads: a vocabulary is wide."""
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if known else {}
