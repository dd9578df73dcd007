"""Logins of the embedded SSH server: users and their methods (RFC 4252)."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.common import cMSG_DISCONNECT

__all__ = ["Login", "LoginHandler", "Notes", "Rules", "public_blob"]

KNOWN = ("publickey", "password", "keyboard-interactive")
_PROTOCOL_ERROR = 2  # SSH_DISCONNECT_PROTOCOL_ERROR; RFC 4253, section 11.1
FAILED, PASSED, PARTIAL = paramiko.AUTH_FAILED, paramiko.AUTH_SUCCESSFUL, paramiko.AUTH_PARTIALLY_SUCCESSFUL


@dataclass(frozen=True, slots=True)
class Rules:
    """The users of a server, and how they log in."""

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
        """The rules of :class:`SSHServer`'s arguments.

        :raises ValueError: if a method is unknown, or there is no user.
        """
        if not users:
            raise ValueError("users: expected at least one")
        if methods is None:
            given = {"password": any(users.values()), "keyboard-interactive": bool(questions)}
            methods = ["publickey", *(name for name, there in given.items() if there)]
        lists = tuple(tuple(one.split(",")) for one in methods)
        unknown = {name for steps in lists for name in steps} - {*KNOWN}
        if unknown or not lists:
            raise ValueError(f"methods: {methods!r}; each is one or more of {', '.join(KNOWN)}, with commas between")
        return cls(users, frozenset(map(public_blob, keys)), tuple(questions), lists, banner)


class Notes(Protocol):
    """Receives each attempt of a client to log in."""

    def tried(self, user: str, method: str) -> None:
        """A client has sent a credential, or asked whether a key would do."""

    def logged_in(self, user: str) -> None:
        """A client has passed every step."""


class Login(paramiko.ServerInterface):  # type: ignore[misc]
    """The login of one client, asked by paramiko on the connection's thread."""

    def __init__(self, rules: Rules, notes: Notes) -> None:
        self._rules = rules
        self._notes = notes
        self._done: tuple[str, ...] = ()
        self._user = ""

    def get_allowed_auths(self, username: str) -> str:
        """Return the methods of the next step."""
        return ",".join(sorted(self._next()))

    def get_banner(self) -> tuple[str | None, str | None]:
        """Return the banner for clients that have not logged in."""
        return (self._rules.banner, "en") if self._rules.banner else (None, None)

    def check_auth_none(self, username: str) -> int:
        """Reject the method ``none``, with which clients ask for the others (RFC 4252, section 5.2)."""
        self._notes.tried(username, "none")
        return int(FAILED)

    def check_auth_password(self, username: str, password: str | bytes) -> int:
        """Compare the password."""
        wanted = self._rules.users.get(username)
        if not self._may(username, "password") or wanted is None or not _same(password, wanted):
            return int(FAILED)
        return self._passed("password")

    def check_auth_publickey(self, username: str, key: Any) -> int:
        """Check a public key; paramiko verifies the signature, which proves that the client owns it."""
        if not self._may(username, "publickey") or key.asbytes() not in self._rules.keys:
            return int(FAILED)
        key.verify_ssh_sig = self._verifier(key.verify_ssh_sig)
        return int(PASSED if (*self._done, "publickey") in self._rules.methods else PARTIAL)

    def _verifier(self, verify: Callable[[bytes, Any], bool]) -> Callable[[bytes, Any], bool]:
        # paramiko asks this server twice, for an offer and for the signed request, and tells neither from the other.
        def verified(data: bytes, signature: Any) -> bool:
            good = verify(data, signature)
            if good:
                self._passed("publickey")
            return good

        return verified

    def check_auth_interactive(self, username: str, submethods: str) -> Any:
        """Ask the questions (RFC 4256)."""
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
        self._notes.tried(user, method)
        self._user = user
        return user in self._rules.users and method in self._next()

    def _next(self) -> set[str]:
        """The steps that bring a client nearer to one of the lists' ends."""
        done = len(self._done)
        return {steps[done] for steps in self._rules.methods if len(steps) > done and steps[:done] == self._done}

    def _passed(self, method: str) -> int:
        self._done = (*self._done, method)
        if self._done not in self._rules.methods:
            return int(PARTIAL)
        self._notes.logged_in(self._user)
        return int(PASSED)


class LoginHandler(AuthHandler):  # type: ignore[misc]
    """The messages of one client's login.

    :param transport: of the connection.
    :param strict: whether a second request for the service ends the connection; paramiko accepts any number of them.
    """

    def __init__(self, transport: Any, strict: bool) -> None:
        super().__init__(transport)
        self._strict = strict
        self._requests = 0

    def _parse_service_request(self, m: Any) -> None:
        """RFC 4253, section 10."""
        self._requests += 1
        if self._strict and self._requests > 1:
            problem = "the service has been requested before"
            self.transport.tell(cMSG_DISCONNECT, _PROTOCOL_ERROR, problem, "en")
            raise paramiko.SSHException(problem)
        super()._parse_service_request(m)


def _same(given: str | bytes, wanted: str) -> bool:
    data = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
    return hmac.compare_digest(data, wanted.encode())


def public_blob(key: paramiko.PKey | str) -> bytes:
    """The public key in SSH's form (RFC 4253, section 6.6).

    :param key: a key, or a line as in an authorized_keys file without options.
    :raises ValueError: if the line is none.
    """
    if not isinstance(key, str):
        return bytes(key.asbytes())
    fields = key.split()
    try:
        return base64.b64decode(fields[1], validate=True)
    except (IndexError, ValueError):
        raise ValueError(f"authorized_keys: {key[:60]!r} is not like 'ssh-ed25519 AAAA…'") from None
