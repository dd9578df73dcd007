"""The successor that a process starts itself: its own command line again."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from ... import __file__ as package
from ...addresses.printable import shown
from ...process import end, interpreter, start_successor
from ..status import UpgradeReport
from .upgrade_channel import UpgradeError

logger = logging.getLogger("relay.cli")

# Not "-m relay": another package of this name may be in the working directory, or nearer in the path.
_MAIN = os.path.join(os.path.dirname(os.path.abspath(package)), "__main__.py")
_CONNECT_TIME = 60.0  # seconds for a successor to start as far as its connection
_END_TIME = 10.0  # seconds for a successor that has failed to end by itself


@dataclass(frozen=True, slots=True)
class Program:
    """The command line of this process, to start it again.

    :param argv: the arguments; the successor gets ``--upgrade`` after ``up``.
    :param folder: the current directory at the start, to which its paths are relative.
    """

    argv: tuple[str, ...]
    folder: str

    @classmethod
    def of_this_process(cls) -> Program:
        """Return that of this process: the same program, as it is installed by then."""
        script, *rest = sys.argv
        argv = [word for word in rest if word != "--upgrade"]
        if "up" in argv:
            argv.insert(argv.index("up") + 1, "--upgrade")
        if os.path.basename(script) == "__main__.py" or not os.access(script, os.X_OK):
            start = [*interpreter(), _MAIN]
        elif sys.orig_argv[1:2] == [script]:  # its first line names its Python, another one perhaps after an upgrade
            start = [os.path.abspath(script)]
        else:
            start = [*interpreter(), os.path.abspath(script)]
        return cls((*start, *argv), os.getcwd())


class Successor:
    """A process that this one has started to take its place. From any thread.

    :param program: the command line.
    :param variables: further ones of its environment.
    :raises UpgradeError: if it cannot be started.
    """

    def __init__(self, program: Program, variables: Mapping[str, str]) -> None:
        argv = program.argv
        try:
            self._process = start_successor(argv, program.folder, {**os.environ, **variables})
        except OSError as error:
            # subprocess names the folder if it could not change to it, such as one that was removed.
            where = f"working directory {shown(program.folder)}: " if error.filename == program.folder else ""
            raise _failed(f"cannot start {shown(argv[0])}: {where}{error.strerror}") from error
        except RuntimeError as error:  # the system has no thread left, as below
            raise _failed(str(error)) from error
        self._outcome: Future[UpgradeReport] = Future()
        self._is_connected = False
        try:
            # A thread that waits for the exit status: without it, a successor that ends early would stay a zombie, and
            # the caller would wait for its connection.
            threading.Thread(target=self._wait_for_end, name="relay-upgrade child", daemon=True).start()
        except RuntimeError as error:
            self.end()
            raise _failed(str(error)) from error

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    def on_connected(self) -> None:
        """Note that it has connected: from now on, the connection tells its outcome."""
        self._is_connected = True

    def settle(self, outcome: UpgradeReport | UpgradeError) -> None:
        """Note the outcome of the upgrade."""
        with contextlib.suppress(InvalidStateError):  # it has one
            if isinstance(outcome, UpgradeError):
                self._outcome.set_exception(outcome)
            else:
                self._outcome.set_result(outcome)

    def wait(self) -> UpgradeReport:
        """Wait for the outcome.

        :raises UpgradeError: if the upgrade has failed; the process has ended then.
        """
        try:
            with contextlib.suppress(TimeoutError):
                return self._outcome.result(_CONNECT_TIME)
            if not self._is_connected:
                raise UpgradeError(f"the new process did not connect within {_CONNECT_TIME:g} s")
            return self._outcome.result()
        except UpgradeError as error:
            self.end()
            log_failure(error)
            raise

    def end(self) -> None:
        """End it, and wait for that. Idempotent."""
        end(self._process, _END_TIME)

    def _wait_for_end(self) -> None:
        """Collect the exit status. The process may outlive this one."""
        status = self._process.wait()
        if not self._is_connected:
            text = f"the new process ended with status {status} before it was ready; its messages are in the log"
            self.settle(UpgradeError(text))


def _failed(problem: str) -> UpgradeError:
    error = UpgradeError(problem)
    log_failure(error)
    return error


def log_failure(error: UpgradeError) -> None:
    """Log why an upgrade has failed, a line for each problem."""
    *first, last = error.lines
    for line in first:
        logger.error("upgrade: %s", line)
    logger.error("upgrade: %s; nothing has changed", last)
