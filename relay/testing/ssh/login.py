"""Logins at the embedded SSH server (RFC 4252), and the state that its connections share."""

from __future__ import annotations

import base64
import hmac
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.common import cMSG_DISCONNECT

KNOWN = ("publickey", "password", "keyboard-interactive")
_PROTOCOL_ERROR = 2  # SSH_DISCONNECT_PROTOCOL_ERROR; RFC 4253, section 11.1
FAILED, PASSED, PARTIAL = paramiko.AUTH_FAILED, paramiko.AUTH_SUCCESSFUL, paramiko.AUTH_PARTIALLY_SUCCESSFUL


@dataclass(frozen=True, slots=True)
class Rules:
    """The users of a server and their credentials."""

    users: Mapping[str, str | None]
    keys: frozenset[bytes]
    questions: tuple[tuple[str, str], ...]
    methods: tuple[tuple[str, ...], ...]
    banner: str

    @classmethod
    def made(
        cls,
        users: Mapping[str, str | None],
        keys: Iterable[paramiko.PKey | str],
        questions: Sequence[tuple[str, str]],
        methods: Sequence[str] | None,
        banner: str,
    ) -> Rules:
        """Make the rules from the arguments of :class:`SSHServer`.

        :raises ValueError: if a method is unknown, or there is no user.
        """
        if not users:
            raise ValueError("users: expected at least one")
        if methods is None:
            given = {"password": any(users.values()), "keyboard-interactive": bool(questions)}
            # Only what can succeed is offered: a client prompts its user for every method in the list.
            methods = ["publickey", *(name for name, there in given.items() if there)]
        lists = tuple(tuple(one.split(",")) for one in methods)
        unknown = {name for steps in lists for name in steps} - {*KNOWN}
        if unknown or not lists:
            raise ValueError(
                f"methods: expected one or more of {', '.join(KNOWN)}, separated by commas, got {methods!r}"
            )
        return cls(users, frozenset(map(public_blob, keys)), tuple(questions), lists, banner)


class State:
    """Plain data that all connections of a server share: permissions, faults and counters.

    :param permit: returns whether clients may connect to a target.
    :param forwarding: the allowed directions (``AllowTcpForwarding`` in sshd_config(5)).
    :param max_channels: the most channels of one connection.
    :param rules: the users and their credentials.
    :param commands: returns whether the server runs a command; ``None`` to run none.
    :param strict: whether a second request for the login's service ends the connection.
    """

    def __init__(
        self,
        permit: Callable[[str], object],
        forwarding: bool | str,
        max_channels: int,
        rules: Rules,
        commands: Callable[[str], object] | None,
        strict: bool,
    ) -> None:
        self.permit = permit
        self.commands = commands
        self.forwarding = forwarding
        self.max_channels = max_channels
        self.rules = rules
        self.strict = strict
        self.delay = 0.0
        self.refusing = False
        self.frozen = False  # new connections get no response
        self.lock = threading.Lock()
        self.logins = 0
        self.opened = 0
        self.refused = 0
        self.attempts: deque[tuple[str, str]] = deque(maxlen=1000)

    def tried(self, user: str, method: str) -> None:
        """Record that a client has sent a credential, or asked whether a key is accepted."""
        self.attempts.append((user, method))

    def logged_in(self, user: str) -> None:
        """Count a client that has passed every step."""
        with self.lock:
            self.logins += 1

    def count(self, opened: bool) -> None:
        """Count a channel that was opened or refused."""
        with self.lock:
            self.opened += opened
            self.refused += not opened

    def allows(self, direction: str) -> bool:
        """Return whether clients may forward in a direction, ``local`` or ``remote``."""
        return self.forwarding in (True, direction) and not self.refusing


class Login(paramiko.ServerInterface):  # type: ignore[misc]
    """The login of one client; paramiko calls it on the connection's thread.

    :param state: the state of the server.
    """

    def __init__(self, state: State) -> None:
        self._rules = state.rules
        self._state = state
        self._done: tuple[str, ...] = ()
        self._user = ""

    def get_allowed_auths(self, username: str) -> str:
        """Return the methods of the next step."""
        return ",".join(sorted(self._next()))

    def get_banner(self) -> tuple[str | None, str | None]:
        """Return the banner and its language."""
        return (self._rules.banner, "en") if self._rules.banner else (None, None)

    def check_auth_none(self, username: str) -> int:
        """Reject ``none``, with which clients request the list of methods (RFC 4252, section 5.2)."""
        self._state.tried(username, "none")
        return int(FAILED)

    def check_auth_password(self, username: str, password: str | bytes) -> int:
        """Compare the password."""
        wanted = self._rules.users.get(username)
        if not self._may(username, "password") or wanted is None or not _same(password, wanted):
            return int(FAILED)
        return self._passed("password")

    def check_auth_publickey(self, username: str, key: Any) -> int:
        """Return whether a key is accepted. The client has proved to own it only when its signature is verified."""
        if not self._may(username, "publickey") or key.asbytes() not in self._rules.keys:
            return int(FAILED)
        # Counted only with the signature: the answer to a mere offer must not move the login on by a step.
        key.verify_ssh_sig = self._verifier(key.verify_ssh_sig)
        return int(PASSED if (*self._done, "publickey") in self._rules.methods else PARTIAL)

    def _verifier(self, verify: Callable[[bytes, Any], bool]) -> Callable[[bytes, Any], bool]:
        # paramiko calls this server for an offer and for the signed request, and does not distinguish them.
        def verified(data: bytes, signature: Any) -> bool:
            good = verify(data, signature)
            if good:
                self._passed("publickey")
            return good

        return verified

    def check_auth_interactive(self, username: str, submethods: str) -> Any:
        """Send the questions (RFC 4256)."""
        if not self._may(username, "keyboard-interactive"):
            return FAILED
        query = paramiko.InteractiveQuery("", "")
        for question, _ in self._rules.questions:
            query.add_prompt(question, echo=False)
        return query

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        """Compare the answers; they count only after questions."""
        wanted = [answer for _, answer in self._rules.questions]
        right = len(responses) == len(wanted) and all(map(_same, responses, wanted))
        if not right or "keyboard-interactive" not in self._next() or self._user not in self._rules.users:
            return int(FAILED)
        return self._passed("keyboard-interactive")

    def _may(self, user: str, method: str) -> bool:
        self._state.tried(user, method)
        self._user = user
        return user in self._rules.users and method in self._next()

    def _next(self) -> set[str]:
        """Return the steps that continue one of the lists."""
        done = len(self._done)
        return {steps[done] for steps in self._rules.methods if len(steps) > done and steps[:done] == self._done}

    def _passed(self, method: str) -> int:
        self._done = (*self._done, method)
        if self._done not in self._rules.methods:
            return int(PARTIAL)
        self._state.logged_in(self._user)
        return int(PASSED)


class LoginHandler(AuthHandler):  # type: ignore[misc]
    """The messages of one client's login.

    :param transport: the connection.
    :param strict: whether a second request for the service ends the connection; paramiko itself accepts any number.
    """

    def __init__(self, transport: Any, strict: bool) -> None:
        super().__init__(transport)
        self._strict = strict
        self._requests = 0

    def _parse_service_request(self, m: Any) -> None:
        """Handle a request for the service (RFC 4253, section 10)."""
        self._requests += 1
        if self._strict and self._requests > 1:
            problem = "the service has been requested before"
            # As OpenSSH's sshd does, which accepts the request once. A client that asks twice works with paramiko
            # alone.
            self.transport.tell(cMSG_DISCONNECT, _PROTOCOL_ERROR, problem, "en")
            raise paramiko.SSHException(problem)
        super()._parse_service_request(m)


def _same(given: str | bytes, wanted: str) -> bool:
    data = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
    return hmac.compare_digest(data, wanted.encode())


def public_blob(key: paramiko.PKey | str) -> bytes:
    """Return a public key in SSH's encoding (RFC 4253, section 6.6).

    :param key: a key, or a line as in an authorized_keys file without options.
    :raises ValueError: if the line is malformed.
    """
    if not isinstance(key, str):
        return bytes(key.asbytes())
    fields = key.split()
    try:
        return base64.b64decode(fields[1], validate=True)
    except (IndexError, ValueError):
        raise ValueError(f"authorized_keys: expected a line such as 'ssh-ed25519 AAAA…', got {key[:60]!r}") from None
