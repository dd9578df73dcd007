"""Errors of programs: why one was not started, and how one has ended."""

from __future__ import annotations

import os
import signal

from ..errors import ConnectError, RelayError
from ..process import program_error


def start_error(name: str, error: Exception) -> OSError:
    """Return the error of a program that was not started.

    :param name: the program's.
    :param error: what the system reports; an error of relay stays as it is.
    """
    if isinstance(error, RelayError):
        return error
    return ConnectError(f"{name}: cannot be started: {getattr(error, 'strerror', None) or error}")


def missing(program: str) -> str:
    """Return why there is no such program, and what to do.

    :param program: its name, which is looked for in ``PATH``, or its path.
    """
    if os.path.dirname(program):
        if os.path.exists(program):
            return f"{program} is not an executable file; check the path, or run chmod +x"
        return f"there is no {program}; check the spelling"
    return f"there is no {program} in PATH; install it, or give its whole path"


def end_error(name: str, status: int, last: str) -> ConnectError | None:
    """Return the error of a program that has ended; ``None`` if its status is 0.

    :param name: the program's.
    :param status: its exit status, or the signal that ended it, negative.
    :param last: the last line of its standard error, if any.
    """
    if status > 0:
        return program_error(name, f"ended with status {status}", last)
    if status < 0:
        return program_error(name, f"was ended by {_signal_name(-status)}", last)
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
