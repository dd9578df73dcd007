"""Processes, and what the operating system knows of them: processor time, memory, listening ports, cores."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

LOOPBACK = "127.0.0.1"
START = 15.0  # seconds for a program to listen
TICKS = os.sysconf("SC_CLK_TCK")
LISTENING = "0A"  # the state in /proc/net/tcp


class UnavailableError(Exception):
    """A peer, or something it needs, is not on this machine."""


class MeasurementError(Exception):
    """A measurement that did not work."""


class Process:
    """A program that listens, with its children; ended with all of them on leaving.

    :param arguments: the argument list.
    :param port: where it will listen on 127.0.0.1; it is waited for.
    :param log: takes what it prints.
    :param patience: seconds for it to listen.
    :raises UnavailableError: if it cannot be started.
    :raises MeasurementError: if it ends, or does not listen in time.
    """

    running: ClassVar[list[Process]] = []  # all of them that this program has not yet ended

    def __init__(self, arguments: list[str], port: int, log: Path, patience: float = START) -> None:
        self.port = port
        self.log = log
        self._patience = patience
        with log.open("wb") as output:
            try:
                self._child = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise UnavailableError(f"{arguments[0]}: {error.strerror}") from None
        self.running.append(self)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Look at the table of listening ports: a connect would reach through a relay and disturb the target."""
        deadline = time.monotonic() + self._patience
        while not _listens(self.port):
            if self._child.poll() is not None:
                raise MeasurementError(f"ended with status {self._child.returncode}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise MeasurementError(f"does not listen after {self._patience:.0f} s: {self._last_words()}")
            time.sleep(0.01)

    def _last_words(self) -> str:
        return " / ".join(self.log.read_text(errors="replace").split("\n")[-4:]).strip(" /")

    def signal(self, number: int) -> None:
        """Send a signal to the program, not to its children."""
        self._child.send_signal(number)

    def cpu(self) -> float:
        """The processor time used so far, in seconds: all threads, live children and those that ended."""
        return sum(_cpu(pid) for pid in family(self.pid))

    def memory(self) -> int:
        """The resident memory in bytes, children included."""
        return sum(_memory(pid) for pid in family(self.pid))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def children(self) -> list[int]:
        """The process ids of its children."""
        return _children(self.pid)

    def close(self) -> None:
        """End it and its children, those in sessions of their own too, and wait for it."""
        pids = family(self.pid)
        for end, number in [(os.killpg, self.pid), *[(os.kill, pid) for pid in pids]]:
            try:
                end(number, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._child.wait()
        if self in self.running:
            self.running.remove(self)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> str:
    """The text of a file under /proc, empty if its process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""


def family(pid: int) -> list[int]:
    """The process ids of a program, its children, theirs, and so on."""
    pids = [pid]
    for one in pids:
        pids += _children(one)
    return pids


def threads(pid: int) -> list[Path]:
    """The folders of its threads in /proc; none if it has ended."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    return [int(child) for thread in threads(pid) for child in read(thread / "children").split()]


def _cpu(pid: int) -> float:
    fields = read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS  # utime, stime, cutime, cstime: proc(5)


def _memory(pid: int) -> int:
    for line in read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _listens(port: int) -> bool:
    """Return true if 127.0.0.1:port is in the table of listening ports, which stand first in it."""
    wanted = f"{int.from_bytes(socket.inet_aton(LOOPBACK), 'little'):08X}:{port:04X}"
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            _, address, _, state, *_ = line.split()
            if state != LISTENING:
                return False
            if address == wanted:
                return True
    return False


def listeners_at(port: int) -> int:
    """The number of IPv4 addresses at which something listens at this port."""
    count, wanted = 0, f":{port:04X}"
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            _, address, _, state, *_ = line.split(None, 4)
            if state != LISTENING:
                break
            count += address.endswith(wanted)
    return count


def program(name: str) -> str:
    """The path of a program, which ordinary users may not have in theirs.

    :raises UnavailableError: if it is not installed.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise UnavailableError(f"{name} is not installed")
    return path


def relay_command() -> str:
    """The path of the command ``relay`` of this environment.

    :raises UnavailableError: if it is not installed.
    """
    command = Path(sys.executable).with_name("relay")
    if not command.exists():
        raise UnavailableError(f"{command} does not exist: make install")
    return str(command)


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free port of 127.0.0.1 that the kernel gives to no other program, however late the right one listens."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((LOOPBACK, 0))
        port: int = holder.getsockname()[1]
        yield port


def run(arguments: list[str], seconds: float) -> str:
    """Run a program to its end.

    :param arguments: the argument list.
    :param seconds: how long it may take.
    :returns: what it printed on standard output.
    :raises UnavailableError: if it cannot be started.
    :raises MeasurementError: if it fails or does not end in time.
    """
    try:
        done = subprocess.run(
            arguments, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{arguments[0]}: no end after {seconds:.0f} s") from None
    except OSError as error:
        raise UnavailableError(f"{arguments[0]}: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise MeasurementError(f"{arguments[0]}: status {done.returncode}: {' / '.join(said[-3:])}")
    return done.stdout


def compiled(source: Path, directory: Path, *libraries: str) -> str:
    """The path of one of the C programs, compiled into ``directory`` when first asked for.

    :param libraries: which it needs beside that of C.
    :raises UnavailableError: without a compiler.
    :raises MeasurementError: if it does not compile.
    """
    program = directory / source.stem
    if not program.exists():
        run(["gcc", "-O2", "-o", str(program), str(source), *(f"-l{name}" for name in libraries)], 60)
    return str(program)


@contextmanager
def pinned(*cores: int) -> Iterator[None]:
    """Whatever is started inside runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard one; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def describe(versions: dict[str, list[str]], packages: list[str]) -> dict[str, str]:
    """The machine and the programs on it.

    :param versions: for each program the argument list that prints its version.
    :param packages: the Python packages.
    :returns: a line of text for each.
    """
    models = [line.split(":")[1].strip() for line in read(Path("/proc/cpuinfo")).splitlines() if "model name" in line]
    lines = {
        "cores": f"{len(os.sched_getaffinity(0))} × {models[0] if models else platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    lines |= {name: _version(arguments) for name, arguments in versions.items()}
    return lines | {name: _package(name) for name in packages}


def _version(arguments: list[str]) -> str:
    try:
        command = [program(arguments[0]), *arguments[1:]]
    except UnavailableError:
        return "not available"
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d\.\d", line)), "?")


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not available"
