"""The problems of a file of tunnels, each with its line; all are reported at once."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .lines import Path, lines_of

Keys = Callable[[Path], Iterable[str]]
Model = TypeVar("Model", bound=BaseModel)

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_EXPECTED = {
    "string": "text in quotes",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": 'a list such as ["…", "…"]',
    "dict": "a table",
    "model": "a table",
}
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a file.

    :param line: its line, from 1; 0 for the file as a whole.
    :param text: the problem and the remedy, in one line.
    :param is_config_error: whether the user must change something; otherwise a retry may succeed.
    """

    line: int
    text: str
    is_config_error: bool = True


class Problems:
    """The problems of a file.

    :param name: of the file, as the user named it; empty for a command line.
    :param root: the path that messages leave out.
    """

    def __init__(self, name: str, root: Path = ()) -> None:
        self.name = name
        self._root = root
        self.text = ""
        """The file, if it is TOML."""
        self._found: list[tuple[Problem, Path]] = []

    def add(self, path: Path, text: str, *, line: int | None = None, is_config_error: bool = True) -> None:
        """Add a problem of the value at a path, or of a line."""
        number = self.line(path) if line is None else line
        self._found.append((Problem(number, self._placed(path, text), is_config_error), path))

    def notice(self, path: Path, text: str) -> str:
        """Return a line about the value at a path that is no problem, with the file and its line."""
        return self.format(Problem(self.line(path), self._placed(path, text)))

    def _placed(self, path: Path, text: str) -> str:
        shown = path[len(self._root) :] if path[: len(self._root)] == self._root else path
        where = f"{dotted(shown)}: " if shown else ""
        return f"{where}{' '.join(text.split())}"

    def line(self, path: Path) -> int:
        """Return the line of a path, or of the table that it would be in."""
        # A key that is missing has no line, but the table in which it should be has one.
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)

    @functools.cached_property
    def _lines(self) -> Mapping[Path, int]:
        """The line of each path. Most files have no problem, and need none."""
        return lines_of(self.text)

    def about(self, *path: str | int) -> bool:
        """Return whether the value at a path, or a part of it, has a problem."""
        return any(found[: len(path)] == path for _, found in self._found)

    def in_order(self) -> list[Problem]:
        """Return all problems, each once, in the order of the file."""
        # Each once: several tunnels over one wrong hop report the same line.
        return sorted(dict.fromkeys(problem for problem, _ in self._found), key=lambda problem: problem.line)

    def format(self, problem: Problem) -> str:
        """Return a problem as one line, with the file and its line."""
        line = f"{problem.line}:" if problem.line else ""
        return f"{self.name}:{line} {problem.text}" if self.name else problem.text


def dotted(path: Path) -> str:
    """Return a path as TOML writes it, safe to print."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in path)
    return "".join(parts).removeprefix(".")


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else json.dumps(text)


def near(word: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown word if a known one is spelled like it."""
    found = get_close_matches(word, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def shape_problems(model: type[Model], document: Any, keys: Keys, problems: Problems) -> Model | None:
    """Add the problems of a document that does not have the types of a model.

    :param keys: returns the known keys of the table at a path.
    :returns: the document as a value; ``None`` if it has such problems.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            path = _path_of(found["loc"], document)
            if found["type"] == "extra_forbidden":
                problems.add(
                    path,
                    misplaced(path, keys(()))
                    or _of_tunnels(path, keys)
                    or _unknown(str(path[-1]), list(keys(path[:-1]))),
                )
            elif 0 < len(path) < 3 and path[0] in ("hops", "tunnels") and isinstance(found["input"], list):
                name = dotted(path) if len(path) == 2 else f"{path[0]}.NAME"
                problems.add(path, f"each of them has a name: write [{name}] instead of [[{dotted(path)}]]")
            elif len(path) == 2 and path[0] == "tunnels" and path[1] in {"listen", "target", *keys(("defaults",))}:
                problems.add(path, "the table of a tunnel has a name: write [tunnels.NAME] above its keys")
            elif found["type"] == "missing":
                problems.add(path[:-1], f"there is no {path[-1]}, which it needs")
            else:
                is_name = len(path) == 2 and path[0] in ("hops", "tunnels")
                problems.add(path, (misplaced(path, keys(())) if is_name else "") or _problem(found))
        return None


def _path_of(where: Iterable[str | int], document: Any) -> Path:
    """Return the path of an error: with a missing key, and without the tags that Pydantic adds."""
    *inner, last = where
    path: Path = ()
    for part in inner:
        if (isinstance(document, list) and isinstance(part, int)) or (
            isinstance(document, Mapping) and part in document
        ):
            document = document[part]  # type: ignore[index]
            path = (*path, part)
    has_part = isinstance(document, Mapping) or (isinstance(document, list) and isinstance(last, int))
    return (*path, last) if has_part else path


def misplaced(path: Path, top: Iterable[str]) -> str:
    """Return where a key belongs that is above or below the tables and should not be; empty if it is at its place.

    :param path: its place.
    :param top: the keys and the tables of the top.
    """
    if path in (("listen",), ("target",)):
        return "it belongs into the table of a tunnel, below a line such as [tunnels.web]"
    is_misplaced = len(path) > 1 and path[-1] in {*top} - {"defaults", "hops", "tunnels"}
    return f"{path[-1]} belongs at the top of the file, above the first table" if is_misplaced else ""


def _of_tunnels(path: Path, keys: Keys) -> str:
    """Return where a key of tunnels belongs that is above all tables; empty for any other."""
    if len(path) > 1 or str(path[0]) not in keys(("tunnels", "NAME")):
        return ""
    usual = "into [defaults], or " if str(path[0]) in keys(("defaults",)) else ""
    return f"it belongs {usual}into the table of a tunnel, below a line such as [tunnels.web]"


def _unknown(key: str, known: list[str]) -> str:
    return "there is no such key" + (near(key, known) or f"; allowed are {', '.join(known)}")


def _problem(found: Any) -> str:
    """Return the problem of a value; the value is not repeated, because it may be a secret."""
    if found["type"] == "value_error":
        # The text of relay's own validator; Pydantic's adds words of its own in front.
        return str(found["ctx"]["error"])
    if found["type"] == "literal_error":
        return f"expected {found['ctx']['expected']}"
    kind = _KINDS.get(type(found["input"]), "a date or a time")
    expected = _EXPECTED.get(found["type"].removesuffix("_type"))
    return f"expected {expected}, got {kind}" if expected else str(found["msg"])
