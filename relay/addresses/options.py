"""The options of addresses: one declaration each, in the metadata of the field that holds the value.

A class such as :class:`relay.addresses.ssh.SSHServer` declares an option as a field::

    keyfile: str | None = field(default=None, metadata=option(FILE, "private key to offer"))

The following are made from these fields: the parameters of URLs, the keywords of the public functions, the keys of
``relay.toml`` and its JSON schema, ``relay help hops``, and the reference pages in ``docs/``. Those that are files are
written by ``docs/write_reference.py``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from ..errors import AddressError
from .duration import parse_duration
from .size import parse_size

Owner = TypeVar("Owner")

Secret = str | Callable[..., str]
"""A secret: text, or a callable that returns it."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FINGERPRINT = r"SHA256:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]"  # 32 bytes: the last character holds four bits
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_PROTOCOL = r"[!-+\--~]{1,255}"  # of ALPN (RFC 7301, section 3.1): printable ASCII without a comma
_GROUP = r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}"
_MOST_GROUPS = 20
_LONGEST_PROTOCOLS = 4096  # characters of a list of them
_MODE = r"0?[0-7]{3}"
_MOST_CARRIERS = 8
_LONGEST_SOCKET = 107  # bytes of the path of a Unix socket, on Linux
_LEAST_BUFFER = 64 << 10  # bytes
_MOST_HOPS = 7  # I2P's own limit of hops in a tunnel
OPTION = "relay.option"
"""The key of the declaration in the metadata of a field."""

on_secret_variable: list[Callable[[], object]] = []
"""Called after each new name in :func:`secret_variables`; must not block."""

_secret_variables: set[str] = set()
_options: dict[type, Mapping[str, Option]] = {}


# No code compares or shows these two, and each method that a dataclass gets costs time at the import.
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Kind:
    """The type of an option.

    :param plain: the type of the value in ``relay.toml``.
    :param keyword: the annotation of the keyword, without ``None``.
    :param placeholder: stands for the value in help texts.
    :param check: called with the name and the value; raises :class:`TypeError` or :class:`ValueError`. What it returns
        is the value as a tunnel takes it; for addresses it does not matter.
    :param parse: makes the value of the text in a URL; raises :class:`ValueError` with what is allowed.
    :param is_repeatable: whether a URL may have the parameter several times; the value is a tuple.
    """

    plain: Any
    keyword: str
    placeholder: str
    check: Callable[[str, Any], object]
    parse: Callable[[str], Any] = str
    is_repeatable: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Option:
    """The declaration of an option.

    :param kind: its type.
    :param help: its meaning in a few words, for the help of the command.
    :param details: further sentences for docstrings, the schema and the reference.
    :param example: stands for the value in help texts; empty for the placeholder of the kind.
    :param usual: what ``None`` stands for, where that is a value.
    :param default: the default value.
    """

    kind: Kind
    help: str
    details: str = ""
    example: str = ""
    usual: str = ""
    default: Any = None

    @property
    def is_secret(self) -> bool:
        """``True`` if the value is a secret, which relay never shows."""
        return self.kind is SECRET

    @property
    def placeholder(self) -> str:
        """The text that stands for the value in help; for a flag, the choice that is not the default."""
        if self.kind is FLAG and self.default is not None:
            return "no" if self.default else "yes"
        return self.example or self.kind.placeholder


def option(
    kind: Kind,
    help: str,  # noqa: A002
    details: str = "",
    *,
    example: str = "",
    usual: str = "",
) -> Mapping[str, Option]:
    """Return the metadata that makes a field an option; see :class:`Option`."""
    return {OPTION: Option(kind, help, details, example, usual)}


def options_of(owner: type) -> Mapping[str, Option]:
    """Return the options of a class by name, in the order of its fields."""
    if owner not in _options:
        _options[owner] = _declared(owner)
    return _options[owner]


def _declared(owner: type) -> Mapping[str, Option]:
    found: dict[str, Option] = {}
    for one in fields(owner):
        if declared := one.metadata.get(OPTION):
            default = None if one.default is MISSING else one.default
            found[one.name] = declared if declared.default is default else replace(declared, default=default)
    return found


def files_of(value: Any) -> tuple[str, ...]:
    """Return the paths in the options of a value, as they were given."""
    declared = options_of(type(value))
    given = [getattr(value, name) for name, one in declared.items() if one.kind is FILE]
    return tuple(os.fspath(path) for path in given if path is not None)


def check_options(value: Any) -> None:
    """Check the options of a value.

    :param value: an instance of a class with options.
    :raises TypeError: if one has the wrong type; the error names the option and shows no secret.
    :raises ValueError: if one has a value that is not allowed, or a secret is given twice.
    """
    declared = options_of(type(value))
    for name, one in declared.items():
        given = getattr(value, name)
        if given is not None or one.default is not None:
            one.kind.check(name, given)
    for name, one in declared.items():
        sources = (name, f"{name}_file", f"{name}_env")
        if one.is_secret and sum(getattr(value, source) is not None for source in sources) > 1:
            raise ValueError(f"{name}: it is given twice; one of {name}, {name}_file and {name}_env is enough")


def check_hop_options(value: Any, problem: str, *others: str) -> None:
    """Check that a value has no option of several carriers, or of their renewal.

    :param problem: why it must not.
    :param others: further options that it must not have.
    :raises ValueError: if it has one.
    """
    for name in ("carriers", "renew_after", *others):
        if getattr(value, name) != options_of(type(value))[name].default:
            raise ValueError(f"{name}: {problem}")


def changed_options(value: Any) -> dict[str, Any]:
    """Return the options of a value that do not have their default, by name."""
    declared = options_of(type(value))
    return {name: given for name, one in declared.items() if (given := getattr(value, name)) != one.default}


def set_options(value: Owner, **given: Any) -> Owner:
    """Return a value with options that it does not have yet.

    :raises AddressError: if it has one of them, or if one is empty.
    """
    declared = options_of(type(value))
    for name, one in given.items():
        if getattr(value, name) != declared[name].default:
            raise AddressError(f"{name}= is written twice; once is enough")
        if one == "":
            raise AddressError(f"{name}= is empty; give it a value or leave it out")
    changed: Owner = replace(value, **given)  # type: ignore[type-var]  # it has fields
    return changed


def inline_secrets(value: object) -> tuple[str, ...]:
    """Return the names of the options of an address that hold a secret as text.

    :param value: any address; those that have a server or a router have its options.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return ()
    inner = getattr(value, "server", getattr(value, "router", value))
    declared = options_of(type(inner))
    return tuple(name for name, one in declared.items() if one.is_secret and isinstance(getattr(inner, name), str))


def secret_variables() -> frozenset[str]:
    """Return the environment variables that addresses of this program name as the source of a secret.

    relay does not pass them to programs that it starts. They stay here when the address is gone: its tunnel may still
    run.
    """
    return frozenset(_secret_variables)


def written(value: bool | float | str | None) -> str:
    """Return the value of an option as the text that a URL has for it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")
    return "none" if value is None else str(value)


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {type(value).__name__}")


def _check_printable(name: str, value: str) -> None:
    _check_text(name, value)
    if not value or not value.isprintable():
        raise ValueError(f"{name}: {value!r} is empty or not printable; printable text is allowed")


def _check_file(name: str, value: str) -> None:
    _check_text(name, value)
    if not value or CONTROL.search(value):
        raise ValueError(f"{name}: {value!r} is empty or holds a control character; give the path of a file")


def _check_mode(name: str, value: str) -> None:
    _check_by(_parse_mode, name, value)


def _check_protocols(name: str, value: str) -> None:
    _check_by(_parse_protocols, name, value)


def _check_groups(name: str, value: str) -> None:
    _check_by(_parse_groups, name, value)


def _check_by(parse: Callable[[str], object], name: str, value: str) -> None:
    _check_text(name, value)
    try:
        parse(value)
    except ValueError as error:
        raise ValueError(f"{name}: {value!r}: {error}") from None


def check_variable(name: str, value: str) -> None:
    """Check the name of an environment variable that holds a secret, and add it to :func:`secret_variables`.

    :raises TypeError: if it is not text; the error names the argument.
    :raises ValueError: if it is not the name of a variable.
    """
    _check_text(name, value)
    if not re.fullmatch(_VARIABLE, value):  # not repeated: it may be a secret, by mistake
        raise ValueError(f"{name}: that is not the name of a variable; letters, digits and _ are allowed")
    if value not in _secret_variables:
        # Before the calls, which pass all names on.
        _secret_variables.add(value)
        for call in on_secret_variable:
            call()


def _check_fingerprint(name: str, value: str) -> None:
    _check_text(name, value)
    if not re.fullmatch(_FINGERPRINT, value):  # not repeated, as above
        raise ValueError(f"{name}: that is not a fingerprint; SHA256: and 43 characters, as ssh-keygen -l")


def _check_secret(name: str, value: Secret) -> None:
    if not isinstance(value, str) and not callable(value):
        raise TypeError(f"{name}: expected a str or a callable, got {type(value).__name__}")
    if value == "":
        raise ValueError(f"{name}: it is empty; leave it out where there is none")


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")


def _check_seconds(name: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds or None, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: must be greater than 0, got {value}; use None to turn it off")


def _check_depth(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a number of hops, got {type(value).__name__}")
    if not 0 <= value <= _MOST_HOPS:
        raise ValueError(f"{name}: {value} is out of range; 0 to {_MOST_HOPS} hops")


def _check_carriers(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a number of connections, got {type(value).__name__}")
    if not 1 <= value <= _MOST_CARRIERS:
        raise ValueError(f"{name}: {value} is out of range; 1 to {_MOST_CARRIERS} are allowed")


def _check_destinations(name: str, value: tuple[str, ...]) -> None:
    for one in value:
        _check_text(name, one)


def _check_resume(name: str, value: bool | str) -> None:
    if isinstance(value, bool):
        return
    _check_by(_parse_resume, name, value)


def _parse_resume(text: str) -> str | None:
    if text == "no":
        return None
    if text != "yes" and (not text.startswith("/") or CONTROL.search(text) or len(os.fsencode(text)) > _LONGEST_SOCKET):
        raise ValueError("yes, no, and the absolute path of the socket of a relay resume-server are allowed")
    return text


def _check_buffer(name: str, value: str) -> None:
    _check_by(_parse_buffer, name, value)


def _parse_buffer(text: str) -> str:
    parse_size(text, _LEAST_BUFFER)
    return text


def _parse_flag(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("yes and no are allowed")
    return text == "yes"


def _parse_seconds(text: str) -> float | None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError("a number of seconds above 0 is allowed, such as 90, 10m or 2h, or none")
    return seconds if seconds < math.inf else None


def _parse_protocols(text: str) -> str:
    if not all(re.fullmatch(_PROTOCOL, one) for one in text.split(",")) or len(text) > _LONGEST_PROTOCOLS:
        raise ValueError("names of protocols with commas between them are allowed, such as h2,http/1.1")
    return text


def _parse_groups(text: str) -> str:
    names = text.split(",")
    if not all(re.fullmatch(_GROUP, one) for one in names) or len(names) > _MOST_GROUPS:
        raise ValueError("names of groups with commas between them are allowed, such as X25519")
    return text


def _parse_mode(text: str) -> str:
    if not re.fullmatch(_MODE, text):
        raise ValueError("the rights of the owner, the group and others are allowed, as chmod takes them, such as 0660")
    return text.zfill(4)


def _parse_depth(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) == 1):
        raise ValueError("a number of hops is allowed, from 0 to 7")
    return int(text)


def _parse_carriers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) == 1):
        raise ValueError(f"a number from 1 to {_MOST_CARRIERS} is allowed")
    return int(text)


def choice(*choices: str) -> Kind:
    """Return the kind of an option whose value is one of some words."""

    def check(name: str, value: str) -> None:
        if value not in choices:
            raise ValueError(f"{name}: must be {' or '.join(choices)}, got {value!r}; leave it out for the default")

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{' and '.join(choices)} are allowed")
        return text

    return Kind(choices, "str", "|".join(choices), check, parse)


TEXT = Kind(str, "str", "NAME", _check_text)
PRINTABLE = Kind(str, "str", "NAME", _check_printable)
FILE = Kind(str, "str | os.PathLike[str]", "FILE", _check_file)
PROTOCOLS = Kind(str, "str", "NAME,…", _check_protocols, _parse_protocols)
GROUPS = Kind(str, "str", "NAME,…", _check_groups, _parse_groups)
VARIABLE = Kind(str, "str", "NAME", check_variable)
SECRET = Kind(str, "Secret", "TEXT", _check_secret)
FINGERPRINT = Kind(str, "str", "SHA256:…", _check_fingerprint)
MODE = Kind(str, "str", "MODE", _check_mode, _parse_mode)
FLAG = Kind(bool, "bool", "yes|no", _check_flag, _parse_flag)
SECONDS = Kind(float, "float | None", "SECONDS", _check_seconds, _parse_seconds)
RESUME = Kind(bool | str, "bool | str", "yes|/PATH", _check_resume, _parse_resume)
BUFFER = Kind(str, "str", "SIZE", _check_buffer, _parse_buffer)
DEPTH = Kind(int, "int", "HOPS", _check_depth, _parse_depth)
CARRIERS = Kind(int, "int", "NUMBER", _check_carriers, _parse_carriers)
DESTINATIONS = Kind(list[str], "Sequence[str]", "DESTINATION", _check_destinations, is_repeatable=True)
