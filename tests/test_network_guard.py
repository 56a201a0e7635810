"""The guard: outside is refused and logged, this machine is not, children are guarded too."""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import network_guard
import pytest

OUTSIDE = "198.51.100.7"  # TEST-NET-2: no machine has this address


@pytest.fixture
def provoked(network_log: Path):
    """Return a function that gives what the guard logged, and takes it off the record."""

    def take() -> str:
        logged = network_log.read_text(encoding="utf-8")
        network_log.write_text("", encoding="utf-8")
        return logged

    return take


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_connecting_outside_is_refused_and_logged(method, provoked):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
        pytest.raises(network_guard.NetworkForbiddenError, match="without network"),
    ):
        getattr(sock, method)((OUTSIDE, 443))
    logged = provoked()
    assert f"{method} to {OUTSIDE}:443" in logged
    assert "test_network_guard.py" in logged  # names the code that tried


def test_a_datagram_to_the_outside_is_refused(provoked):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(network_guard.NetworkForbiddenError),
    ):
        sock.sendto(b"x", (OUTSIDE, 53))
    assert "sendto" in provoked()


@pytest.mark.parametrize(
    "resolve", [socket.gethostbyname, lambda name: socket.getaddrinfo(name, 443)]
)
def test_names_are_not_looked_up(resolve, provoked):
    with pytest.raises(network_guard.NetworkForbiddenError):
        resolve("huggingface.co")
    assert "huggingface.co" in provoked()


def test_a_client_that_obeys_the_proxy_is_caught(provoked):
    with pytest.raises(urllib.error.URLError, match="without network"):
        urllib.request.urlopen("http://huggingface.co/api/models", timeout=5)
    assert "127.0.0.1:9" in provoked()


def test_this_machine_can_be_reached(network_log):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("localhost", port), timeout=5) as client:
            assert client.getpeername()[1] == port
    left, right = socket.socketpair()
    left.close()
    right.close()
    assert network_log.read_text() == ""


def test_unix_sockets_are_left_alone(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)


def test_a_child_that_swallows_the_error_is_still_on_record(provoked):
    code = f"""
import socket
try:
    socket.create_connection(("{OUTSIDE}", 443), timeout=5)
except OSError as error:
    print(type(error).__name__)
"""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert child.stdout.strip() == "NetworkForbiddenError"
    assert f"connect to {OUTSIDE}:443" in provoked()


def test_a_swallowed_attempt_fails_the_test_that_made_it(tmp_path):
    """Run pytest on a test that hides its attempt: its body passes, and it fails all the same."""
    (tmp_path / "conftest.py").write_text(
        Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    )
    (tmp_path / "support").symlink_to(Path(__file__).parent / "support")
    (tmp_path / "test_sly.py").write_text(
        "import socket\n"
        "def test_sly():\n"
        "    try:\n"
        f"        socket.create_connection(('{OUTSIDE}', 443))\n"
        "    except OSError:\n"
        "        pass\n"
        "def test_next_one_is_not_blamed():\n"
        "    pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_sly.py"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert child.returncode == 1, child.stdout
    assert "ERROR at teardown of test_sly" in child.stdout
    assert f"connect to {OUTSIDE}:443" in child.stdout
    assert "2 passed, 1 error" in child.stdout


def test_libraries_see_an_offline_world():
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    assert os.environ["WANDB_MODE"] == "offline"
    assert Path(constants.HF_HOME).is_relative_to(Path(os.environ["HF_HOME"]))
