"""One rank of a test: trains runs one after another, each given as a list of command-line words.

    torchrun --nproc_per_node 2 tests/support/engine_worker.py '[["method=wemask", ...], ...]'

accelerate runs FSDP2 only with an accelerator per rank, and with trainer.use_cpu=true it silently
runs DDP instead. With WEMASK_TEST_FSDP_ON_CPU set, the places that say so are talked round.
"""

import json
import os
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[0] = str(REPOSITORY / "tests")
sys.path.insert(1, str(REPOSITORY))  # before an installed wemask, which may be another

if os.environ.get("WEMASK_TEST_FSDP_ON_CPU"):
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def on_gloo(self, cpu=False, sagemaker_dp=False, backend=None):
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = on_gloo
    from transformers import training_args

    training_args.is_torch_bf16_gpu_available = lambda: True  # pyright: ignore

import wemask  # noqa: E402
from wemask.settings.composition import compose, exit_on_error  # noqa: E402
from wemask.settings.config import run_config  # noqa: E402
from wemask.train.training import train  # noqa: E402

assert Path(wemask.__file__).is_relative_to(REPOSITORY), wemask.__file__


def hang_at(step):
    """Rank 1 sleeps there, and the others wait for it."""
    from transformers import TrainerCallback

    from wemask.train.callbacks import SofteningCallback

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step and os.environ["RANK"] == "1":
            time.sleep(300)
        TrainerCallback.on_step_begin(self, args, state, control)

    SofteningCallback.on_step_begin = on_step_begin


if __name__ == "__main__":
    if step := int(os.environ.get("WEMASK_TEST_HANG_AT_STEP", "0")):
        hang_at(step)
    for words in json.loads(sys.argv[1]):
        with exit_on_error():
            train(run_config(compose("train", words)))
