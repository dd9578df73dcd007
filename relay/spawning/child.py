"""The child of a program that relays: a worker for many tunnels, or for one, which ends with the program.

The program does not call this: :mod:`relay.spawning.parent` starts an interpreter that calls :func:`main`.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from ..streams import exit_drain
from ..transports.ssh.deferred import defer_invoke
from .wire import Message, encode, from_log_record, to_socket
from .worker import Worker, add_secrets

_LAST = 3  # seconds to end in, before the kernel ends the process
_DELIVERY = 2.0  # of them, for what ended connections have sent
_LOG_LIMIT = 10_000  # records held while the program does not read them
_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGTERM, signal.SIGINT)


def main(control: socket.socket, descriptors: Sequence[int], request: Message) -> None:
    """Run the tunnels that the program opens until it closes ``control`` or dies. Does not return, but may raise.

    :param control: one end of a socketpair; the program has the other.
    :param descriptors: the socket for what the program did not ask for: log records, what becomes of a tunnel.
    :param request: ``level`` (of the log), ``program`` (the number of its process), ``secrets`` (environment variables
        that no other program gets) and ``is_single``: whether there is one tunnel. The process ends with that, and on a
        signal. Else signals end it only after the program has died: a service manager sends its SIGTERM to all
        processes of a service, and the program lets connections finish then.
    """
    defer_invoke()
    _leave_standard_input()
    program, is_single = request["program"], request["is_single"]
    close_control = functools.partial(_close_control, control)
    # Before a tunnel is made, which may take minutes at I2P: a program that dies meanwhile leaves no child behind.
    # A process whose parent has died gets another one at once.
    _set_parent_death_signal(program, close_control, lambda: is_single or os.getppid() != program)
    add_secrets(request["secrets"])
    (events,) = map(to_socket, descriptors)
    log = LogForwarder(events)  # two sockets: a program that takes no record gets answers
    # The root logger, because paramiko and other libraries log under names of their own.
    logging.getLogger().addHandler(log)
    logging.getLogger("relay").setLevel(request["level"])
    worker = Worker(control, log.report, log.offer, close_control if is_single else lambda: None)
    try:
        worker.serve(f"relay {'child' if is_single else 'worker'} {os.getpid()}")
    except OSError:
        pass  # the program is gone
    # From here on the kernel ends the process if anything hangs. The program may be gone, and could not do it.
    signal.alarm(_LAST)
    worker.close()
    # The far ends take what was sent on connections that have ended.
    exit_drain.limit(_DELIVERY)
    exit_drain.drain()
    log.finish()
    # Not through the interpreter's own end, which might wait for long, and for what does not matter here.
    os._exit(0)


def _leave_standard_input() -> None:
    """The control socket came as standard input; nothing that is started here may read from it."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _set_parent_death_signal(program: int, end: Callable[[], object], is_meant: Callable[[], bool]) -> None:
    """Request a signal from the kernel for the death of the program, and end on a signal.

    :param program: its process ID. If it died before the request, no signal comes: compare the parent afterwards.
    :param end: called on a signal.
    :param is_meant: returns whether a signal is to end the process.

    The end of ``control`` alone is not enough: a process that the program forked may hold its other end.
    """
    # An ignored signal stays ignored over an exec; the alarm must end the process whatever the program ignores.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def handle(number: int, frame: object) -> None:
        if is_meant():
            for one in _ENDING:  # the kernel says it for each thread of the program that dies
                signal.signal(one, signal.SIG_IGN)
            signal.alarm(_LAST)
            end()

    for number in _ENDING:
        signal.signal(number, handle)
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


def _pass_on(hears: int) -> None:
    """Wake the main thread, which acts upon signals, for the kernel may hand one to any thread."""
    os.read(hears, 1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _close_control(control: socket.socket) -> None:
    """End the reads from ``control``."""
    try:
        control.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # it has come already


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

    def finish(self) -> None:
        """Send what is queued, and wait until the program has taken it or is gone."""
        logging.getLogger().removeHandler(self)
        self._report_dropped()
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
