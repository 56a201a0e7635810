"""One rank of a test run: train.py with the words given; FSDP2 on CPU ranks where asked for.

accelerate runs FSDP2 only with an accelerator per rank, and with trainer.use_cpu=true it silently
runs DDP instead. With WEMASK_TEST_FSDP_ON_CPU=1 the two places that say so are talked round.
"""

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

if os.environ.get("WEMASK_TEST_FSDP_ON_CPU"):
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def on_gloo(self, cpu=False, sagemaker_dp=False, backend=None):
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = on_gloo

import wemask  # noqa: E402
from wemask.composition import command  # noqa: E402
from wemask.config import run_config  # noqa: E402

assert Path(wemask.__file__).is_relative_to(REPOSITORY), wemask.__file__


def run(cfg):
    from wemask.training import train

    train(run_config(cfg))


if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))
    command("train", run)
