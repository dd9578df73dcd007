"""Output of the commands: lines on standard output, the log and errors on standard error."""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..addresses.printable import one_line, printable
from ..daemon.failures import ProblemsError, describe_error, status_of

if TYPE_CHECKING:
    from ..engine.records import ConnectionRecord, Stats

LONGEST_LINE = 4000  # characters; peers choose a part of some lines
MOST_LINES = 10_000  # queued for standard error
PATIENCE = 2.0  # seconds to write the last of them at the end

_format = "text"


def print_line(line: str) -> None:
    """Print a line on standard output at once. A closed pipe (``| head``) is no failure."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        drop_stdout()


def drop_stdout() -> None:
    """Replace a standard output that has no reader, so that flushing its buffer at exit does not fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def set_format(log_format: str) -> None:
    """Set how :func:`print_error` writes: ``text``, or ``json`` like the log."""
    global _format  # noqa: PLW0603  (a failure may come before there is a log)
    _format = log_format


def print_warning(text: str) -> None:
    """Print one line on standard error before there is a log."""
    text = one_line(text, LONGEST_LINE)
    now = datetime.now().astimezone()
    print_notice(_as_json(logging.WARNING, text) if _format == "json" else f"{now:%H:%M:%S} WARNING {text}")


def _as_json(level: int, text: str, cause: Any = None) -> str:
    return JSONFormatter().format(logging.LogRecord("relay.cli", level, __file__, 0, text, None, cause))


def print_error(problem: str, error: BaseException | None = None) -> None:
    """Print one line about a failure on standard error.

    :param problem: the line.
    :param error: printed with its traceback before that; ``None`` for no traceback.
    """
    text = one_line(problem, LONGEST_LINE)
    if _format == "json":
        cause = (type(error), error, error.__traceback__) if error is not None else None
        print_notice(_as_json(logging.ERROR, text, cause))
        return
    if error is not None:
        print_notice("\n".join(map(printable, "".join(traceback.format_exception(error)).splitlines())))
    print_notice(f"relay: {text}")


def print_notice(line: str) -> None:
    """Print a line on standard error, if that is open, after the lines of the log that came before."""
    for handler in logging.getLogger("relay").handlers:
        handler.flush()
    _print(line)


def _print(line: str) -> None:
    if sys.stderr is None:
        return  # print() would write to standard output
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
    """End the command with one line on standard error: status 2 for a wrong value, 1 for an error of the system.

    :param debug: whether a traceback is printed before it.
    """
    try:
        yield
    except ProblemsError as error:
        for line in error.lines:
            print_error(line)
        raise click.exceptions.Exit(error.status) from error
    except (ValueError, TypeError, OSError) as error:
        print_error(describe_error(error), error if debug else None)
        raise click.exceptions.Exit(status_of(error)) from error


@contextmanager
def logged_to_stderr(log_format: str, *, verbose: bool, debug: bool, named: bool = False) -> Iterator[None]:
    """Send the ``relay`` log to standard error.

    :param log_format: ``text`` or ``json``.
    :param verbose: whether each finished connection is logged.
    :param debug: whether debug messages and tracebacks are logged.
    :param named: whether the line of a finished connection begins with the name of the tunnel.
    """
    handler = _Lines(JSONFormatter() if log_format == "json" else _Text(debug=debug, named=named))
    logger = logging.getLogger("relay")
    before = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    log_from(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])
        handler.close()


def log_from(level: int) -> None:
    """Log from a level on. With warnings there is also what the command itself does, at the level info.

    :param level: of :mod:`logging`.
    """
    logging.getLogger("relay").setLevel(level)
    logging.getLogger("relay.cli").setLevel(logging.INFO if level == logging.WARNING else level)


@contextmanager
def log_stopped() -> Iterator[None]:
    """End the thread of the log for a while; what is logged meanwhile is written afterwards."""
    handlers = [one for one in logging.getLogger("relay").handlers if isinstance(one, _Lines)]
    for handler in handlers:
        handler.stop()
    try:
        yield
    finally:
        for handler in handlers:
            handler.start()


class _Lines(logging.Handler):
    """Handler that writes on its own thread, so that a reader of standard error that stops does not stop the relay.

    Lines beyond the limit of the queue are dropped and counted.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._dropped = 0
        self._records: queue.SimpleQueue[logging.LogRecord | threading.Event | None] = queue.SimpleQueue()
        self.start()

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._write, name="relay-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait until the queue is written, at most :data:`PATIENCE` seconds, and end the thread."""
        self._records.put(None)
        self._thread.join(PATIENCE)

    def flush(self) -> None:
        """Wait until the lines that are queued now are written, at most :data:`PATIENCE` seconds."""
        if self._thread.is_alive():  # not after the end, nor in a forked child
            written = threading.Event()
            self._records.put(written)
            written.wait(PATIENCE)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record, or count it as dropped."""
        if self._records.qsize() >= MOST_LINES:
            self._dropped += 1
            return
        if self._dropped:
            text = f"{self._dropped} lines dropped: standard error did not take them in time"
            self._records.put(logging.LogRecord("relay", logging.WARNING, __file__, 0, text, None, None))
            self._dropped = 0
        self._records.put(record)

    def close(self) -> None:
        """Stop the thread, and close the handler."""
        self.stop()
        super().close()

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            if isinstance(record, threading.Event):
                record.set()
                continue
            try:
                line = self.format(record)
            except (TypeError, ValueError):
                self.handleError(record)
            else:
                _write_line(line)


def _write_line(line: str) -> None:
    """Write to the current ``sys.stderr``: the live table replaces it, to stay below the lines.

    The original one is written without its buffer, because the interpreter waits for the buffer's lock at exit.
    """
    if sys.stderr is not sys.__stderr__:
        _print(line)
    elif sys.stderr is not None:
        data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        try:
            while data:
                data = data[os.write(sys.stderr.fileno(), data) :]
        except OSError:
            pass  # standard error has no reader any more


class _Text(logging.Formatter):
    """Formatter for people: one line for each record, tracebacks only at debug level."""

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
        # A message may contain text of a peer: no control character reaches the terminal, and no line is endless.
        lines = super().format(logging.makeLogRecord(plain)).splitlines()
        return "\n".join(printable(line, LONGEST_LINE) for line in lines)


def _finished(record: ConnectionRecord) -> str:
    return (
        f"{record.client} → {record.target or 'nowhere'}: "
        f"{record.reason}{f' ({record.rule})' if record.rule else ''} after {record.age:.3f} s, "
        f"{size(record.received)} received, {size(record.sent)} sent, {record.engine}{', warm' if record.warm else ''}"
    )


class JSONFormatter(logging.Formatter):
    """One JSON object a line; a finished connection's record is under ``connection``, the sums under ``stats``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("connection", "stats"):
            if (value := getattr(record, name, None)) is not None:
                fields[name] = value._asdict()
        if (connection := fields.get("connection")) is not None and connection["identity"] is not None:
            connection["identity"] = connection["identity"].as_fields()
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def size(count: float) -> str:
    """Format a number of bytes with at most three digits: ``0 B``, ``999 B``, ``1.2 kB``, ``120 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"


def summary(stats: Stats) -> str:
    """Format the statistics of a tunnel as one line."""
    failed = ", ".join(f"{count} {reason}" for reason, count in sorted(stats.failed.items()))
    return (
        f"{stats.accepted} connection{'' if stats.accepted == 1 else 's'}, {size(stats.received)} received, "
        f"{size(stats.sent)} sent, {sum(stats.failed.values())} failed{failed and f' ({failed})'}"
    )
