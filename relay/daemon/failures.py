"""The meaning of failures: their sentence, the exit status that stands for them, and whether a retry may help."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from ..errors import can_retry


class NotFoundError(LookupError):
    """A tunnel or a connection that does not exist."""


class ConflictError(RuntimeError):
    """An action that the state does not allow: a tunnel is not open, or the program ends or is being replaced."""


class ProblemsError(ValueError):
    """Problems of a file, all at once.

    :param lines: a line for each.
    :param status: the exit status that stands for them: 2 if the user has to change the file, else 1.
    """

    def __init__(self, lines: Sequence[str], status: int = 2) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)
        self.status = status


class ReloadError(ProblemsError):
    """A reload that has changed nothing, and why."""


@contextmanager
def configuration_read() -> Iterator[None]:
    """Treat an unreadable file and the like as a mistake of the user, before anything is opened.

    :raises ValueError: for an error that a retry cannot fix.
    """
    try:
        yield
    except OSError as error:
        raise error if can_retry(error) else ValueError(describe_error(error)) from error


def status_of(error: Exception) -> int:
    """Return the exit status for an error.

    :returns: 2 if the user has to change the command line, a file or the environment; 1 for a failure at run time.
    """
    return 2 if isinstance(error, (ValueError, TypeError)) else 1


def describe_error(error: Exception) -> str:
    """Return an exception as one sentence, without its error number."""
    if isinstance(error, OSError) and error.strerror:
        is_of_module = str(error.filename).endswith((".py", ".pyc"))  # that there was no descriptor for
        return f"{error.filename}: {error.strerror}" if error.filename and not is_of_module else error.strerror
    return str(error)


@contextmanager
def carriers_quiet(level: int, names: Collection[str] | None = None) -> Iterator[list[logging.LogRecord]]:
    """Hold back what carriers log of their failures, because the command reports these itself.

    :param level: the lowest level that is held back.
    :param names: of the carriers; ``None`` for all.
    :returns: the records that were held back.
    """
    held_back: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.module != "carrier" or record.levelno < level:
            return True
        if names is not None and not (isinstance(record.args, tuple) and str(record.args[0]) in names):
            return True
        held_back.append(record)
        return False

    logger = logging.getLogger("relay")
    logger.addFilter(keep)
    try:
        yield held_back
    finally:
        logger.removeFilter(keep)
