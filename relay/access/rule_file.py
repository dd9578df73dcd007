"""A file of rules: its last valid content, which is read again when the file has changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator

from .regular_file import distrust, open_regular
from .rule_set import RuleSet
from .rules import Rule, has_kind, parse_rule

logger = logging.getLogger("relay")

_EXPECTED = "expected a file of rules, one in each line"


class RuleFile:
    """A file of rules, with its last valid content. Any thread may use it.

    :param path: its absolute path.
    :raises ValueError: if it cannot be read, if others can write to it, or if it has an invalid line; the error names
        the path and the line.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._trouble = ""  # the last warning, while it is true
        try:
            self._read()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; {_EXPECTED}") from None

    @property
    def rules(self) -> RuleSet:
        """The rules that it had when it was read last."""
        return self._rules

    def refresh(self, name: str) -> None:
        """Read the file if it has changed; may block. A new problem is logged, and the previous rules stay in force.

        :param name: of the tunnel or the listener, for the log.
        """
        try:
            if _version(os.stat(self.path)) != self._seen:
                self._read()
                count = len(self._rules)
                logger.info("%s: %s: read again, %d rule%s", name, self.path, count, "" if count == 1 else "s")
            self._trouble = ""
        except OSError as error:
            self._warn(name, f"{self.path}: {error.strerror}")
        except ValueError as error:
            self._warn(name, str(error))

    def _read(self) -> None:
        with open_regular(self.path) as file:
            # Of the open file, and before it is read: a change during the reading is seen at the next look.
            status = os.fstat(file.fileno())
            lines = file.readlines()
        try:
            if refusal := distrust(status, os.geteuid(), "decides who may connect"):
                raise ValueError(f"{self.path}: {refusal}")
            self._rules = RuleSet(rule for _, rule in read_rules(self.path, lines))
        finally:
            # Last: no client may pass by the previous rules meanwhile. Also if it is invalid, as it is read once only.
            self._seen = _version(status)

    def _warn(self, name: str, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("%s: %s; the previous list stays in force", name, trouble)


def read_rules(path: str, lines: Iterable[bytes]) -> Iterator[tuple[int, Rule]]:
    """Parse the lines of a file.

    :param path: for errors.
    :param lines: its lines; the first one may begin with a byte order mark, as editors of Windows write it.
    :returns: each rule with the number of its line.
    :raises ValueError: if a line is invalid; the error names it.
    """
    for number, line in enumerate(lines, 1):
        text = _without_comment(line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")).strip()
        if text:
            try:
                yield number, parse_rule(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def _without_comment(line: str) -> str:
    """Return a line up to its ``#``, which begins a comment; a value may have one that follows no space."""
    if "#" not in line:
        return line
    if not has_kind(line.lstrip()):
        return line.partition("#")[0]
    before, *rest = line.split("#")
    for part in rest:
        if not before or before[-1].isspace():
            return before
        before = f"{before}#{part}"
    return before


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode, status.st_uid
