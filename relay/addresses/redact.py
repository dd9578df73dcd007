"""Addresses fit to be printed: on one line, short, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .i2p import I2PListen, I2PRouter
from .options import Option, options_of
from .printable import shown
from .ssh import LISTEN, SSHServer
from .values import TLSListen, TLSTarget

_OWNERS = (TLSTarget, TLSListen, SSHServer, I2PRouter, I2PListen)
_TOR = ("socks", "control", "port")  # options of :mod:`relay.addresses.tor`, which is not loaded for this
_OPTIONS: Mapping[str, Option] = {"listen": LISTEN} | {n: o for owner in _OWNERS for n, o in options_of(owner).items()}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SHOWN_OPTION = re.compile(r"(inbound|outbound)\.\w+")  # of an I2P session; those of i2cp may be secrets
_SWITCH = re.compile(r"yes|no|true|false|on|off", re.IGNORECASE)  # values that are no secret, of whatever parameter


def redact(text: str) -> str:
    """Return an address fit to be printed: secrets and the values of unknown parameters are replaced."""
    if text[:7].lower() == "resume:":
        return f"{text[:7]}{redact(text[7:])}"
    if is_program(text):
        program, space, _ = text.strip().partition(" ")
        return shown(f"{program}{space and ' …'}")  # what follows may hold a secret
    scheme, rest = _scheme_and_rest(text)
    head, mark, query = rest.partition("?")
    if is_ambiguous(text):
        return shown(f"{scheme}{head.partition(':')[0]}***")
    user, sign, place = head.rpartition("@")
    name, colon, _ = user.partition(":")
    return shown(f"{scheme}{name}{colon and ':***'}{sign}{place}{mark}{'&'.join(redact_parameters(query))}")


def is_program(text: str) -> bool:
    """Return whether an address is that of a program, whose words may hold a secret."""
    return text.lower().removeprefix("resume:").startswith(("exec:", "port:"))


def is_ambiguous(text: str) -> bool:
    """Return whether an address has either a password with a ``?`` in it, or a parameter with an ``@``."""
    text = text[7:] if text[:7].lower() == "resume:" else text
    before = _scheme_and_rest(text)[1].rpartition("@")[0]
    return "?" in before and ":" in before


def redact_parameters(query: str) -> list[str]:
    """Return the parameters of an address as they may be shown.

    An unknown parameter after a secret may be a part of it, where an ``&`` is not encoded.
    """
    found: list[str] = []
    after_a_secret = False
    for parameter in query.split("&"):
        name, sign, value = parameter.partition("=")
        known = _OPTIONS.get(name)
        is_foreign = known is None and not (after_a_secret or "@" in name)
        # Only names that are known: a secret with an unencoded `&` in it would look like another parameter.
        is_open = (known and not known.is_secret) or name in _TOR or _SHOWN_OPTION.fullmatch(name)
        if is_open or (is_foreign and _SWITCH.fullmatch(value)):
            found.append(parameter)
        elif known or is_foreign:
            found.append(f"{name}{sign and '=***'}")
            after_a_secret = after_a_secret or bool(sign)
        else:
            found.append("***")
    return found


def _scheme_and_rest(text: str) -> tuple[str, str]:
    scheme, slashes, rest = text.partition("://")
    return (scheme + slashes, rest) if slashes and _SCHEME.fullmatch(scheme) else ("", text)
