"""Find, soften and study massive activations in language models.

    import wemask
    report = wemask.detect(model, tokenizer)
    with wemask.soften(model, report, wemask.WeMaskConfig(rate=0.001)):
        model.generate(...)

Names are loaded on first use: `import wemask` itself imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wemask.version import __version__

_HOME = {
    "Criterion": "detection.me_layer",
    "MELayerReport": "detection.me_layer",
    "LearnableStrength": "operator.settings",
    "StrengthSchedule": "operator.settings",
    "WeMaskConfig": "operator.settings",
    "SoftenHandle": "operator.handle",
    "WeMaskWarning": "operator.patch",
    "soften": "operator.patch",
    "detect": "detection.detect",
    "save": "checkpoint.save_load",
    "load": "checkpoint.save_load",
    "merge": "checkpoint.save_load",
    "export": "checkpoint.export",
    "WemaskError": "errors",
}
_MODULES = {
    "answers": "evaluate.scoring.answers",
    "planted": "planted",
    "statistics": "compare.paired",
}

__all__ = [*_HOME, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from wemask.checkpoint.export import export
    from wemask.checkpoint.save_load import load, merge, save
    from wemask.compare import paired as statistics
    from wemask.detection.detect import detect
    from wemask.detection.me_layer import Criterion, MELayerReport
    from wemask.errors import WemaskError
    from wemask.evaluate.scoring import answers
    from wemask.operator.handle import SoftenHandle
    from wemask.operator.patch import WeMaskWarning, soften
    from wemask.operator.settings import LearnableStrength, StrengthSchedule, WeMaskConfig


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"wemask.{_MODULES[name]}")
    if name in _HOME:
        return getattr(importlib.import_module(f"wemask.{_HOME[name]}"), name)
    raise AttributeError(f"module 'wemask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
