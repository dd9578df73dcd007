"""Find what the style of the project forbids in texts: docstrings, comments, messages, help and documentation.

``python docs/check_words.py`` prints each finding as ``file:line: words; remedy`` and ends with status 1 if there is
one; ``make check`` runs it. Texts are plain English: an actor, a verb, and the standard terms of the field.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("relay", "samples", "benchmarks", "tests")
DATA = re.compile(r"tests/(?!support/)")  # of these only docstrings and comments: other strings are data
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "samples/README.md")

# What is forbidden, and what to write instead.
INSTEAD = {
    r"whoever|whosoever|whatsoever": "name the actor: the client, the server, the caller, you",
    r"(?:no|some|every)body": "name the actor: no client, a peer, every user",
    r"(?:is|are|was|were) wanted": "expected X, got Y; requested",
    r"told": "reported, returned, logged, set, known",
    r"to be had": "available, supported",
    r"lest": "so that … not",
    r"as ever|all the while|to and fro|likewise|in place of": "also, the same, meanwhile, both ways, instead of",
    r"rid(?:e|es|ing) on": "uses; is multiplexed over",
    r"made (?:again|anew)": "re-created, re-established",
    r"keep(?:s|ing)? up|kept up": "supervised, reconnects",
    r"of ours": "relay's, of this process",
    r"let(?:s|ting)? go|lets? (?:\w+ ){1,3}go": "release, close",
    r"gone deaf|deaf": "unresponsive",
    r"signs? of life": "keepalive probe, keepalive reply",
    r"sen[dt]s? away": "reject",
    r"(?:is|are) not to be|what is to (?:be|come)": "must not; name the thing",
    r"all else|nothing else": "everything else; only",
    r"for (?:its|your) (?:owner|eyes) (?:alone|only)": "owner-only (mode 0600)",
}
FORBIDDEN = re.compile(
    "|".join(rf"(?P<w{number}>\b(?:{words})\b)" for number, words in enumerate(INSTEAD)), re.IGNORECASE
)
OPENING = re.compile(r"(?:Who|What|How|Where|Whether|Why|When|Have)\b")


def files() -> Iterator[Path]:
    """The files with texts that people read."""
    for name in CODE:
        yield from sorted((ROOT / name).rglob("*.py"))
    for name in PAGES:
        path = ROOT / name
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


# Since Python 3.12 an f-string is several tokens, and what is between its braces is none of them.
STRINGS = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file, each with the number of its first line: its strings and comments, or all of a page."""
    source = path.read_text()
    if path.suffix != ".py":
        yield 1, source
        return
    with_data = not (path.is_relative_to(ROOT) and DATA.match(str(path.relative_to(ROOT))))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type in STRINGS and (with_data or token.string.startswith('"""'))):
            yield token.start[0], token.string


def words(path: Path) -> Iterator[tuple[int, str]]:
    """The forbidden words of a file, each with its line."""
    remedies = list(INSTEAD.values())
    for first, text in texts(path):
        for found in FORBIDDEN.finditer(text):
            remedy = remedies[int(str(found.lastgroup)[1:])]
            yield first + text.count("\n", 0, found.start()), f"{found[0]!r}; instead: {remedy}"


def openings(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a file that begin with a clause, each with the line of its owner."""
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = OPENING.match(ast.get_docstring(node) or "")
            if found:
                remedy = "an imperative for functions; a noun phrase for modules, classes and properties"
                yield getattr(node, "lineno", 1), f"a docstring begins with {found[0]!r}; instead: {remedy}"


def main(arguments: list[str]) -> int:
    """Print the findings; with arguments, only those in files whose names begin with one of them.

    :returns: the exit status.
    """
    status = 0
    for path in files():
        name = str(path.relative_to(ROOT))
        if arguments and not name.startswith(tuple(arguments)):
            continue
        for line, problem in (*words(path), *openings(path)):
            sys.stdout.write(f"{name}:{line}: {problem}\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
