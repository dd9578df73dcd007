"""Facts about this machine: limits, kernel, versions, the clock, and other packages named ``relay``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import select
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from ...extras import EXTRAS
from ...process import DEVNULL, PIPE, start
from .report import Check, Status

PROC = Path("/proc/sys")
PACKAGE = Path(__file__).resolve().parents[2]
DISTRIBUTION = "relay-toolkit"
ENOUGH = 1024  # descriptors: what most systems give a program at least
_PER_CONNECTION = 2  # descriptors of one connection: of its client and of its target
_PIPES = 32 << 20  # bytes of all pipes of one relay: the bound of relay.eventloop.pipes
_QUOTA = "fs.pipe-user-pages-soft"
_PATIENCE = 5.0  # seconds for ``ssh -V``
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*([^;]*)(;.*)?")
_EXTRA = re.compile(r"""extra == ["'](\w+)""")
_BOUND = re.compile(r"(>=|<|==|!=|>|<=)\s*([0-9.]+)")
_UNSYNCHRONIZED = 5  # TIME_ERROR of adjtimex(2)


def machine(connections: int | None = None) -> list[Check]:
    """Return the facts that matter for relay.

    :param connections: that the tunnels allow at one time; ``None`` if there is no limit.
    """
    return [
        _ok("python", sys.executable, f"Python {platform.python_version()} on {platform.platform()}"),
        *other_relays(),
        *dependencies(),
        *_openssh(),
        open_files(connections),
        *_pipes(),
        *_kernel(),
        *_clock(),
    ]


def _ok(step: str, subject: str, detail: str) -> Check:
    return Check(step, subject, Status.OK, detail)


# -- packages ---------------------------------------------------------------------------------------------------------


def other_relays(paths: Iterable[str] | None = None) -> list[Check]:
    """Find other packages and modules that ``import relay`` could take instead of this one.

    :param paths: where Python looks for modules; ``None`` for the import path, and the working directory.
    """
    # The working directory too: python -m and scripts put it, or their own folder, in front of what is installed.
    places = [os.getcwd(), *sys.path] if paths is None else list(paths)
    found = dict.fromkeys(place for each in places for place in _candidates(each or os.getcwd()))
    version = _version(DISTRIBUTION) or "not installed"
    checks = [_ok("relay", str(PACKAGE), f"version {version}")]
    for place in found:
        detail = "another module is named relay; Python imports the first one on its path"
        advice = "rename it, or remove its folder from PYTHONPATH"
        checks.append(Check("relay", place, Status.WARNING, detail, advice))
    if (foreign := _version("relay")) is not None:
        detail = f"version {foreign} of another project is installed under the name relay"
        advice = "pip uninstall relay, then pip install --force-reinstall relay-toolkit"
        checks.append(Check("relay", "the package relay", Status.FAILED, detail, advice))
    return checks


def _candidates(folder: str) -> Iterator[str]:
    for name in ("relay/__init__.py", "relay.py"):
        path = Path(folder, name)
        with contextlib.suppress(OSError):
            if path.is_file() and path.resolve() != PACKAGE / "__init__.py":
                yield str(path)


def dependencies() -> list[Check]:
    """Return the versions of all that relay depends on."""
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        detail = "its metadata are missing, so the versions of its dependencies are unknown"
        return [Check("dependencies", DISTRIBUTION, Status.WARNING, detail, "install it with pip")]
    checks = []
    for requirement in wanted:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None or match[1] == DISTRIBUTION:
            continue
        name, bounds = match[1], match[2].strip()
        extra = _EXTRA.search(match[3] or "")
        version = _version(name)
        if extra is not None and (version is None or extra[1] not in EXTRAS):
            continue  # the user has not asked for it
        if version is None:
            checks.append(Check("dependencies", name, Status.FAILED, "not installed", f"pip install '{requirement}'"))
        elif not _fits(version, bounds):
            detail = f"version {version}; relay needs {bounds}"
            checks.append(Check("dependencies", name, Status.FAILED, detail, f"pip install '{requirement}'"))
        else:
            checks.append(_ok("dependencies", name, f"version {version}"))
    return checks


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, bounds: str) -> bool:
    """Return whether a version is within bounds such as ``>=3.5,<6``; what is not understood fits."""
    own = _numbers(version)
    for sign, detail in _BOUND.findall(bounds):
        other = _numbers(detail)
        length = max(len(own), len(other))
        # Of equal length, because Python calls (3,) smaller than (3, 0).
        left, right = (numbers + (0,) * (length - len(numbers)) for numbers in (own, other))
        if not {">=": left >= right, "<=": left <= right, ">": left > right, "<": left < right}.get(sign, True):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^0-9.]", version)[0]))


def _openssh() -> list[Check]:
    path = shutil.which("ssh")
    if path is None:
        detail = "not installed; relay needs it only for what paramiko does not support"
        return [Check("openssh", "ssh", Status.SKIPPED, detail)]
    try:
        process = start([path, "-V"], stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
        # ssh -V prints on standard error.
        _, said = process.communicate(timeout=_PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        return [Check("openssh", path, Status.WARNING, f"ssh -V fails: {error}", "reinstall the OpenSSH client")]
    return [_ok("openssh", path, said.decode("utf-8", "replace"))]


# -- limits and kernel ------------------------------------------------------------------------------------------------


def open_files(connections: int | None) -> Check:
    """Compare the limit of open files with the connections that the tunnels allow.

    :param connections: at one time; ``None`` if there is no limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # relay raises the soft limit to the hard one
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    # The rest is for what is open in any case: listeners, loops, carriers, the log.
    needed = None if connections is None else connections * _PER_CONNECTION + ENOUGH // 8
    is_low = hard != resource.RLIM_INFINITY and (hard < ENOUGH or (needed is not None and hard < needed))
    advice = "raise it: ulimit -Hn, LimitNOFILE= of systemd, or /etc/security/limits.conf"
    if is_low and needed is not None and hard < needed:
        detail = f"{most} descriptors, and {connections} connections need {needed}"
        return Check("open files", "this process", Status.FAILED, detail, advice)
    if is_low:
        detail = f"only {most} descriptors, enough for {max(0, (hard - 64) // _PER_CONNECTION)} connections"
        return Check("open files", "this process", Status.WARNING, detail, advice)
    return _ok("open files", "this process", f"{most} descriptors")


def _pipes() -> list[Check]:
    path = PROC / "fs/pipe-user-pages-soft"
    try:
        pages = int(path.read_text())
    except (OSError, ValueError):
        return []
    # The kernel's limit is per user and not for root (pipe(7)); 0 means none.
    if pages == 0 or os.geteuid() == 0:
        return [_ok("pipe quota", str(path), "no limit for this user")]
    detail = f"{pages} pages for all pipes of this user"
    if pages * resource.getpagesize() < _PIPES:
        detail += f"; one relay may use {_PIPES >> 20} MiB to splice, and copies without them"
        return [Check("pipe quota", str(path), Status.WARNING, detail, f"sysctl {_QUOTA}={1 << 14}")]
    return [_ok("pipe quota", str(path), detail)]


def _kernel() -> list[Check]:
    calls = {
        "splice": hasattr(os, "splice"),
        "epoll": hasattr(select, "epoll"),
        "eventfd": hasattr(os, "eventfd"),
    }
    missing = [name for name, is_there in calls.items() if not is_there]
    detail = f"{platform.release()}: " + ", ".join(name for name in calls if name not in missing)
    checks = [_ok("kernel", platform.system(), detail)]
    if missing:
        detail = f"without {', '.join(missing)}: relay copies bytes and polls, which costs more time"
        checks = [Check("kernel", platform.system(), Status.WARNING, detail)]
    for name, meaning in _SYSCTLS.items():
        with contextlib.suppress(OSError):
            checks.append(_ok("kernel", name, f"{' '.join((PROC / name).read_text().split())} ({meaning})"))
    if sys.platform == "linux":
        checks.append(_ok("kernel", "IP_BIND_ADDRESS_NO_PORT", "supported" if _binds_late() else "not supported"))
    return checks


_SYSCTLS = {
    "net/core/somaxconn": "clients that wait to be accepted, at most",
    "net/ipv4/ip_local_port_range": "ports for connections to one target",
    "fs/file-max": "open files of the whole machine",
}


def _binds_late() -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT of ip(7)
        except OSError:
            return False
    return True


def _clock() -> list[Check]:
    """Report whether the kernel's clock is synchronized (adjtimex(2)); nothing where that is not known."""
    try:
        # All zero: it asks and sets nothing. The buffer is larger than struct timex on every machine.
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (AttributeError, OSError):
        return []
    if state == _UNSYNCHRONIZED:
        detail = "the kernel's clock is not synchronized; certificates and I2P need one that is right"
        return [Check("clock", "this machine", Status.SKIPPED, detail)]
    return [_ok("clock", "this machine", "synchronized")] if state >= 0 else []
