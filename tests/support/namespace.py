"""A network namespace of the tests' own: nothing but loopback, and nothing of the machine's network.

Run as a program this file holds a namespace (``hold``), or enters one and becomes another program (``enter``). It needs
no privilege where user namespaces are allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.process import Process

LOOPBACK = "127.0.0.1"
DEADLINE = 60.0  # seconds after which the holder of a busy machine counts as hanging
BACKLOG = 4096
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFADDR, SIOCSIFFLAGS = 0x8916, 0x8914
IFF_UP = 1
PR_SET_PDEATHSIG = 1
HARD_END = struct.pack("ii", 1, 0)  # of SO_LINGER: closing sends a reset


class Unavailable(OSError):  # noqa: N818 - it is no fault
    """There are no network namespaces for this user on this machine."""


class Namespace:
    """A process that holds a network namespace, and the ways into it. A context manager.

    :param addresses: of the loopback interface inside, beside 127.0.0.1; the whole /24 of each is local.
    :raises Unavailable: where it is not allowed.
    """

    def __init__(self, addresses: Sequence[str] = ()) -> None:
        self._lock = threading.Lock()
        self._programs: list[Process] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(DEADLINE)
        with theirs:
            argv = [*_this_program("hold"), str(theirs.fileno()), *addresses]
            self._holder = _start(argv, pass_fds=[theirs.fileno()])
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process id of the holder, which is what :func:`enter` wants."""
        return self._holder.pid

    def socket(self) -> socket.socket:
        """A new TCP socket that is inside, whatever the process that uses it."""
        _, descriptors = self.ask("socket")
        return socket.socket(fileno=descriptors[0])

    def run(self, argv: Sequence[str], **options: Any) -> Process:
        """Start a program inside, as a child of this process; it ends with the namespace at the latest.

        :param argv: the program and its arguments.
        :param options: of :func:`relay.process.start`.
        """
        argv = [*_this_program("enter"), str(self.pid), _program(argv[0]), *argv]
        self._programs.append(_start(argv, **options))
        return self._programs[-1]

    def spawn(self, argv: Sequence[str], output: Path) -> int:
        """Start a program inside, as a child of the holder: a test that starts it again leaves nothing behind.

        :param argv: the program and its arguments.
        :param output: a file that takes what it says, after what is there.
        :returns: its process id.
        """
        pid, _ = self.ask("spawn", str(output), _program(argv[0]), *argv)
        return int(pid)

    def door(self, port: int) -> Door:
        """A new way from the machine's 127.0.0.1 to ``port`` of the 127.0.0.1 inside; it is shut yet."""
        return Door(self, port)

    def ask(self, *request: object, pass_fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        """Send the holder a request; returns what it answers, and the descriptors that it has made."""
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], list(pass_fds))
            return self._receive()

    def _receive(self) -> tuple[Any, list[int]]:
        answer, descriptors = _packet(self._control)
        problem, result = json.loads(answer or b'["its holder has ended", null]')
        if problem:
            raise Unavailable(f"no network namespace: {problem} (are user namespaces off, or forbidden here?)")
        return result, descriptors

    def close(self) -> None:
        """Kill what runs inside, with all that it has started, and release the namespace. Idempotent."""
        for process in [*self._programs, self._holder]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            with process:  # closes its pipes and waits for it
                pass
        self._programs.clear()
        self._control.close()

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Door:
    """A port of the machine's 127.0.0.1 that leads inside, byte for byte: ends as ends, resets as resets.

    Shut, it refuses connections, and no other program can take it. Open, it resets those that the port inside refuses.
    """

    def __init__(self, namespace: Namespace, inside: int) -> None:
        self._namespace = namespace
        self._inside = inside
        self._reservation = _bound(0)  # never listens
        self.address: tuple[str, int] = self._reservation.getsockname()

    def open(self) -> None:
        """Let connections through."""
        with _bound(self.address[1]) as listener:
            listener.listen(BACKLOG)
            self._namespace.ask("open", self.address[1], self._inside, pass_fds=[listener.fileno()])

    def shut(self) -> None:
        """Refuse new connections; those that are through stay. Idempotent."""
        self._namespace.ask("shut", self.address[1])

    def close(self) -> None:
        """Give up the port. Idempotent."""
        self._reservation.close()


def enter(pid: int) -> None:
    """Move this process, which has one thread, into the network of another.

    Where root may do that, it stays what it is: in the other's user namespace it could become no other, and a server
    such as sshd must.

    :param pid: of the holder.
    :raises OSError: if the kernel refuses.
    """
    try:
        _enter(pid, ("net", CLONE_NEWNET))
    except PermissionError:
        _enter(pid, ("user", CLONE_NEWUSER), ("net", CLONE_NEWNET))


def _enter(pid: int, *kinds: tuple[str, int]) -> None:
    for kind, flag in kinds:
        path = f"/proc/{pid}/ns/{kind}"
        if os.readlink(path) != os.readlink(f"/proc/self/ns/{kind}"):
            with open(path) as namespace:
                _system("setns", namespace.fileno(), flag)


def _system(name: str, *arguments: int) -> None:
    """A system call that Python 3.11 lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _start(argv: Sequence[str], **options: Any) -> Process:
    from relay.process import start  # which the holder itself, without the program's path, does not have

    return start(argv, **options)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"there is no program {name}")
    return path


def _this_program(mode: str) -> list[str]:
    return [sys.executable, "-P", "-S", "-E", __file__, mode]


def _packet(control: socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors."""
    return socket.recv_fds(control, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC)[:2]


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((LOOPBACK, port))
    return made


# From here on: the holder.


def _leave(addresses: Sequence[str]) -> None:
    """Go into a new namespace, as the same user, and bring its loopback up."""
    user, group = os.geteuid(), os.getegid()
    try:
        _system("unshare", CLONE_NEWUSER | CLONE_NEWNET)
    except OSError:
        _system("unshare", CLONE_NEWNET)  # user namespaces may be off, and this be root all the same
    else:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _bring_loopback_up()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for number, address in enumerate(addresses):
            there = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(any_socket, SIOCSIFADDR, struct.pack("16s16s", b"lo:%d" % number, there))


def isolate() -> None:
    """Move this thread, and all that it starts, to a network of its own, which has nothing but loopback.

    :raises OSError: if that is not allowed here, such as for a user who is not root.
    """
    _system("unshare", CLONE_NEWNET)
    _bring_loopback_up()


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


class _Holder:
    """Answers one request after the other, each with one packet, until the program that asks has ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._doors: dict[int, asyncio.Server] = {}
        self._passing: set[asyncio.Task[None] | None] = set()
        self._outputs: dict[int, str] = {}  # of the programs that run, by process id

    async def serve(self) -> None:
        requests: asyncio.Queue[tuple[bytes, list[int]]] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(self._control, lambda: requests.put_nowait(_packet(self._control)))
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        while True:
            request, descriptors = await requests.get()
            if not request:
                return
            name, *arguments = json.loads(request)
            try:
                await getattr(self, f"_{name}")(*arguments, *descriptors)
            except OSError as error:
                self.answer(problem=str(error))

    def answer(self, result: object = None, *descriptors: int, problem: str = "") -> None:
        socket.send_fds(self._control, [json.dumps([problem, result]).encode()], list(descriptors))

    async def _socket(self) -> None:
        with socket.socket() as made:
            self.answer(None, made.fileno())

    async def _spawn(self, output: str, program: str, *argv: str) -> None:
        pid = _spawned(output, program, argv)
        self._outputs[pid] = output
        self.answer(pid)

    def _reap(self) -> None:
        """Write the signal of a crash to the output of its program; routers are ended by other signals.

        The process is waited for after that: a test that sees it gone finds the line.
        """
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                output = self._outputs.pop(ended.si_pid, os.devnull)
                is_crash = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
                if is_crash and ended.si_status not in (signal.SIGTERM, signal.SIGKILL):
                    with open(output, "a") as said:
                        said.write(f"ended by {signal.Signals(ended.si_status).name}\n")
                os.waitpid(ended.si_pid, 0)

    async def _open(self, door: int, port: int, descriptor: int) -> None:
        async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            self._passing.add(task)  # the loop itself does not keep one alive whose connection is paused
            try:
                await _pass_on(reader, writer, port)
            finally:
                self._passing.discard(task)

        listener = socket.socket(fileno=descriptor)
        self._doors[door] = await asyncio.start_server(through, sock=listener, backlog=BACKLOG)
        self.answer()

    async def _shut(self, door: int) -> None:
        if (server := self._doors.pop(door, None)) is not None:
            server.close()
        self.answer()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Copy both directions between a client and a port inside."""
    try:
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        _reset(writer)
        return
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, far_writer, writer))
            both.create_task(_copy(far_reader, writer, far_writer))
    except* OSError:
        _reset(writer)
        _reset(far_writer)
    else:
        writer.close()
        far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        # A router waits for our acknowledgement of one small piece before it sends the next.
        source.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD_END)
    writer.transport.abort()


def _spawned(output: str, program: str, argv: Sequence[str]) -> int:
    with open(output, "ab") as said, open(os.devnull) as nothing:
        return subprocess.Popen(
            argv, executable=program, stdin=nothing, stdout=said, stderr=said, preexec_fn=_die_with_parent
        ).pid


def _die_with_parent() -> None:
    _system("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)


def _hold(descriptor: int, addresses: Sequence[str]) -> None:
    with socket.socket(fileno=descriptor) as control:
        holder = _Holder(control)
        try:
            _leave(addresses)
        except OSError as error:
            holder.answer(problem=str(error))
            return
        holder.answer()
        asyncio.run(holder.serve())


def _become(pid: int, program: str, argv: list[str]) -> None:
    enter(pid)
    os.execv(program, argv)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        _hold(int(sys.argv[2]), sys.argv[3:])
    else:
        _become(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
