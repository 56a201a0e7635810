"""The environment in which tests run, for themselves and for their child processes."""

import os
import sys
from pathlib import Path

OFFLINE = Path(__file__).resolve().parent / "offline"

sys.path.insert(0, str(OFFLINE))
import network_guard  # noqa: E402  (from the folder that children get in PYTHONPATH, too)


def environment(folder: Path, *, gpu: bool) -> dict[str, str]:
    """Return what the tests set: offline, quiet, caches under `folder`, one thread."""
    dead_proxy = "http://{}:{}".format(*network_guard.DEAD_PROXY)
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    values = {name: dead_proxy for lower in proxies for name in (lower, lower.upper())}
    values |= {
        "no_proxy": "localhost,127.0.0.1,::1",
        "NO_PROXY": "localhost,127.0.0.1,::1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")])),
        network_guard.LOG_VARIABLE: str(folder / "network.log"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_CACHE": str(folder / "huggingface" / "hub"),
        "HF_DATASETS_CACHE": str(folder / "huggingface" / "datasets"),
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",  # its telemetry seeks a server long after a test
        "WANDB_DIR": str(folder / "wandb"),
        "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "wandb" / "config"),
        "WANDB_DATA_DIR": str(folder / "wandb" / "data"),
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not gpu:
        # Pinned values are CPU values, and TRL would move the model by itself.
        values["CUDA_VISIBLE_DEVICES"] = ""
    return values
