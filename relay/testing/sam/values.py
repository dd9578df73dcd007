"""Values of the embedded SAM bridge: its settings, what was asked, and what is to go wrong."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from ...transports.i2p.messages import Message

__all__ = ["Command", "Fault", "SessionRecord", "Settings", "masked", "version"]

_VERSION = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")


@dataclass
class Settings:
    """The settings of a bridge; :class:`relay.testing.SAMBridge` describes each. They may change at any time."""

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
                raise ValueError(f"{name}: {value!r}; it is a time in seconds, and not less than 0")
        if not all(map(version, self.versions)) or version(self.versions[0]) > version(self.versions[1]):
            raise ValueError(f"versions: {self.versions!r}; it is the lowest and the highest one, such as 3.1 and 3.3")


class Command(NamedTuple):
    """A command that has come.

    :param words: such as ``("STREAM", "CONNECT")``.
    :param options: what it says; private keys and passwords are ``***``.
    """

    words: tuple[str, ...]
    options: dict[str, str]


class SessionRecord(NamedTuple):
    """A session that lives.

    :param id: its id.
    :param destination: its destination, in base64.
    :param options: from SESSION CREATE; a private key is ``***``.
    """

    id: str
    destination: str
    options: dict[str, str]


class Fault:
    """A fault for the next few attempts; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._result = ""

    def set(self, count: int, result: str) -> None:
        """Let the next ``count`` attempts end with ``result``; replaces an earlier setting."""
        with self._lock:
            self._left, self._result = count, result

    def take(self) -> str:
        """Return the fault of this attempt; empty for none."""
        with self._lock:
            if self._left <= 0:
                return ""
            self._left -= 1
            return self._result


def version(text: str) -> tuple[int, ...]:
    """A version as numbers; empty if it is none."""
    return tuple(map(int, text.split("."))) if _VERSION.fullmatch(text) else ()


def masked(message: Message) -> dict[str, str]:
    """The options of a command, without what is secret."""
    private = {"PASSWORD", "PRIV"}
    if message.words[:1] == ("SESSION",) and message.options.get("DESTINATION") != "TRANSIENT":
        private.add("DESTINATION")
    return {key: "***" if key.upper() in private else value for key, value in message.options.items()}
