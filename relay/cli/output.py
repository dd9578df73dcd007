"""What the commands print: the address, log lines, the live table, one line for an error."""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..addresses.printable import printable
from ..errors import can_retry

if TYPE_CHECKING:
    from ..engine.records import ConnectionRecord, Stats

__all__ = [
    "carriers_quiet",
    "closing",
    "complain",
    "configuration_read",
    "drop_stdout",
    "failures_reported",
    "logged_to_stderr",
    "reason",
    "say",
    "set_format",
    "show_help",
    "size",
    "status_of",
    "summary",
    "total",
]

MOST_LINES = 10_000  # that wait for a reader of standard error
PATIENCE = 2.0  # seconds that it has for the last ones

_format = "text"


def say(line: str) -> None:
    """Print a line on standard output at once; it is no failure if nobody reads there (``| head``)."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        drop_stdout()


def drop_stdout() -> None:
    """Nobody reads standard output any more: what is left in its buffer must not fail when the interpreter ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def set_format(log_format: str) -> None:
    """Set how :func:`complain` writes: ``text``, or ``json`` like the log."""
    global _format  # noqa: PLW0603  (a failure may come before there is a log)
    _format = log_format


def complain(problem: str, error: BaseException | None = None) -> None:
    """Print one line about a failure on standard error.

    :param problem: what has failed.
    :param error: whose traceback is shown before it; ``None`` for none.
    """
    text = printable(" ".join(problem.split()))
    if _format == "json":
        cause = (type(error), error, error.__traceback__) if error is not None else None
        note(_JSON().format(logging.LogRecord("relay.cli", logging.ERROR, __file__, 0, text, None, cause)))
        return
    if error is not None:
        note("\n".join(map(printable, "".join(traceback.format_exception(error)).splitlines())))
    note(f"relay: {text}")


def note(line: str) -> None:
    """Print a line on standard error; where that is closed, nowhere."""
    if sys.stderr is None:
        return  # print() would take standard output
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass


def show_help(context: click.Context) -> NoReturn:
    """Print the help of a command that needs another word, and end with status 2.

    :raises click.exceptions.Exit: with status 2, as for every command line that is not complete.
    """
    print(context.get_help())
    raise click.exceptions.Exit(2)


@contextmanager
def failures_reported(*, debug: bool) -> Iterator[None]:
    """End the command by one line on standard error: status 2 for a wrong value, 1 for what the system said.

    :param debug: whether a traceback is printed before it.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        complain(reason(error), error if debug else None)
        raise click.exceptions.Exit(status_of(error)) from error


@contextmanager
def configuration_read() -> Iterator[None]:
    """Take a file that cannot be read, or the like, for a mistake of the user's, before anything is opened.

    :raises ValueError: for an error that a retry cannot fix.
    """
    try:
        yield
    except OSError as error:
        raise error if can_retry(error) else ValueError(reason(error)) from error


def status_of(error: Exception) -> int:
    """The exit status that stands for an error.

    :returns: 2 if the user has to change the command line, a file or the environment; 1 for a failure at run time.
    """
    return 2 if isinstance(error, (ValueError, TypeError)) else 1


def reason(error: Exception) -> str:
    """An exception as one sentence, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextmanager
def logged_to_stderr(log_format: str, *, verbose: bool, debug: bool, named: bool = False) -> Iterator[None]:
    """Send the ``relay`` log to standard error.

    :param log_format: ``text`` or ``json``.
    :param verbose: whether there is a line for each finished connection.
    :param debug: whether there is everything, with tracebacks.
    :param named: whether such a line begins with the name of the tunnel.
    """
    handler = _Lines(_JSON() if log_format == "json" else _Text(debug=debug, named=named))
    logger = logging.getLogger("relay")
    before = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    logging.getLogger("relay.cli").setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])
        handler.close()


@contextmanager
def carriers_quiet(level: int, names: Collection[str] | None = None) -> Iterator[list[logging.LogRecord]]:
    """Leave out what the connections under the streams say of their failures, for the command is to say it itself.

    :param level: from which level on.
    :param names: of the carriers; ``None`` for all.
    :returns: what was left out.
    """
    left_out: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.module != "carrier" or record.levelno < level:
            return True
        if names is not None and not (isinstance(record.args, tuple) and str(record.args[0]) in names):
            return True
        left_out.append(record)
        return False

    logger = logging.getLogger("relay")
    logger.addFilter(keep)
    try:
        yield left_out
    finally:
        logger.removeFilter(keep)


class _Lines(logging.Handler):
    """Writes lines on a thread of its own: a reader of standard error that stops must not stop the relay.

    Beyond a limit of lines that wait, further ones are dropped and counted.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._dropped = 0
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="relay-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record in the queue, or count it."""
        if self._records.qsize() >= MOST_LINES:
            self._dropped += 1
            return
        if self._dropped:
            text = f"{self._dropped} lines dropped: standard error did not take them in time"
            self._records.put(logging.LogRecord("relay", logging.WARNING, __file__, 0, text, None, None))
            self._dropped = 0
        self._records.put(record)

    def close(self) -> None:
        """Wait until all is written, but not long for a reader that has stopped."""
        self._records.put(None)
        self._thread.join(PATIENCE)
        super().close()

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            try:
                line = self.format(record)
            except (TypeError, ValueError):
                self.handleError(record)
            else:
                _write_line(line)


def _write_line(line: str) -> None:
    """Write to what ``sys.stderr`` is at the time: the live table takes its place, to stay below the lines.

    To the system's own not through its buffer, whose lock the end of the interpreter would wait for.
    """
    if sys.stderr is not sys.__stderr__:
        note(line)
    elif sys.stderr is not None:
        data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        try:
            while data:
                data = data[os.write(sys.stderr.fileno(), data) :]
        except OSError:
            pass  # nobody reads there any more


class _Text(logging.Formatter):
    """Lines for people; tracebacks only for those who debug."""

    def __init__(self, *, debug: bool, named: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._debug = debug
        self._named = named

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if not self._debug and (connection := getattr(record, "connection", None)) is not None:
            message = (f"{message.partition(':')[0]}: " if self._named else "") + _finished(connection)
        plain = {**record.__dict__, "msg": " ".join(message.splitlines()), "args": None}
        if not self._debug:
            plain |= {"exc_info": None, "exc_text": None, "stack_info": None}
        # Whatever a peer may have brought into a message: nothing that a terminal acts upon reaches it.
        return "\n".join(map(printable, super().format(logging.makeLogRecord(plain)).splitlines()))


def _finished(record: ConnectionRecord) -> str:
    from ..eventloop.sockets import format_address

    return (
        f"{format_address(record.peer) or 'a local client'} → {record.target or 'nowhere'}: "
        f"{record.reason} after {record.age:.3f} s, "
        f"{size(record.received)} received, {size(record.sent)} sent, {record.engine}"
    )


class _JSON(logging.Formatter):
    """One JSON object a line; a finished connection's record is under ``connection``, the sums under ``stats``."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("connection", "stats"):
            if (value := getattr(record, name, None)) is not None:
                fields[name] = value._asdict()
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def size(count: float) -> str:
    """Bytes, in powers of a thousand, three digits at most: ``0 B``, ``999 B``, ``1.2 kB``, ``120 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"


def summary(stats: Stats) -> str:
    """What a tunnel has done, as one line."""
    failed = ", ".join(f"{count} {reason}" for reason, count in sorted(stats.failed.items()))
    return (
        f"{stats.accepted} connection{'' if stats.accepted == 1 else 's'}, {size(stats.received)} received, "
        f"{size(stats.sent)} sent, {sum(stats.failed.values())} failed{failed and f' ({failed})'}"
    )


def closing(live: int, seconds: float) -> str:
    """What is said when the first signal has come.

    :param live: connections that are live.
    :param seconds: that these have to finish.
    """
    if not live or not seconds:
        return "closing"
    return f"closing; {live} live, {seconds:g} s to finish; again to end at once"


def total(all_stats: Iterable[Stats]) -> Stats:
    """What several tunnels have done together."""
    from ..engine.records import Stats

    failed: Counter[str] = Counter()
    accepted = active = received = sent = 0
    for stats in all_stats:
        accepted, active = accepted + stats.accepted, active + stats.active
        received, sent = received + stats.received, sent + stats.sent
        failed.update(stats.failed)
    return Stats(accepted, active, received, sent, dict(failed))
