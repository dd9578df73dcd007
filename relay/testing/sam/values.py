"""Values of the embedded SAM bridge: settings, recorded commands and sessions, faults and refusals."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from ...transports.i2p.messages import Message

_VERSION = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")


@dataclass
class Settings:
    """Settings of a bridge: plain data that may change at any time; :class:`relay.testing.SAMBridge` describes them."""

    personality: str
    versions: tuple[str, str]
    login: tuple[str, str] | None = field(repr=False)
    build_time: float
    publish_time: float
    lease_life: float
    silence: float
    remember: float
    zombie_life: float
    stale: float
    connect_to_self: bool
    loses_tail: bool
    ping_interval: float
    command_timeout: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not value >= 0:
                raise ValueError(f"{name}: expected seconds, at least 0, got {value!r}")
        if not all(map(version, self.versions)) or version(self.versions[0]) > version(self.versions[1]):
            raise ValueError(
                f"versions: expected the lowest and the highest version, such as 3.1 and 3.3, got {self.versions!r}"
            )


class SAMCommand(NamedTuple):
    """A command that a program has sent.

    :param words: such as ``("STREAM", "CONNECT")``.
    :param options: of the command; private keys and passwords are ``***``.
    """

    words: tuple[str, ...]
    options: dict[str, str]


class SAMSession(NamedTuple):
    """An open session.

    :param id: its ID.
    :param destination: its destination, in base64.
    :param options: of SESSION CREATE; a private key is ``***``.
    """

    id: str
    destination: str
    options: dict[str, str]


class Refusal(NamedTuple):
    """Refusal of a command.

    :param result: the word of SAM for it.
    :param text: for people.
    """

    result: str
    text: str = ""


class Fault:
    """An injected fault for the next few requests; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._result = ""

    def set(self, count: int, result: str) -> None:
        """Let the next ``count`` requests fail with ``result``, instead of an earlier setting."""
        with self._lock:
            self._left, self._result = count, result

    def take(self) -> str:
        """Return the result of this request's fault; empty if there is none."""
        with self._lock:
            if self._left <= 0:
                return ""
            self._left -= 1
            return self._result


def version(text: str) -> tuple[int, ...]:
    """Return a version as numbers; an empty tuple if it is invalid."""
    return tuple(map(int, text.split("."))) if _VERSION.fullmatch(text) else ()


def masked(message: Message) -> dict[str, str]:
    """Return the options of a command, with ``***`` for secrets."""
    private = {"PASSWORD", "PRIV"}
    # In SESSION CREATE it is the private key; in STREAM CONNECT it is public, and a test wants to see it.
    if message.words[:1] == ("SESSION",) and message.options.get("DESTINATION") != "TRANSIENT":
        private.add("DESTINATION")
    return {key: "***" if key.upper() in private else value for key, value in message.options.items()}
