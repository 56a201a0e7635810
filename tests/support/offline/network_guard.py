"""Nothing in the tests may reach out: a socket to anywhere but this machine raises, and is logged.

The log is what makes it strict. Libraries catch connection errors and carry on with a fallback;
`tests/conftest.py` reads the log after each test and fails the test all the same. The file is named
by an environment variable, so that child processes (through `sitecustomize`) write to the same one.
"""

import errno
import os
import socket
import sys
import traceback
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

LOG_VARIABLE = "WEMASK_TEST_NETWORK_LOG"
# Nothing listens here ("discard"). Proxy variables point at it, so that programs which are not
# Python fail at once; a Python client that asks this proxy was about to leave the machine.
DEAD_PROXY = ("127.0.0.1", 9)
LOCAL_NAMES = frozenset({"", "localhost", "localhost.localdomain", socket.gethostname()})

_originals: dict[str, Callable] = {}


class NetworkForbiddenError(OSError):
    """A test tried to use the network. An OSError, because that is what a dead network raises."""


def is_local(host: object, port: object = None) -> bool:
    """Tell whether `host` (a name or an address, as sockets take them) stays on this machine."""
    if (host, port) == DEAD_PROXY:
        return False
    if host is None or _text(host).lower() in LOCAL_NAMES:
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _text(host: object) -> str:
    return host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)


def _address(host: object) -> IPv4Address | IPv6Address | None:
    """Return the numeric address that `host` spells (its scope left off), or None for a name."""
    try:
        return ip_address(_text(host).partition("%")[0])
    except ValueError:
        return None


def refuse(what: str) -> None:
    """Log the attempt with the code that made it, and raise."""
    log = os.environ.get(LOG_VARIABLE)
    if log:
        stack = "".join(traceback.format_stack(limit=12)[:-2])
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{what} in process {os.getpid()}: {' '.join(sys.argv)}\n{stack}\n")
    raise NetworkForbiddenError(errno.ENETUNREACH, f"the tests run without network: {what}")


def _connect(name: str) -> Callable:
    original = _originals[name]

    def guarded(self: socket.socket, address: object, /) -> object:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            host, port = address[:2]
            if not is_local(host, port):
                refuse(f"{name} to {host}:{port}")
        return original(self, address)

    return guarded


def _sendto(self: socket.socket, data: bytes, *flags_and_address: object) -> object:
    address = flags_and_address[-1]
    if isinstance(address, tuple) and not is_local(address[0]):
        refuse(f"sendto {address[0]}:{address[1]}")
    return _originals["sendto"](self, data, *flags_and_address)


def _resolve(name: str) -> Callable:
    original = _originals[name]

    def guarded(host: object, *args: object, **kwargs: object) -> object:
        # A numeric address is not looked up anywhere; connecting to it is refused above.
        if not is_local(host) and _address(host) is None:
            refuse(f"{name} of {host!r}")
        return original(host, *args, **kwargs)

    return guarded


def install() -> None:
    """Put the guard on this process's sockets; a second call changes nothing."""
    if _originals:
        return
    for name in ("connect", "connect_ex", "sendto"):
        _originals[name] = getattr(socket.socket, name)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        _originals[name] = getattr(socket, name)
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, _connect(name))
    setattr(socket.socket, "sendto", _sendto)  # noqa: B010 (pyright forbids the plain assignment)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _resolve(name))


def remove() -> None:
    """Give the process its own sockets back."""
    for name, original in _originals.items():
        setattr(socket.socket if hasattr(socket.socket, name) else socket, name, original)
    _originals.clear()
