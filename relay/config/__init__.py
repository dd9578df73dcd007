"""``relay.toml``: tunnels, their hops and their defaults in one file."""

from __future__ import annotations

import logging
import math
import os
import re
import stat
import sys
import tomllib
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..access.regular_file import distrust, open_regular
from ..addresses.hops import Hop, Listen
from ..addresses.printable import shown
from .checking import ANYWHERE, Checker, Entry
from .models import LIMITS, LISTS, OTHERS, File, keys_at, schema
from .problems import Problem, Problems, dotted, shape_problems
from .writing import as_toml

_SHARED = ("hops", "defaults")  # the tables that decide on the meaning of every tunnel


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written, and what was read from it without a problem.

    A tunnel that is written as it was then needs no second check: most reloads change a few of many.

    :param document: its tables.
    :param no_secrets: why there may be no secrets in it; empty if there may.
    :param entries: its tunnels.
    """

    document: Mapping[str, Any]
    no_secrets: str
    entries: tuple[Entry, ...]

    def unchanged(self, document: Mapping[str, Any], no_secrets: str) -> dict[str, Entry]:
        """Return the tunnels that mean the same in the file as it is written now, by name.

        :param document: its tables.
        :param no_secrets: why there may be no secrets in it now.
        """
        before, now = self.document.get("tunnels"), document.get("tunnels")
        # A file that others can read now may not hold secrets, so that each tunnel must be checked again.
        is_same = no_secrets == self.no_secrets
        # A hop or a default may change any tunnel; which ones is not worth finding out.
        is_same = is_same and all(_text(document.get(name)) == _text(self.document.get(name)) for name in _SHARED)
        if not is_same or not isinstance(before, dict) or not isinstance(now, dict):
            return {}
        same = (entry for entry in self.entries if entry.name in now)
        return {entry.name: entry for entry in same if _text(now[entry.name]) == _text(before[entry.name])}


def _text(value: object) -> str:
    """Return what is equal for equal values of the same type: in Python, ``true``, 1 and 1.0 are equal."""
    return repr(value)


__all__ = ["ANYWHERE", "LIMITS", "LISTS", "OTHERS", "Config", "Entry", "Problem", "Written"]
__all__ += ["as_toml", "find", "of_command_line", "read", "schema"]

NAME = "relay.toml"

_LONGEST = 1 << 22  # bytes of a file that are read; some ten thousand tunnels
_DEEPEST = 32  # parts of a key: the time that tomllib takes grows with their square
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*(?:"|$)|\'[^\'\n]*(?:\'|$)')  # up to the end of the line where it has none
_MOST_DIGITS = sys.get_int_max_str_digits() or math.inf  # the limit of Python
_DIGITS = re.compile("[0-9_]+")
logger = logging.getLogger("relay.config")

_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")
_TWICE = re.compile(r"Cannot declare (\(.*\)) twice")
_COMMA = re.compile(r"=.*[\"'\w\]],\s*(#.*)?$")  # as in JSON
_LISTS = ("allow", "deny", "listen_via", "rule", "via")  # keys whose value is no single text
# A value without quotes that may be text, in a list or alone.
_BARE_TEXT = re.compile(
    r"\s*(?:([\w.-]+)\s*=\s*)?(\[?)\s*(?:(?:\"[^\"]*\"|'[^']*')\s*,\s*)*"
    r"((?=\S*[A-Za-z/:])[^\s\"'\[{}\],=]\S*)"
)


@dataclass(frozen=True, slots=True)
class Config:
    """The contents of a file, or of a command line.

    :param folder: paths in it are relative to this.
    :param file: the tables without errors of type.
    :param hops: the hops by name, as values.
    :param entries: the tunnels, in the order of the file; use only those without :attr:`problems`.
    :param problems: its problems.
    :param document: its tables as they are written.
    :param no_secrets: why there may be no secrets in it; empty if there may.
    """

    folder: str
    file: File
    hops: Mapping[str, Hop]
    entries: list[Entry]
    problems: Problems
    document: Mapping[str, Any]
    no_secrets: str

    @property
    def written(self) -> Written:
        """The file for a later :func:`read`; only if it has no problems."""
        return Written(self.document, self.no_secrets, tuple(self.entries))


def find() -> str:
    """Return the default file.

    :returns: ``relay.toml`` here, or the one in the user's directory for configuration.
    :raises ValueError: if there is none.

    Source: the XDG Base Directory Specification.
    """
    base = os.environ.get("XDG_CONFIG_HOME", "")
    folder = base if os.path.isabs(base) else os.path.expanduser("~/.config")
    users = os.path.join(folder, "relay", NAME)
    for path in (NAME, users):
        if os.path.lexists(path):
            return path
    raise ValueError(f"{NAME}: no such file here, nor {users}; name a file")


def read(path: str, name: str | None = None, before: Written | None = None, *, owner: int | None = None) -> Config:
    """Read a file and check it.

    A file that others can write is rejected, because it can name programs to start. A file that others can read must
    not have secrets.

    :param path: of the file.
    :param name: of the file in its problems; the path by default.
    :param before: the file when it was read last; a tunnel that is written as it was then has the same entry.
    :param owner: the user for whom it is read, who may own it; this user by default.
    :returns: its contents and its problems.
    :raises OSError: if it cannot be read.
    """
    problems = Problems(shown(path if name is None else name))
    try:
        opened = open_regular(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"{error.strerror}; check the path", path) from None
    with opened:
        # Of the file that is open, not of the path: the owner and mode that are checked are those of the bytes that are
        # read.
        status = os.fstat(opened.fileno())
        # One byte more than is allowed tells that there are more, without a look at the size, which some files do not
        # have.
        data = opened.read(_LONGEST + 1)
    document: dict[str, Any] = {}
    refusal = distrust(status, os.geteuid() if owner is None else owner, "can name programs to start")
    if refusal or len(data) > _LONGEST:
        problems.add((), refusal or f"it has more than {_LONGEST} bytes, which are allowed")
    else:
        document = _parsed(data, problems)
    mode = stat.S_IMODE(status.st_mode)
    no_secrets = f"others can read the file (mode {mode:04o}); chmod 600 it" if mode & 0o077 else ""
    return _checked(document, problems, str(Path(path).absolute().parent), no_secrets, before=before)


def of_command_line(
    name: str, tunnel: Mapping[str, Any], top: Mapping[str, Any], listen: Listen | None = None
) -> Config:
    """Return a command line as if it were a file.

    :param name: of the tunnel.
    :param tunnel: its table.
    :param top: the keys at the top.
    :param listen: its address to listen on, if it is parsed already.
    """
    no_secrets = "all users of this machine can read a command line"
    document = {**top, "tunnels": {name: tunnel}}
    return _checked(document, Problems("", ("tunnels", name)), os.getcwd(), no_secrets, listen)


def _parsed(data: bytes, problems: Problems) -> dict[str, Any]:
    """Return the tables of a file; empty if it is not TOML, which adds a problem."""
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
        # Before tomllib sees it: a key of 20,000 parts would keep it busy for 20 seconds, at every reload too.
        if deep := _deep_line(text):
            problems.add((), f"a key with more than {_DEEPEST} parts; none here has as many", line=deep)
            return {}
        document = tomllib.loads(text)
        # Only now: the lines of the keys can be found in text that is TOML, and in no other.
        problems.text = text
        _rename(document, problems)
        return document
    except UnicodeDecodeError as error:
        problems.add((), "a byte that is not UTF-8; save the file as UTF-8", line=data.count(b"\n", 0, error.start) + 1)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else len(data.splitlines())
        lines = text.split("\n")
        found = _BARE_TEXT.match(lines[line - 1]) if line <= len(lines) else None
        hint = ""
        problem = f"this is not TOML: {_PLACE.sub('', str(error))}"
        if twice := _TWICE.match(str(error)):
            problem, hint = f"[{dotted(literal_eval(twice[1]))}] is there twice", "; give each table a name of its own"
        elif line <= len(lines) and _COMMA.search(lines[line - 1]):
            hint = "; no comma at the end of a line"
        elif found and (found[1] or "Invalid value" in problem):  # the text itself is not repeated: it may be a secret
            is_switch = found[3].lower() in ("yes", "no", "on", "off", "true", "false")
            is_list = found[2] or found[1] in _LISTS
            value = f'{found[1]} = ["…"]' if is_list else f'{found[1]} = "…"' if found[1] else '"…"'
            hint = "; write true or false" if is_switch else f"; text needs quotes: {value}"
        problems.add((), f"{problem}{hint}", line=line)
    except ValueError:  # of int(), which tomllib does not catch
        line = _line_of_digits(data.decode())
        problems.add((), f"a number of more than {_MOST_DIGITS} digits, which are allowed", line=line)
    except RecursionError:
        problems.add((), "its arrays and tables are nested too deep")
    return {}


def _rename(document: Mapping[str, Any], problems: Problems) -> None:
    """Give keys that have another name now that name, and say so. The old ones go with 0.3."""
    tunnels = document.get("tunnels")
    tables: dict[tuple[str | int, ...], Any] = {("defaults",): document.get("defaults")}
    tables |= {("tunnels", name): table for name, table in (tunnels if isinstance(tunnels, dict) else {}).items()}
    for path, table in tables.items():
        if not isinstance(table, dict) or "carriers" not in table:
            continue
        if isinstance(table["carriers"], int):
            text = "their number is a key of the hop, such as carriers = 2 in [hops.NAME], or ssh://HOST?carriers=2"
            problems.add((*path, "carriers"), text)
            del table["carriers"]
        elif "carrier_sharing" not in table:
            table["carrier_sharing"] = table.pop("carriers")
            logger.warning(
                problems.notice((*path, "carriers"), "it is carrier_sharing now; relay 0.3 will not know it")
            )


def _deep_line(text: str) -> int:
    """Return the first line with a key that is too deep, from 1; 0 if there is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") >= _DEEPEST and _QUOTED.sub("", line).partition("#")[0].count(".") >= _DEEPEST:
            return number
    return 0


def _line_of_digits(text: str) -> int:
    """Return the first line with a number that is too long, from 1; 0 if there is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if any(len(found.replace("_", "")) > _MOST_DIGITS for found in _DIGITS.findall(line)):
            return number
    return 0


def _checked(
    document: dict[str, Any],
    problems: Problems,
    folder: str,
    no_secrets: str,
    listen: Listen | None = None,
    before: Written | None = None,
) -> Config:
    same = before.unchanged(document, no_secrets) if before is not None else {}
    file = _file(document, same, problems)
    checker = Checker(file, problems, no_secrets, listen, same)
    entries = checker.entries()
    if not file.tunnels and not problems.in_order():
        problems.add((), "there are no tunnels in it; [tunnels.NAME] begins one, with listen = … and target = …")
    return Config(folder, file, checker.hops, entries, problems, document, no_secrets)


def _file(document: dict[str, Any], same: Mapping[str, Entry], problems: Problems) -> File:
    """Return the tables that have the right types; problems of the others are added.

    :param same: the tunnels that have been checked before.
    """
    new = document
    if same:
        # A reload of hundreds of tunnels changes one or two as a rule. Checking all of them again took most of its
        # time.
        new = document | {"tunnels": {name: one for name, one in document["tunnels"].items() if name not in same}}
    file = shape_problems(File, new, keys_at, problems)
    if file is None:
        # Tables without problems are checked further all the same: a user wants to see all problems of a file in one
        # run.
        right: dict[str, Any] = {}
        for name, value in new.items():
            if name in ("hops", "tunnels") and isinstance(value, dict):
                right[name] = {key: each for key, each in value.items() if not problems.about(name, key)}
            elif not problems.about(name):
                right[name] = value
        file = File.model_validate(right)
    if same:
        known = file.tunnels | {name: entry.tunnel for name, entry in same.items()}
        # The order of the file decides which of two tunnels at one address is the wrong one, and the order of all
        # output.
        in_order = {name: known[name] for name in document["tunnels"] if name in known}
        file = file.model_copy(update={"tunnels": in_order})
    return file
