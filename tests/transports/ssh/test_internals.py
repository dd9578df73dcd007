"""The names of paramiko that relay depends on: the lists are whole, and a paramiko that lacks one is named at once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import paramiko
import pytest

from relay.errors import RelayError
from relay.transports.ssh import internals
from relay.transports.ssh.internals import BACKEND, COMPAT, REQUIRED, TESTING, check

ROOT = Path(__file__).parents[3]
USERS = {
    "backend": (
        BACKEND,
        [ROOT / "relay/transports/ssh/config/options.py", *(ROOT / "relay/transports/ssh/paramiko").glob("*.py")],
    ),
    "compat": (COMPAT, [*(ROOT / "relay/compat").rglob("*.py")]),
    "testing": (TESTING, [*(ROOT / "relay/testing/ssh").glob("*.py")]),
}
CLASSES = (
    "transport.Transport",
    "packet.Packetizer",
    "auth_handler.AuthHandler",
    "channel.Channel",
    "config.SSHConfig",
)


def names_of(place: str) -> set[str]:
    """Everything that a class of paramiko has, and that its constructor sets."""
    module, _, kind = place.partition(".")
    cls = getattr(import_module(f"paramiko.{module}"), kind)
    found = set(cls.__init__.__code__.co_names)
    for base in cls.__mro__[:-1]:
        found |= set(vars(base))
    return found


def used_in(path: Path) -> Iterator[tuple[str, str]]:
    """Private attributes of others, and methods of classes that derive from paramiko's: (class or empty, name)."""
    tree = ast.parse(path.read_text())
    derived: dict[ast.ClassDef, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                kind = ast.unparse(base).rpartition(".")[2]
                place = next((place for place in CLASSES if place.endswith(f".{kind}")), None)
                if place and ("paramiko" in ast.unparse(base) or kind == "AuthHandler"):
                    derived[node] = place
    for node, place in derived.items():
        known = names_of(place)
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef) and inner.name in known and not inner.name.startswith("__"):
                yield place, inner.name
            if isinstance(inner, ast.Attribute) and re.match(r"_[^_]", inner.attr) and inner.attr in known:
                yield place, inner.attr
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and re.search(r"transport|channel|handler", owner.lower()):
                yield "", node.attr


@pytest.mark.parametrize("user", USERS)
def test_every_name_that_is_used_is_in_the_list(user: str) -> None:
    listed, files = USERS[user]
    everything = {name for names in listed.values() for name in names.split()}
    known = set().union(*map(names_of, CLASSES))
    used = {(path.name, place, name) for path in files for place, name in used_in(path)}
    assert used
    for file, place, name in used:
        if place:
            assert name in listed.get(place, "").split(), f"{file}: {place}.{name}"
        elif name in known:
            assert name in everything, f"{file}: {name}"


def test_only_these_files_use_private_names_of_paramiko() -> None:
    """Everything else in the package that imports paramiko keeps to its documented interface."""
    known = {name for place in CLASSES for name in names_of(place) if name.startswith("_")}
    users = {path for _, files in USERS.values() for path in files}
    for path in sorted((ROOT / "relay").rglob("*.py")):
        text = path.read_text()
        if path not in users and re.search(r"^\s*(?:import|from) paramiko\b", text, re.MULTILINE):
            attributes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute))
            names = {node.attr for node in attributes if node.attr in known and ast.unparse(node.value) != "self"}
            assert not {name for name in names if not name.startswith("__")}, path


@pytest.mark.parametrize("user", USERS)
def test_every_name_in_the_list_is_used(user: str) -> None:
    listed, files = USERS[user]
    text = "\n".join(path.read_text() for path in files) + repr(internals._ATTRIBUTES)
    for names in listed.values():
        for name in names.split():
            assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("user", USERS)
def test_the_installed_one_has_everything(user: str) -> None:
    check(USERS[user][0], user)


@pytest.mark.parametrize(("place", "name"), [(place, names.split()[-1]) for place, names in BACKEND.items()])
def test_each_place_is_looked_at(place: str, name: str) -> None:
    with pytest.raises(RelayError, match=re.escape(f" has no {place}.{name}_gone, which a test needs; install ")):
        check({place: f"{name} {name}_gone"}, "a test")


@pytest.mark.parametrize("place", ["gone", "gone.Transport", "transport.Gone", "transport.MSG_DISCONNECT"])
def test_a_place_that_is_gone(place: str) -> None:
    with pytest.raises(RelayError, match=f"has no {place}.run and 1 more"):
        check({place: "run name"}, "a test")


def test_a_paramiko_that_lacks_something_is_named_before_anything_is_tried() -> None:
    program = (
        "import paramiko, relay\n"
        "del paramiko.Transport._parse_ext_info\n"
        "try:\n"
        "    relay.ssh('ssh://me@127.0.0.1:9?config=none&backend=paramiko', '127.0.0.1', 9).ready()\n"
        "except relay.RelayError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    needs = "has no transport.Transport._parse_ext_info, which relay's SSH backend paramiko needs"
    way = f"install {REQUIRED}, or use backend='openssh' (in an address: ?backend=openssh)"
    assert run.stdout == f"paramiko {paramiko.__version__} {needs}; {way}\n"


@pytest.mark.parametrize(
    ("module", "gone", "user"),
    [
        ("relay.compat.rforward", "channel.Channel._set_window", "relay.compat.rforward"),
        ("relay.testing", "transport.Transport._unlink_channel", "relay.testing.SSHServer"),
    ],
)
def test_each_other_user_says_so_when_it_is_imported(module: str, gone: str, user: str) -> None:
    program = (
        "import paramiko, relay\n"
        f"del paramiko.{gone}\n"
        "try:\n"
        f"    from {module} import *\n"
        "except relay.RelayError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == f"paramiko {paramiko.__version__} has no {gone}, which {user} needs; install {REQUIRED}\n"


def test_what_is_required_is_what_is_installed() -> None:
    assert REQUIRED in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
