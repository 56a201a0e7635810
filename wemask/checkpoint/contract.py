"""The operator's contract (the lines of `wemask validate`), checked on logits of a given model.

A patched model may differ from its reference by no more than the unpatched one does from its own:
a batch of two does not multiply matrices like a batch of one. Every check therefore measures the
unpatched difference too, and allows twice that plus 1e-5 of the largest logit.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wemask.checkpoint.save_load import save
from wemask.decoder.parts import unwrap
from wemask.decoder.passage import evaluating
from wemask.detection.calibration import HELD_OUT_TEXTS, calibration_inputs
from wemask.detection.gates import gap_around
from wemask.detection.me_layer import MIN_SEPARATION, MELayerReport
from wemask.errors import DetectionError, PatchError
from wemask.measure.measurement import entering
from wemask.operator.handle import SoftenHandle, probe_ids
from wemask.operator.patch import soften
from wemask.operator.settings import WeMaskConfig
from wemask.settings.texts import load_texts

HELD_OUT_PROBLEMS = 16  # word problems that are read beside HELD_OUT_TEXTS


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the contract."""

    number: int
    name: str
    passed: bool
    detail: str


@torch.no_grad()
def validate(
    model: nn.Module,
    tokenizer: Any,
    report: MELayerReport | None,
    config: WeMaskConfig,
    *,
    chats: bool = True,
) -> Iterator[Check]:
    """Yield the checks of contract lines 7, 1, 2, 3 and 6, as they are done.

    The model is unsoftened before and after. Dims that are chosen per batch, or tokens by literal
    position, are expected to fail lines 2 and 3: that is what the warnings about them say.
    """
    base = unwrap(model)
    with evaluating(base):
        ids = _sequence(base, report)
        reference = _logits(base, ids)
        keys = list(base.state_dict())
        try:
            handle = soften(model, report, config)
        except (DetectionError, PatchError) as error:  # a wrong layer number is no result: raised
            yield Check(number=7, name="it fires", passed=False, detail=str(error))
            return
        with handle:
            touched = f"tokens touched: {handle.tokens_touched}"
            yield Check(number=7, name="it fires", passed=True, detail=touched)
            softened = _logits(base, ids)
            effect = float((softened - reference).abs().max())
            with handle.at_strength(0.0):
                same = torch.equal(_logits(base, ids), reference)
            yield _exact(1, "strength 0 is the unpatched model, bit for bit", same)
            yield _exact(1, "state_dict keys do not change", list(base.state_dict()) == keys)
            if config.by_content and tokenizer is not None:
                with handle.at_strength(0.0):
                    yield gates_hold(base, tokenizer, handle, chats=chats)
            for number, name, run in (
                (2, "left padding", partial(_padded, base, ids, left=True)),
                (2, "right padding", partial(_padded, base, ids, left=False)),
                (3, "prefill + cached decode, token by token", partial(_cached, base, ids, [4])),
                (3, "chunked prefill", partial(_cached, base, ids, [5, ids.shape[1] - 5])),
            ):
                yield _compared(number, name, run, handle, softened, effect)
            yield _saved(model, tokenizer, ids, softened)
            yield _stock_refuses(model, tokenizer)
        same = torch.equal(_logits(base, ids), reference)
        yield _exact(1, "removed is the unpatched model, bit for bit", same)


def gates_hold(
    model: nn.Module, tokenizer: Any, handle: SoftenHandle, *, chats: bool = True
) -> Check:
    """On texts that calibration never saw, every layer's gate tells massive tokens from the rest.

    The smallest value that it picks is at least `MIN_SEPARATION` times the largest that it leaves,
    and the strongest token of every text that has a massive one at the ME Layer is picked.

    The model is softened, by content and with strength 0; `chats`: read the texts as chats, too.
    """
    report, tokens = handle.report, handle.config.tokens
    assert report is not None and report.layer is not None
    level = report.criterion.level(report.layers[report.layer + 1].median)
    texts = [*HELD_OUT_TEXTS, *load_texts(None, HELD_OUT_PROBLEMS)]
    ids, mask = calibration_inputs(tokenizer, texts=texts, chats=chats)
    ask = {layer: partial(report.gates[layer].units, tokens=tokens) for layer in handle.layers}
    units = entering(model, ask, ids, mask)
    at_birth = entering(model, {report.layer + 1: lambda h: h.float().abs().amax(-1)}, ids, mask)
    strength = at_birth[report.layer + 1].masked_fill(mask == 0, 0)
    has_one, strongest = strength.amax(1) >= level, strength.argmax(1, keepdim=True)
    gaps = {layer: gap_around(values[mask.bool()]) for layer, values in units.items()}
    all_picked = [layer for layer, values in units.items() if (values[mask.bool()] > 1).all()]
    gaps |= dict.fromkeys(all_picked, 0.0)  # telling nothing apart
    picked = {layer: values.gather(1, strongest).squeeze(1) > 1 for layer, values in units.items()}
    missed = sum(int((has_one & ~found).sum()) for found in picked.values())
    worst = min(gaps, key=lambda layer: gaps[layer])
    return Check(
        number=7,
        name="gates hold on texts not calibrated on",
        passed=gaps[worst] >= MIN_SEPARATION and not missed and bool(has_one.any()),
        detail=f"{int(mask.sum())} tokens of {len(ids)} texts, {int(has_one.sum())} of them with a "
        f"massive token; smallest gap {gaps[worst]:.2f}x, in layer {worst}; {missed} missed",
    )


def _sequence(model: nn.Module, report: MELayerReport | None) -> Tensor:
    """Ids [1, T], T >= 12: the probe prompt, repeated where it is short."""
    ids = probe_ids(model, report)
    while ids.shape[1] < 12:
        ids = torch.cat([ids, ids[:, 1:] if ids.shape[1] > 1 else ids], 1)
    return ids[:, :48]


def _logits(model: nn.Module, ids: Tensor, **inputs: Any) -> Tensor:
    return model(input_ids=ids, use_cache=False, **inputs).logits.float()


def _exact(number: int, name: str, passed: bool) -> Check:
    return Check(number=number, name=name, passed=passed, detail="" if passed else "differs")


def _compared(
    number: int,
    name: str,
    run: Callable[[], Tensor],
    handle: SoftenHandle,
    softened: Tensor,
    effect: float,
) -> Check:
    """Hold what `run` gives, the differences from the full forward, against the unpatched ones."""
    difference = float(run().abs().max())
    with handle.at_strength(0.0):
        floor = float(run().abs().max())
    passed = difference <= 2 * floor + 1e-5 * max(1.0, float(softened.abs().max()))
    detail = (
        f"differs by {difference:.1e} (unpatched {floor:.1e}; the softening itself {effect:.1e})"
    )
    return Check(number=number, name=name, passed=passed, detail=detail)


def _padded(model: nn.Module, ids: Tensor, *, left: bool) -> Tensor:
    """A batch of the sequence and its first half, padded, against each alone."""
    length, half = ids.shape[1], ids.shape[1] // 2
    batch, mask = ids.repeat(2, 1), torch.ones_like(ids).repeat(2, 1)
    where = slice(0, length - half) if left else slice(half, length)
    mask[1, where] = 0
    if left:
        batch[1, length - half :] = ids[0, :half]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = _logits(model, batch, attention_mask=mask, position_ids=positions)
    alone = _logits(model, ids)[0], _logits(model, ids[:, :half])[0]
    short = out[1, length - half :] if left else out[1, :half]
    return torch.cat([out[0] - alone[0], short - alone[1]])


def _cached(model: nn.Module, ids: Tensor, chunks: list[int]) -> Tensor:
    """Chunks of these lengths, the rest token by token, against one full forward."""
    lengths = chunks + [1] * (ids.shape[1] - sum(chunks))
    cache, outputs = None, []
    for chunk in ids.split(lengths, 1):
        out = model(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        outputs.append(out.logits.float())
    return torch.cat(outputs, 1) - _logits(model, ids)


CHILD = """
import sys, torch, wemask
from safetensors.torch import load_file, save_file
model, _ = wemask.load(sys.argv[1])
ids = load_file(sys.argv[2])["ids"].to(next(model.parameters()).device)
with torch.no_grad():
    save_file({"logits": model(input_ids=ids, use_cache=False).logits.float().cpu()}, sys.argv[3])
"""


def _saved(model: nn.Module, tokenizer: Any, ids: Tensor, softened: Tensor) -> Check:
    """Save, load in a fresh process, compare."""
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(model, tokenizer, folder / "model")
        save_file({"ids": ids.cpu().contiguous()}, folder / "ids")
        arguments = [folder / "model", folder / "ids", folder / "out"]
        command = [sys.executable, "-c", CHILD, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:]
            return Check(number=6, name="save and load", passed=False, detail=" ".join(said))
        same = torch.equal(load_file(folder / "out")["logits"], softened.cpu())
    return _exact(6, "save, load in a fresh process: bit for bit", same)


def _stock_refuses(model: nn.Module, tokenizer: Any) -> Check:
    """Stock from_pretrained must not load a softened folder without its operator."""
    from transformers import AutoModelForCausalLM

    name = "stock from_pretrained does not drop the operator silently"
    with tempfile.TemporaryDirectory() as folder:
        save(model, tokenizer, folder)
        try:
            AutoModelForCausalLM.from_pretrained(folder)
        except (ValueError, KeyError, OSError) as error:
            detail = f"it stops: {str(error).splitlines()[0][:70]}"
            return Check(number=6, name=name, passed=True, detail=detail)
    return Check(number=6, name=name, passed=False, detail="it loaded the model")
