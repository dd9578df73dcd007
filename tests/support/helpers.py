"""Servers, clients and waits for the tests. Every wait has a deadline."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import os
import resource
import signal
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import relay

# Seconds after which a step counts as hanging. It bounds failures alone, so that it is long enough for a machine that
# gives the tests a tenth of one core: no test waits for it to pass.
# `make mutants` shortens it, where most failures are a wait for what a mutant never does.
WAIT = float(os.environ.get("RELAY_TESTS_WAIT", "60"))

# Seconds within which what is promised to be prompt has to be over. A busy machine may take seconds for an instant, so
# this is far longer than that; and it is far shorter than what could be waited for instead, which takes WAIT or longer.
PROMPT = 20.0
SUPPORT = str(Path(__file__).parent)  # where the modules are that tests share

# A megabyte whose pieces are all different, so that nothing can be lost, doubled or moved unseen.
BLOCK = hashlib.shake_128(b"relay").digest(1 << 20)


class Certificates(NamedTuple):
    """Files of a certificate authority and of one certificate of it."""

    ca: Path
    cert: Path
    key: Path

    def client(self) -> ssl.SSLContext:
        """A context that trusts this authority only."""
        return ssl.create_default_context(cafile=self.ca)

    def server(self) -> ssl.SSLContext:
        """A context that shows the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


def family(pid: int) -> list[int]:
    """Return a process and those that its threads have started, and so on, each before its children.

    Some of them may end meanwhile, which leaves them out or not.
    """
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                    found += family(int(child))
    return found


def wait_until(condition: Callable[[], object], timeout: float = WAIT) -> None:
    """Wait for what has no event of its own, such as a count in a record."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            _report()
            raise AssertionError(f"still not true after {timeout} s; standard error has the state of the process")
        threading.Event().wait(0.002)


@contextlib.contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """Leave this process so many descriptors that are free. Every thread of it meets that, and pytest itself."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/dev/fd"))) + left + 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


TIME_WAIT = "06"  # the state in /proc/net/tcp


def _report() -> None:
    """Print what a failure by chance must tell at once: the threads' stacks, the children and the sockets."""
    faulthandler.dump_traceback(2)
    lines = [str(child) for child in psutil.Process().children(recursive=True)]
    with contextlib.suppress(OSError):
        table = Path("/proc/net/tcp").read_text().splitlines()
        lines += [line for line in table if line.split()[3] != TIME_WAIT]
    os.write(2, "\n".join([*lines, ""]).encode())


def expire(tunnel: relay.Tunnel, moment: float) -> None:
    """Let every open connection check its limits at a moment, in monotonic seconds."""

    def look() -> None:
        for connection in list(tunnel._relay._slots.connections):
            connection.deadline.expire(moment)

    tunnel._relay.run_in_thread(look)


def ended(tunnel: relay.Tunnel, count: int = 1) -> list[str]:
    """The reasons of the last ``count`` connections, once no connection is live and so many have ended."""
    try:
        wait_until(lambda: tunnel.stats().active == 0 and len(tunnel.recent()) >= count)
    except AssertionError:
        raise AssertionError(f"open: {tunnel.connections()}; ended: {tunnel.recent()}") from None
    return [record.reason for record in tunnel.recent()[-count:]]


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child; return its exit status: 0 if it returned, 1 if it raised or returned false."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, from Python 3.12 on
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(work() is False)
        finally:
            os._exit(status)
    try:
        wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
    finally:
        os.kill(pid, signal.SIGKILL)  # if it hangs; one that has ended does not mind
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def closed(made: Any) -> Iterator[Any]:
    """Yield something, and close it afterwards: the work of a fixture."""
    with contextlib.closing(made):
        yield made


def makes(make: Callable[..., Any], close: Callable[[Any], object] = lambda made: made.close()) -> Iterator[Any]:
    """Yield a function that makes things, and close them afterwards, the last one first: the work of a fixture."""
    with contextlib.ExitStack() as stack:

        def keep(*args: Any, **options: Any) -> Any:
            made = make(*args, **options)
            stack.callback(close, made)
            return made

        yield keep


def receive_all(end: Any) -> bytes:
    """Everything up to the end of file."""
    return b"".join(iter(lambda: end.recv(1 << 16), b""))


def receive_until_reset(end: Any) -> bytes:
    """Everything up to a reset; an end of file in its place is a failure."""
    data = bytearray()
    try:
        while piece := end.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        return bytes(data)
    raise AssertionError(f"an end of file after {len(data)} bytes, which were cut")


def receive_rest(end: Any) -> bytes:
    """Everything up to an end of file or a reset, where what is received has to tell."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := end.recv(1 << 16):
            data += piece
    return bytes(data)


def answer_to(client: socket.socket, data: bytes) -> bytes:
    """Send data, which the server may reject before its end; return all that comes until it closes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(data)
    return receive_rest(client)


def is_running(pid: int) -> bool:
    """Return true if there is a process of this number that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second one if it ends between the open and the read
        return False


def stop(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until each of its threads has stopped, which takes the system a moment."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(map(_has_stopped, Path(f"/proc/{pid}/task").glob("*/stat"))))


def _has_stopped(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:  # the thread has ended
        return True


def receive_exactly(end: Any, size: int) -> bytes:
    """The next ``size`` bytes, or fewer if the end of file comes first."""
    data = bytearray()
    while len(data) < size and (piece := end.recv(size - len(data))):
        data += piece
    return bytes(data)


def ending(end: Any) -> str:
    """Return the end of a stream: ``end of file`` or ``reset``. What comes before is dropped."""
    try:
        receive_all(end)
    except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
        return "reset"
    return "end of file"


def sha256_of(end: Any) -> str:
    """The hash of everything up to the end of file."""
    seen = hashlib.sha256()
    while data := end.recv(1 << 18):
        seen.update(data)
    return seen.hexdigest()


def flood(end: Any, blocks: int = 128) -> None:
    """Send more than every kernel buffer on the way can hold; raises as soon as the connection is gone."""
    for _ in range(blocks):
        end.sendall(BLOCK)


def fate_of_client(address: Any, text: bytes = b"") -> str:
    """Return the end of a new client that says ``text``; a reset may come before its connect is over."""
    try:
        with socket.create_connection(address, timeout=WAIT) as client:
            client.sendall(text)
            return ending(client)
    except ConnectionError:
        return "reset"


def is_gone(address: tuple[str, int]) -> bool:
    """Return true if no program listens there; asked without connecting, which would be one more client."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
        return True


def send_all(end: Any, data: bytes) -> None:
    """Send everything; each megabyte of it has the socket's timeout, which ``sendall`` has for everything at once."""
    with memoryview(data) as view:
        for start in range(0, len(data), 1 << 20):
            end.sendall(view[start : start + (1 << 20)])


def send_and_end(end: Any, data: bytes) -> None:
    """Send everything, then end this direction alone."""
    send_all(end, data)
    end.shutdown(socket.SHUT_WR)


def exchange(client: Any, far: Any, text: bytes = b"ping") -> None:
    """Prove that both directions work."""
    client.sendall(text)
    assert receive_exactly(far, len(text)) == text
    far.sendall(text[::-1])
    assert receive_exactly(client, len(text)) == text[::-1]


class Thread(threading.Thread):
    """A thread that starts at once and hands its result, or its exception, to :meth:`result`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True, name=f"test {function.__name__}")
        self._work = (function, args)
        self._outcome: tuple[Any, BaseException | None] = (None, None)
        self.start()

    def run(self) -> None:
        function, args = self._work
        try:
            self._outcome = (function(*args), None)
        except BaseException as error:  # noqa: BLE001  (raised again in result)
            self._outcome = (None, error)

    def result(self, timeout: float = WAIT) -> Any:
        """Return the result of the function; raises what it raised, or fails if it still runs."""
        self.join(timeout)
        assert not self.is_alive(), f"{self.name} still runs after {timeout} s"
        value, error = self._outcome
        if error is not None:
            raise error
        return value


class Server:
    """A real server: ``handler(socket)`` runs on a thread for each connection, which is closed after it."""

    def __init__(self, handler: Callable[[socket.socket], object], address: Any = ("127.0.0.1", 0)) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._handler = handler
        self._listener = socket.socket(family)
        self._listener.bind(address)
        self._listener.listen(4096)
        self.address: Any = self._listener.getsockname()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="test server", daemon=True)
        self._thread.start()

    def factory(self) -> Any:
        """Ours that leads here."""
        return relay.unix(self.address) if isinstance(self.address, str) else relay.tcp(*self.address)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._handle, args=(connection,), name="test handler", daemon=True)
            with self._lock:
                self._connections[thread] = connection
            thread.start()

    def _handle(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(WAIT)
            self._handler(connection)
        with self._lock:
            self._connections.pop(threading.current_thread(), None)

    def close(self) -> None:
        """Stop listening, end every connection and wait for the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join(WAIT)
        self._listener.close()
        with self._lock:
            left = dict(self._connections)
        for connection in left.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in left:
            thread.join(WAIT)


def echo(connection: socket.socket) -> None:
    """Send back what comes, up to the end of file."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def page(connection: socket.socket) -> None:
    """Answer a request of HTTP: ``BLOCK`` is the page."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + BLOCK)


class Bare:
    """An object that has ``recv``, ``sendall`` and ``close`` only."""

    def __init__(self, near: socket.socket) -> None:
        self._near = near
        self.recv, self.sendall = near.recv, near.sendall

    def close(self) -> None:
        """So that a ``recv`` in another thread returns."""
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)
        self._near.close()


class TLSEnd:
    """A TLS peer that can end one direction alone, which :class:`ssl.SSLSocket` cannot; blocking, one thread."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, server_side: bool = False) -> None:
        self.socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server_side else "localhost"
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=name)
        self._step(self._tls.do_handshake)

    def _step(self, step: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                result = step(*args)
            except ssl.SSLWantReadError:
                self._flush()
                data = self.socket.recv(1 << 16)
                self._incoming.write(data) if data else self._incoming.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())

    def sendall(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 14):
            self._step(self._tls.write, data[start : start + (1 << 14)])

    def encrypt(self, data: bytes) -> bytes:
        """Return the records of these bytes, which the caller sends next."""
        for start in range(0, len(data), 1 << 14):
            self._tls.write(data[start : start + (1 << 14)])
        return self._outgoing.read()

    def recv(self, size: int) -> bytes:
        try:
            return bytes(self._step(self._tls.read, size))
        except ssl.SSLZeroReturnError:
            return b""

    def shutdown(self, how: int) -> None:
        """Send close_notify; what the peer still sends can be read."""
        assert how == socket.SHUT_WR
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._flush()

    def settimeout(self, seconds: float | None) -> None:
        self.socket.settimeout(seconds)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Close the connection under it; without :meth:`shutdown` before it, that truncates the stream."""
        self.socket.close()


class Relayed:
    """A tunnel between clients and a target that the test plays itself.

    ``way_in`` and ``way_out`` are ``tcp``, ``unix`` or ``tls``; ``factory`` replaces the way out; what else is given
    goes to the tunnel.
    """

    def __init__(
        self,
        factory: Any,
        folder: Path,
        certificates: Certificates | None,
        *,
        way_in: str = "tcp",
        way_out: str = "tcp",
        **limits: Any,
    ) -> None:
        self._certificates = certificates
        self._way_in, self._way_out = way_in, way_out
        with contextlib.ExitStack() as stack:
            self.target = stack.enter_context(_listening(way_out, folder / "target"))
            self.target.settimeout(WAIT)
            receive = stack.enter_context(self._receive(folder / "listen"))
            self.tunnel = stack.enter_context(relay.Tunnel(receive, factory or self._factory(), **limits))
            self._open = stack.pop_all()

    def _receive(self, path: Path) -> Any:
        if self._way_in == "tls":
            assert self._certificates is not None
            return relay.listen(f"tls://127.0.0.1:0?cert={self._certificates.cert}&key={self._certificates.key}")
        return relay.listen(f"unix://{path}" if self._way_in == "unix" else ":0")

    def _factory(self) -> Any:
        address = self.target.getsockname()
        if self._way_out == "tls":
            assert self._certificates is not None
            return relay.tls("localhost", address[1], ca=str(self._certificates.ca))
        return relay.unix(address) if self._way_out == "unix" else relay.tcp(*address)

    def client(self) -> Any:
        """A new client of the tunnel."""
        address = self.tunnel.address
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        made = self._keep(socket.socket(family))
        made.connect(address)
        if self._way_in == "tls":
            assert self._certificates is not None
            return TLSEnd(made, self._certificates.client())
        return made

    def accept(self) -> Any:
        """Return the next stream that the target accepts."""
        made = self._keep(self.target.accept()[0])
        if self._way_out == "tls":
            assert self._certificates is not None
            return TLSEnd(made, self._certificates.server(), server_side=True)
        return made

    def connect(self) -> tuple[Any, Any]:
        """A new client, and the other end of its way."""
        return self.client(), self.accept()

    def _keep(self, made: socket.socket) -> socket.socket:
        self._open.enter_context(made)
        made.settimeout(WAIT)
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def close(self) -> None:
        """Close every end that was made here, and the tunnel."""
        self._open.close()


def _listening(way: str, path: Path) -> socket.socket:
    if way == "unix":
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(path))
        made.listen(128)
        return made
    return socket.create_server(("127.0.0.1", 0), backlog=4096)


@contextlib.contextmanager
def black_hole(port: int = 0) -> Iterator[Any]:
    """A TCP listener that swallows SYNs, for its backlog is full; each ``accept`` lets a next one through."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
        listening.settimeout(WAIT)
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(listening.getsockname())
            except TimeoutError:
                break
        yield listening


@contextlib.contextmanager
def refusing() -> Iterator[tuple[str, int]]:
    """An address that refuses connections, and that no program can take meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that only a program gets which asks for it by its number, with SO_REUSEADDR."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def steady(value: object) -> str:
    """Name a value in the name of a test, which must be the same in every process."""
    return repr(value).partition(" at 0x")[0]
