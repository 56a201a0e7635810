"""Find, soften and study massive activations in language models.

    import wemask
    report = wemask.detect(model, tokenizer)
    with wemask.soften(model, report, wemask.WeMaskConfig(rate=0.001)):
        model.generate(...)

Names are loaded on first use: `import wemask` itself imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Criterion": "me_layer",
    "MELayerReport": "me_layer",
    "LearnableStrength": "strength",
    "StrengthSchedule": "strength",
    "WeMaskConfig": "operator",
    "SoftenHandle": "handle",
    "WeMaskWarning": "patch",
    "soften": "patch",
    "detect": "detection",
    "save": "checkpoint",
    "load": "checkpoint",
    "merge": "checkpoint",
    "export": "exporting",
    "WemaskError": "errors",
}
_MODULES = ("answers", "planted", "statistics")

__all__ = [*_HOME, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from wemask import answers, planted, statistics
    from wemask.checkpoint import load, merge, save
    from wemask.detection import detect
    from wemask.errors import WemaskError
    from wemask.exporting import export
    from wemask.handle import SoftenHandle
    from wemask.me_layer import Criterion, MELayerReport
    from wemask.operator import WeMaskConfig
    from wemask.patch import WeMaskWarning, soften
    from wemask.strength import LearnableStrength, StrengthSchedule


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"wemask.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"wemask.{_HOME[name]}"), name)
    raise AttributeError(f"module 'wemask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
