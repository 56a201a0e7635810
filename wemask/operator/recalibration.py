"""Gates of a softened model, calibrated again on its weights: training moves what they tell.

    moved = recalibrate(handle, model, tokenizer, examples=...)   # read what was read at first
    print(*moved.sentences())

Each softened layer takes the gate that detection finds for it now. Where it finds none, the gate in
force stays if it still tells massive tokens from ordinary ones (an activation may shrink below the
criterion and be as clear as before); else the layer has lost its gate, and touches nothing. Layers,
dims and fill stay as they were chosen, so a layer that was left alone is left alone.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, finfo, float32, nn

from wemask import distributed
from wemask.detection.calibration import calibration_inputs
from wemask.detection.detect import detect
from wemask.detection.gates import still_tells
from wemask.detection.me_layer import (
    Gate,
    MELayerReport,
    layers_by_reason,
    ranges,
)
from wemask.errors import DetectionError, WemaskError
from wemask.operator.handle import Calibrated, SoftenHandle, observing
from wemask.operator.layers import Observation

NEVER = finfo(float32).max  # a threshold that no token passes: a gate that is lost


def recalibrate(
    handle: SoftenHandle,
    model: nn.Module,
    tokenizer: Any = None,
    *,
    step: int | None = None,
    **reading: Any,
) -> "Moved | None":
    """Calibrate the gates of a softened model on its weights as they are, and use them.

    Under ZeRO-3 and FSDP2 all ranks must come here together; everywhere, rank 0's gates are taken.

    Args:
        handle: of the softened model.
        model: that model, or what is wrapped around it.
        tokenizer: for the calibration texts.
        step: optimizer steps done, to be kept with the result.
        **reading: what is read, as for `calibration_inputs`.

    Returns:
        What moved; None where tokens are not told by gates.

    Raises:
        DetectionError, ModelError: as `detect`, e.g. for weights that are not finite any more. The
            gates in force stay.
    """
    before = handle.report
    if before is None or not before.found or not handle.config.uses_gates:
        return None
    ids, mask = calibration_inputs(tokenizer, **reading)
    failed: Exception | None = None
    report, seen = before, dict[int, Observation]()
    try:
        with handle.at_strength(0.0), observing(handle, mask) as seen:
            report = detect(
                model, tokenizer, input_ids=ids, attention_mask=mask, criterion=before.criterion
            )
    except (WemaskError, RuntimeError) as error:  # of this rank, such as a full GPU
        failed = error
    if distributed.any_rank(failed is not None):  # else the others would wait for this one
        raise failed or DetectionError("Another rank could not calibrate.")
    holding = [index for index, observed in seen.items() if _holds(observed, mask)]
    values, holding = distributed.broadcast_object((report.to_dict(), holding))
    found = MELayerReport.from_dict(values)
    gates = {
        index: _gate(before.gates[index], index, found, handle.config.tokens, index in holding)
        for index in handle.layers
        if index in before.gates  # there are none before the ME Layer (tokens=wrong)
    }
    prompt = found.probe_ids if found.found else before.probe_ids
    first = handle.calibrated.first if handle.calibrated else before
    handle.use_gates(
        replace(before, gates={**before.gates, **gates}, probe_ids=prompt),
        Calibrated(step=step, first=first, found=found),
    )
    handle.look(model)
    return Moved(handle=handle, before=before)


def _holds(observed: Observation, mask: Tensor) -> bool:
    """Whether a gate in force still tells some of the real tokens, 1 in [B, T], from the rest."""
    if observed.units is None:
        return False
    return still_tells(observed.units.cpu()[mask.bool().cpu()])


def _gate(old: Gate, index: int, found: MELayerReport, tokens: str, holds: bool) -> Gate:
    """The gate that a softened layer has from now on; `holds`: the old one still tells."""
    now = found.gates.get(index)
    if now is not None and now.of(tokens):
        return now
    if holds:
        return old
    why = _why_lost(tokens, index, found)
    never = dict.fromkeys(old.dims, NEVER)
    return replace(
        old,
        thresholds=never,
        primary=never,
        separation=0.0,
        primary_separation=0.0,
        massive=0,
        note=why,
        primary_note=why,
    )


def _why_lost(tokens: str, index: int, found: MELayerReport) -> str:
    if not found.found:
        return "no massive activation emerges any more"
    if index not in found.gates:
        return f"the ME Layer is {found.layer} now"
    return found.gates[index].why_not(tokens)


def is_lost(gate: Gate) -> bool:
    """Whether a calibration found that the gate tells massive tokens no more."""
    return bool(gate.thresholds) and min(gate.thresholds.values()) >= NEVER


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What moved from one report of a softened model to its newest calibration."""

    handle: SoftenHandle
    before: MELayerReport
    """With the gates that were in force then."""

    def rows(self) -> list[tuple[int, Gate, Gate]]:
        """Each softened layer with its gate then and now."""
        now = self.handle.report
        assert now is not None
        both = [i for i in self.handle.layers if i in self.before.gates]
        return [(i, self.before.gates[i], now.gates[i]) for i in both]

    def sentences(self) -> list[str]:
        """In words; the last one is the finding, where training took tokens away."""
        assert self.handle.calibrated is not None
        rows, found = self.rows(), self.handle.calibrated.found
        silent, tokens = self.handle.silent, self.handle.config.tokens
        won = (i for i in self.handle.left_alone if (g := found.gates.get(i)) and g.of(tokens))
        lost = {i: now.note for i, old, now in rows if is_lost(now) and not is_lost(old)}
        of_layers = {
            "new thresholds": [i for i, old, now in rows if old != now == found.gates.get(i)],
            "thresholds as before": [i for i, old, now in rows if old == now == found.gates.get(i)],
            "the old thresholds, which still tell": [
                i for i, old, now in rows if old == now != found.gates.get(i) and not is_lost(now)
            ],
            "a gate again": [i for i, old, now in rows if is_lost(old) and not is_lost(now)],
            "a gate that would tell, but left alone as in training": [*won],
        }
        said = [f"{_layers(numbers)}: {what}." for what, numbers in of_layers.items() if numbers]
        return [
            self._me_layer(found),
            *said,
            *([f"Gates lost: {layers_by_reason(lost)}."] if lost else []),
            *([finding(len(silent), len(self.handle.layers))] if silent else []),
        ]

    def _me_layer(self, found: MELayerReport) -> str:
        if not found.found:
            return found.verdict
        if found.layer == self.before.layer:
            return f"ME Layer {found.layer}, as before."
        return f"ME Layer {found.layer}; it was {self.before.layer}. The softened layers stay."


def finding(silent: int, layers: int) -> str:
    """What is said of a run whose training took the massive activation away."""
    return (
        "SFT has removed the massive activation: the softening touches nothing in "
        f"{silent} of {layers} layers."
    )


def _layers(numbers: list[int]) -> str:
    return f"Layer{'s' * (len(numbers) > 1)} {ranges(numbers)}"
