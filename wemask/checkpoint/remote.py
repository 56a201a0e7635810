"""How an exported model loads itself with `trust_remote_code=True`: natively, then softened.

`export.py` copies this file and what it imports beside the weights, and generates the classes
that derive from `SoftenedModel` and from a native class of transformers.
"""

import copy
from pathlib import Path
from typing import Any, ClassVar

from transformers.utils.hub import cached_file

from wemask.checkpoint.manifest import CONFIG_NAME, VARIANT, handle_of, mark, read_manifest, restore

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class SoftenedModel:
    """Mixed in before a native class: from_pretrained gives its model with the softening on.

    The weights are loaded by the native class itself, so that they come out as they do without us;
    the operator is put in afterwards, when the weights are there to look at. The softening is at
    `model.wemask_handle`: `.remove()` takes it out.
    """

    config_class: ClassVar[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuse random weights: the operator belongs to trained ones."""
        raise TypeError(
            f"{type(self).__name__} is a softened model and comes with its weights: load it with "
            "from_pretrained(FOLDER_OR_NAME, trust_remote_code=True)."
        )

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, config: Any = None, **options: Any):
        """Load as every `from_pretrained` does, and soften.

        Raises:
            WemaskError: wemask_config.json is damaged or does not fit the weights.
        """
        hub = {key: options[key] for key in HUB_OPTIONS if key in options}
        path = cached_file(name, CONFIG_NAME, **hub)
        assert path is not None  # cached_file raises OSError where there is none
        saved = read_manifest(Path(path).parent)
        if config is None:
            config = cls.config_class.from_pretrained(name, **hub)
        native: Any = cls.__mro__[cls.__mro__.index(SoftenedModel) + 1]
        config = copy.deepcopy(config)
        config.__class__ = native.config_class  # ours differs by its model_type only, by which
        config.model_type = native.config_class.model_type  # transformers converts some weights
        # a .bin is a pickle, which could run code
        options = {"variant": VARIANT, "use_safetensors": True, **options}
        loaded = native.from_pretrained(name, *args, config=config, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        restore(model, saved)
        model.__class__ = cls
        return loaded

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Save weights, operator and this code; the folder loads like the one it came from."""
        model: Any = super()
        model.save_pretrained(folder, **{"variant": VARIANT, **options})
        mark(Path(folder), handle_of(self))  # pyright: ignore[reportArgumentType]
