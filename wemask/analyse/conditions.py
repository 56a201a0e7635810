"""One condition of an experiment: what is done to the model, and the rows of its table.

B batch, T tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from wemask.analyse.rows import COLUMNS
from wemask.decoder.parts import Decoder, find_decoder, unwrap
from wemask.detection.me_layer import MELayerReport
from wemask.errors import DetectionError, ModelError, PatchError
from wemask.measure.layer_sums import Batch
from wemask.measure.measurement import Around, Measurement, Where, measure
from wemask.operator.patch import soften
from wemask.operator.settings import WeMaskConfig

METRICS = (
    *("massive_magnitude", "massive_ratio", "sink_mass", "sink_rate", "value_norm_ratio"),
    *("attention_input_rigidity", "matrix_entropy", "effective_rank", "anisotropy", "mean_cosine"),
)
IMPOSSIBLE = (PatchError, ModelError)
"""What `Subject.measure` raises where a model does not allow a condition (no norm weight, say)."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One thing that is done to the model, and measured."""

    experiment: str
    group: str
    at: int | None = None
    """The layer in which it is done, where that is one."""
    amount: float | None = None
    """The factor, fraction or strength."""
    rate: float | None = None
    seed: int | None = None
    around: Around | None = field(default=None, compare=False, repr=False)
    operator: WeMaskConfig | None = field(default=None, compare=False, repr=False)
    measured_on: Where | None = field(default=None, compare=False, repr=False)
    """Other tokens than the massive ones, which take their place in every metric."""

    def names(self) -> dict[str, Any]:
        """What was done, as the first columns of the table."""
        return {key: getattr(self, key) for key in COLUMNS[:6]}

    @property
    def key(self) -> str:
        """By which it is known again when an interrupted analysis goes on."""
        return "|".join(str(value) for value in self.names().values())


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its detection, and the texts on which it is measured."""

    model: nn.Module
    report: MELayerReport
    batches: Sequence[Batch]
    operator: WeMaskConfig = field(default_factory=WeMaskConfig)
    """What `specificity` and `dose` vary, and whose dims `location` uses."""

    @property
    def decoder(self) -> Decoder:
        return find_decoder(unwrap(self.model))

    @property
    def me_layer(self) -> int:
        """The ME Layer.

        Raises:
            DetectionError: there is none, so there is nothing to intervene in.
        """
        layer, why = self.report.layer, "None of these texts has one: give other --texts."
        if layer is None or not any(batch.massive.any() for batch in self.batches):
            needs = "The experiments need an ME Layer and a massive token in the texts."
            raise DetectionError(f"{needs} {self.report.verdict if layer is None else why}")
        return layer

    def measure(self, condition: Condition, done: Callable[[], None] | None = None) -> Measurement:
        """Measure the model under one condition.

        Raises:
            PatchError, ModelError: the operator cannot be put into this model, or would touch
                nothing.
        """
        operator, tokens = condition.operator, condition.measured_on
        with soften(self.model, self.report, operator) if operator else nullcontext():
            return measure(self.model, self.batches, condition.around, done, tokens)


def condition_rows(condition: Condition, found: Measurement, me_layer: int) -> list[dict[str, Any]]:
    """Rows of one condition, as plain values."""
    values = [("perplexity", None, found.perplexity)]
    for metric in METRICS:
        values.append((metric, None, found.later(metric, me_layer)))
        values += [(metric, row.layer, getattr(row, metric)) for row in found.layers]
    return [{**condition.names(), **dict(zip(COLUMNS[6:], of, strict=True))} for of in values]
