"""What every test gets: no network, one thread, no GPU unless asked for, fresh caches, `tiny`.

The environment is set in `pytest_configure`, before any test module imports a library that reads
it. Child processes inherit it, and get the network guard through PYTHONPATH and `sitecustomize`.
"""

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))  # helpers of all tests
from clean_environment import environment, network_guard  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

settings.register_profile("wemask", deadline=None, max_examples=50, print_blob=True)
# torch and a cold import are slow on the first example, which is no fault of the strategy.
settings.register_profile(
    "ci",
    settings.get_profile("wemask"),
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "wemask")


class Tiny(NamedTuple):
    """The embedded model and its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def pytest_configure(config: pytest.Config) -> None:
    """Close the network and set the environment, before anything of ours is imported."""
    folder = Path(tempfile.mkdtemp(prefix="wemask-tests-"))
    gpu = config.getoption("markexpr").strip() == "gpu"
    before = dict(os.environ)
    os.environ.update(environment(folder, gpu=gpu))
    for name in ("HF_TOKEN", "WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_PROJECT"):
        os.environ.pop(name, None)
    (folder / "wandb").mkdir()
    (folder / "network.log").touch()
    # `python -m pytest` puts the repository first on the path, where our evaluate.py would shadow
    # the `evaluate` package that lm-eval uses. Last is early enough for `import wemask`.
    kept = [entry for entry in sys.path if Path(entry or ".").resolve() != REPOSITORY]
    sys.path[:] = [*kept, str(REPOSITORY)]
    network_guard.install()

    def restore() -> None:
        network_guard.remove()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)  # a child may still be writing its last lines

    config.add_cleanup(restore)


@pytest.fixture
def network_log() -> Path:
    """The file that lists what was refused; a test that provokes an attempt empties it."""
    return Path(os.environ[network_guard.LOG_VARIABLE])


@pytest.fixture(autouse=True)
def _no_network(network_log: Path) -> Iterator[None]:
    """Fail the test in which anything, a child process included, tried to use the network."""
    yield
    attempts = network_log.read_text(encoding="utf-8")
    if attempts:
        network_log.write_text("", encoding="utf-8")  # the next test starts with a clean sheet
        pytest.fail(f"the test tried to use the network:\n{attempts}", pytrace=False)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """The embedded model in fp32 and its tokenizer, shared by all tests: read, do not change.

    A test that patches or trains takes `fresh_tiny`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wemask.embedded import TINY_PATH

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(TINY_PATH, dtype=torch.float32).eval()
    return Tiny(model, AutoTokenizer.from_pretrained(TINY_PATH))


@pytest.fixture
def fresh_tiny(tiny: Tiny) -> Callable[[], Tiny]:
    """A factory of private copies of `tiny`."""
    return lambda: copy.deepcopy(tiny)
