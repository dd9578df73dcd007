"""The child of :func:`relay.spawn`: one tunnel, or a worker for many, which ends with the program that started it.

Nothing here is called by the program itself: :mod:`relay.spawning.spawn` starts an interpreter that calls :func:`main`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..api import urls
from ..api.local import listen_privately
from ..engine.tunnel import Tunnel
from ..streams import exit_drain
from ..transports.ssh.deferred import defer_invoke
from .ephemeral import EphemeralTunnel
from .wire import Channel, Message, answer_all, encode, from_error, from_log_record, to_socket
from .worker import Worker, add_secrets

_LAST = 3  # seconds to end in, before the kernel ends the process
_DELIVERY = 2.0  # of them, for what ended connections have sent
_LOG_LIMIT = 10_000  # records held while the program does not read them
_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGTERM, signal.SIGINT)


def main(control: socket.socket, descriptors: Sequence[int], request: Message) -> None:
    """Run a tunnel until the program closes it, closes ``control`` or dies. Does not return, but may raise.

    :param control: one end of a socketpair; the program has the other.
    :param descriptors: the socket for what the program did not ask for (log records, the last figures), and perhaps
        the socket to listen with.
    :param request: ``listen`` (an address; ``None`` with a socket), ``target``, ``via``, ``level`` (of the log),
        ``program`` (the number of its process), ``secrets`` (environment variables that no other program gets) and
        ``options`` (of the :class:`~relay.Tunnel`). Perhaps ``ready``:
        seconds in which the hops must be up before it listens. Perhaps ``unused``: for an
        :class:`~relay.spawning.ephemeral.EphemeralTunnel`, which listens at a private Unix socket if there is nothing
        else. A request with ``worker`` has no tunnel: the program opens them later, see
        :class:`~relay.spawning.worker.Worker`.
    """
    defer_invoke()
    _leave_standard_input()
    # Before the tunnel is made, which may take minutes at I2P: a program that dies meanwhile leaves no child behind.
    _set_parent_death_signal(request["program"])
    add_secrets(request["secrets"])
    events, *receive = map(to_socket, descriptors)
    channel, log = Channel(control), LogForwarder(events)  # two sockets: a program that takes no record gets answers
    # The root logger, because paramiko and other libraries log under names of their own.
    logging.getLogger().addHandler(log)
    logging.getLogger("relay").setLevel(request["level"])
    if request.get("worker"):
        _work(control, log, request["program"])
    place = contextlib.ExitStack()
    try:
        tunnel = _tunnel(request, receive[0] if receive else None, place)
    except (OSError, ValueError, TypeError) as error:
        # The program raises the error: the child ends with status 0, as this is no crash.
        channel.send({"error": from_error(error)})
        os._exit(0)
    except SystemExit:  # a signal came meanwhile
        place.close()
        os._exit(0)
    # From here on a signal ends the reads below, so that the tunnel closes in order; before, it ended the process at
    # once.
    _on_a_signal(functools.partial(_close_control, control))
    # The tunnel may end by itself, for want of use; the main thread then waits for a request that may never come.
    threading.Thread(target=_end_with_the_tunnel, args=(tunnel, control), name="relay-end", daemon=True).start()
    try:
        channel.send({"address": tunnel.address, "name": tunnel.name})
        _serve(tunnel, channel)
    except OSError:
        pass  # the program is gone
    # From here on the kernel ends the process if anything hangs. The program may be gone, and could not do it.
    signal.alarm(_LAST)
    tunnel.close()
    place.close()
    # After the close, so that every connection has its end in the figures.
    last = {name: call() for name, call in _questions(tunnel).items()}
    _deliver()
    log.finish({"last": last, "expired": getattr(tunnel, "expired", False)})
    # Not through the interpreter's own end, which might wait for long, and for what does not matter here.
    os._exit(0)


def _work(control: socket.socket, log: LogForwarder, program: int) -> NoReturn:
    """Run the tunnels that the program opens. Signals end the process only after the program has died.

    A service manager sends its SIGTERM to all processes of a service, and the program lets connections finish then.
    """

    def end() -> None:
        # A process whose parent has died gets another one at once.
        if os.getppid() != program:
            signal.alarm(_LAST)
            _close_control(control)

    worker = Worker(control, log.report, log.offer)
    _on_a_signal(end, once=False)
    try:
        worker.serve()
    except OSError:
        pass  # the program is gone
    signal.alarm(_LAST)
    worker.close()
    _deliver()
    log.finish({"over": True})
    os._exit(0)


def _deliver() -> None:
    """Wait until the far ends have taken what was sent on connections that have ended."""
    exit_drain.limit(_DELIVERY)
    exit_drain.drain()


def _tunnel(request: Message, receive: Any, place: contextlib.ExitStack) -> Tunnel:
    """The tunnel that the program asks for.

    :param request: see :func:`main`.
    :param receive: a socket to listen with; ``None`` if there is an address.
    :param place: receives the callbacks that remove files when the tunnel has ended.
    """
    with contextlib.ExitStack() as undo:
        if receive is not None:
            undo.callback(receive.close)
        make_send: Any = urls.target(request["target"], via=request["via"])
        if request.get("ready"):
            undo.callback(make_send.close)
            # Before it listens: a client that connects finds hops that are up.
            make_send.ready(request["ready"])
        if receive is None:
            # Also undone when the tunnel cannot be made: its directory must not stay.
            undo.push(place)
            receive = _listening(request["listen"], place)
            undo.callback(receive.close)
        tunnel = _made(receive, make_send, request)
        undo.pop_all()
    return tunnel


def _listening(address: str | None, place: contextlib.ExitStack) -> Any:
    return place.enter_context(listen_privately()) if address is None else urls.listen(address)


def _made(receive: Any, make_send: Any, request: Message) -> Tunnel:
    # The process ID distinguishes a tunnel without a name: its number is that of the first tunnel in each child.
    options = {**request["options"], "name": request["options"]["name"] or f"relay child {os.getpid()}"}
    if "unused" in request:
        return EphemeralTunnel(receive, make_send, unused=request["unused"], **options)
    return Tunnel(receive, make_send, **options)


def _leave_standard_input() -> None:
    """The control socket came as standard input; nothing that is started here may read from it."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _set_parent_death_signal(program: int) -> None:
    """Request a signal from the kernel for the death of the program, and end on a signal.

    :param program: its process ID. If it died before the request, no signal comes: compare the parent afterwards.

    The end of ``control`` alone is not enough: a process that the program forked may hold its other end.
    """
    # An ignored signal stays ignored over an exec; the alarm must end the process whatever the program ignores.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _on_a_signal(sys.exit)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the thread that started this one may have blocked them
    # Python runs a handler in the main thread only, between two of its instructions. While it waits in a call to the
    # kernel, a signal that another thread got does not interrupt that wait; a byte in this pipe makes a thread pass it
    # on.
    hears, tells = os.pipe()
    # Python refuses a blocking descriptor here, because the write happens inside the signal handler.
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    threading.Thread(target=_pass_on, args=(hears,), name="relay-signal", daemon=True).start()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != program:
            os._exit(0)


def _on_a_signal(end: Callable[[], object], *, once: bool = True) -> None:
    def handle(number: int, frame: object) -> None:
        if once:
            for one in _ENDING:  # the kernel says it for each thread of the program that dies
                signal.signal(one, signal.SIG_IGN)
            signal.alarm(_LAST)
        end()

    for number in _ENDING:
        signal.signal(number, handle)


def _pass_on(hears: int) -> None:
    """Wake the main thread, which acts upon signals, for the kernel may hand one to any thread."""
    os.read(hears, 1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _end_with_the_tunnel(tunnel: Tunnel, control: socket.socket) -> None:
    tunnel.join()
    _close_control(control)


def _close_control(control: socket.socket) -> None:
    """End the reads from ``control``."""
    try:
        control.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # it has come already


def _questions(tunnel: Tunnel) -> dict[str, Callable[[], Any]]:
    """The questions about a tunnel that the child answers, also after its end."""
    return {
        "connections": tunnel.connections,
        "recent": tunnel.recent,
        "stats": tunnel.stats,
        "metrics": tunnel.metrics,
    }


def _serve(tunnel: Tunnel, channel: Channel) -> None:
    """Answer the requests of the program until it closes ``control``."""

    def drain(seconds: float) -> None:
        # A drain takes long, and the program asks for figures meanwhile: this thread must go on answering.
        threading.Thread(target=tunnel.close, args=(seconds,), name="relay-drain", daemon=True).start()

    calls: dict[str, Callable[..., Any]] = {
        "pause": tunnel.pause,
        "resume": tunnel.resume,
        "drain": drain,
        "kill": tunnel.kill,
        "secrets": add_secrets,
    }
    calls |= _questions(tunnel)
    if isinstance(tunnel, EphemeralTunnel):
        calls["wait_for_client"] = tunnel.wait_for_client
    answer_all(channel, lambda request: calls[request["call"]](*request["arguments"]))


class LogForwarder(logging.Handler):
    """Sends log records to the program from a thread of its own, so that logging never waits for the program.

    :param sock: for the records. Beyond a limit of unread records, further ones are dropped and counted.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._socket = sock
        self._dropped = 0
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="relay-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put ``record`` in the queue, written out, or count it."""
        if self._lines.qsize() >= _LOG_LIMIT:
            self._dropped += 1
            return
        self._report_dropped()
        try:
            self._put(record)
        except (TypeError, ValueError):
            self.handleError(record)

    def report(self, message: Message) -> None:
        """Send a message that is no log record, after those that are queued. Never waits."""
        self._lines.put(encode(message))

    def offer(self, message: Message) -> None:
        """Send a message, or count it like a log record if the program does not take them in time."""
        if self._lines.qsize() >= _LOG_LIMIT:
            self._dropped += 1
        else:
            self.report(message)

    def finish(self, message: Message) -> None:
        """Send what is queued and then ``message``, and wait until the program has taken it or is gone."""
        logging.getLogger().removeHandler(self)
        self._report_dropped()
        self._lines.put(encode(message))
        self._lines.put(None)
        self._thread.join()

    def _report_dropped(self) -> None:
        if self._dropped:
            text = f"{self._dropped} log records dropped: the program did not take them in time"
            self._put(logging.LogRecord("relay", logging.WARNING, __file__, 0, text, None, None))
            self._dropped = 0

    def _put(self, record: logging.LogRecord) -> None:
        self._lines.put(encode({"log": from_log_record(record)}))

    def _send(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._socket.sendall(line)
        except OSError:
            pass  # the program is gone, or takes no more of them
