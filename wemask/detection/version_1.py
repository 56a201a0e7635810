"""An ME Layer report of version 0.1, as what it meant."""

from typing import Any

MOST_LAYERS = 10_000  # each of them gets a gate here; later reports hold theirs


def of_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """It had one threshold per dim for all layers, and layer numbers for emergences."""
    values = dict(values)
    taus, ratio = values.pop("thresholds"), values.pop("separation")
    note, me_layer = values.pop("separation_note"), values["layer"]
    gate = {
        "dims": [int(d) for d in taus],
        "thresholds": taus,
        "primary": taus,
        "separation": ratio,
        "primary_separation": ratio,
        "massive": len(values["tokens"]),
        "note": "" if taus else note or "not told by version 0.1",
    }
    after = range(me_layer + 1, values["num_layers"]) if values["found"] else ()
    if len(after) > MOST_LAYERS:
        raise ValueError(f"num_layers is {values['num_layers']:,}")
    values["gates"] = {str(layer): gate for layer in after}
    unknown = {"tokens": [], "count": 0, "dims": [], "magnitude": 0.0, "erased_at": None}
    known = {
        **{name: values[name] for name in ("tokens", "dims", "erased_at")},
        "count": len(values["tokens"]),
        "magnitude": max(values["magnitudes"], default=0.0),
    }
    values["emergences"] = [
        {"layer": layer, "alignment": None, **(known if layer == me_layer else unknown)}
        for layer in values["emergences"]
    ]
    return values
