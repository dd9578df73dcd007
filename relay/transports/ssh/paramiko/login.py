"""Logging in (RFC 4252): with every credential there is, in as many steps as the server wants, and never a prompt."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.common import cMSG_USERAUTH_INFO_RESPONSE

from ....errors import AuthenticationError, CarrierError
from ...credentials import password_of, wants_prompt
from ..config.algorithms import CLIENT_HINT
from ..config.identities import NO_PASSPHRASE, WRONG_PASSWORD
from ..connection import Settings
from .keys import Keys, Offer

__all__ = ["authenticate"]

_Answer = TypeVar("_Answer")

MOST_ATTEMPTS = 30  # of all kinds; a server allows six unless told otherwise (MaxAuthTries)
KEYS_BEFORE_PASSWORD = 4  # so that a password has its turn within the six
LIKELY_LIMIT = 5  # refusals after which a server that goes away without a word has had enough
MOST_QUESTIONS = 32  # at once, and rounds of them
LONGEST_SHOWN = 200  # characters of what the server says

_LOOK = 0.1  # seconds between two looks at the connection; paramiko itself has no other way to tell
_NO_MORE_METHODS = 14  # SSH_DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE; RFC 4253, section 11.1
_HINTS = {"gssapi-with-mic": "GSSAPI", "hostbased": "host-based login"}


def authenticate(transport: paramiko.Transport, settings: Settings) -> None:
    """Log in over a connection whose host key has been verified. Blocks.

    Whoever has a deadline closes the transport from another thread; this then raises within a tenth of a second, also
    while it waits for one of the caller's callables. Each call of these has a thread of its own.

    :param transport: after its key exchange.
    :param settings: who logs in, and with what.
    :raises AuthenticationError: in one line, if the server takes none of the credentials: what it offers, what was
        tried, what could not be, and what to do.
    :raises CarrierError: if the connection was lost meanwhile.

    Source: RFC 4252; RFC 4256 (keyboard-interactive); RFC 8332 (RSA with SHA-2). The order is: keys that were named,
    other keys of the agent, password, keyboard-interactive; the last two the other way round for a callable that takes
    the question.
    """
    login = _Login(transport, settings)
    try:
        login.run()
    finally:
        login.keys.close()


class _Login:
    """One login while it goes on."""

    def __init__(self, transport: paramiko.Transport, settings: Settings) -> None:
        self.transport = transport
        self.settings = settings
        self.offered: Sequence[str] = ()  # the methods that the server takes now
        self.tried: list[str] = []
        self.accepted: list[str] = []  # steps that the server took, and wanted more
        self.notes: list[str] = []  # what could not be tried
        self.keys = Keys(settings, self.notes.append, self.patiently)
        self.handler = _Handler(transport)
        self.goodbye = _Goodbye(transport)
        self.has_password = settings.server.has_password
        self.asks = wants_prompt(settings.server.password)
        self.left_unanswered = False  # a question of the server's
        self._text: str | None = None

    def run(self) -> None:
        if self._attempt("none", self._ask_for_methods):
            return
        self.tried.clear()  # everybody asks that first
        steps: dict[str, Iterator[tuple[str, Callable[[], Any]]]] = {"publickey": self._with_keys()}
        if self.has_password:
            steps |= {"password": self._with_password(), "keyboard-interactive": self._with_answers()}
        order = ("publickey", "keyboard-interactive", "password") if self.asks else tuple(steps)
        for _ in range(MOST_ATTEMPTS):
            step = self._next(steps, order)
            if step is None:
                break
            if self._attempt(*step):
                return
        self._fail()

    def _next(self, steps: dict[str, Iterator[Any]], order: Sequence[str]) -> tuple[str, Callable[[], Any]] | None:
        for method in order:
            if method in self.offered and method in steps:
                step: tuple[str, Callable[[], Any]] | None = next(steps[method], None)
                if step is not None:
                    return step
        return None

    def _attempt(self, name: str, call: Callable[[], Any]) -> bool:
        """Try one credential; returns whether we are in. Learns what the server takes next."""
        self.tried.append(name)
        try:
            further = call()
        except (AuthenticationError, CarrierError):
            raise
        except paramiko.BadAuthenticationType as refusal:
            self.offered = _methods(refusal.allowed_types)
            return False
        except (paramiko.SSHException, EOFError, OSError, ValueError) as error:
            self._check_alive(error)  # else it is a refusal
            return False
        finally:
            self.handler.forget_password()
        if self.transport.is_authenticated():
            return True
        self.offered = _methods(further)
        self.accepted.append(self.tried.pop())
        return False

    def _ask_for_methods(self) -> Any:
        self.handler.send_request("none", self.settings.user)
        return self.handler.wait()

    def _with_keys(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        most = KEYS_BEFORE_PASSWORD if self.has_password else None
        for offer in itertools.islice(filter(self._can_sign, self.keys), most):
            yield offer.text, partial(self._offer, offer)
            if offer.problem:
                self.notes.append(f"{offer.where} gave no signature: {_one_line(offer.problem)}")

    def _offer(self, offer: Offer) -> Any:
        self.patiently(partial(self.handler.send_request, "publickey", self.settings.user, key=offer))
        return self.handler.wait()

    def _can_sign(self, offer: Offer) -> bool:
        """Whether a signature of this key can be agreed on; paramiko ends the connection over one that cannot."""
        if "rsa" not in offer.get_name():
            return True
        taken = self.transport.server_extensions.get("server-sig-algs", b"")
        names = (taken.decode("ascii", "replace") if isinstance(taken, bytes) else taken).split(",")
        if taken and not set(names) & {"rsa-sha2-256", "rsa-sha2-512"}:
            self.notes.append(f"{offer.where} was not tried: the server takes no RSA signature with SHA-2")
            return False
        return True

    def _with_password(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "password", partial(self._send_password, _encoded(self._password()))

    def _send_password(self, word: bytes) -> Any:
        self.handler.send_request("password", self.settings.user, password=word)
        return self.handler.wait()

    def _with_answers(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "keyboard-interactive", _Answers(self).run

    def _password(self) -> str:
        """The password; a callable that takes no argument is called once."""
        if self._text is None:
            self._text = self._ask(f"{self.settings.user}@{self.settings.hostname}'s password: ")
        return self._text

    def answer(self, question: str) -> str:
        """What to answer to a question of the server's."""
        return self._ask(question) if self.asks else self._password()

    def _ask(self, question: str) -> str:
        return self.patiently(partial(password_of, self.settings.server, question)) or ""

    def patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """Call what may take as long as it likes, the caller's code or an agent, for as long as there is a need."""
        answered: list[_Answer | BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                answered.append(ask())
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                answered.append(error)
            done.set()

        try:
            threading.Thread(target=work, name="relay ssh secret", daemon=True).start()
        except RuntimeError as error:
            raise CarrierError(f"{self.settings.name}: {error}") from error
        while not done.wait(_LOOK):
            if not self.transport.is_active():
                raise CarrierError(f"{self.settings.name}: the connection was lost while a secret was waited for")
        (answer,) = answered
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _check_alive(self, error: Exception) -> None:
        if self.transport.is_active():
            return
        said = self.goodbye.text
        refused = len(self.tried) - 1
        if "authentication failures" in said or self.goodbye.code == _NO_MORE_METHODS:
            self._fail(f"the server ended the connection: {said}")
        if not said and refused >= LIKELY_LIMIT:
            self._fail("the server ended the connection without a word")
        reason = f"the server says: {said}" if said else _one_line(str(error) or type(error).__name__)
        raise CarrierError(f"{self.settings.name}: the connection was lost during the login: {reason}") from error

    def _fail(self, end: str = "") -> NoReturn:
        parts = [f"{self.settings.name}: not let in as {self.settings.user}"]
        if self.accepted:
            parts.append(f"accepted, but not enough: {_listed(self.accepted)}")
        parts.append(f"the server takes {_listed(self.offered) or 'nothing'}{' now' if self.accepted else ''}")
        parts.append(f"refused: {_listed(self.tried)}" if self.tried else "there was nothing to try")
        parts += [end] if end else []
        parts += self.notes[:8]
        parts += self._advice()
        parts += [f"its banner: {banner}"] if (banner := _one_line(self.handler.banner or "")) else []
        raise AuthenticationError("; ".join(parts), wants_secret=self._wants_secret())

    def _wants_secret(self) -> bool:
        """Whether a secret that was not given might have helped."""
        asks = not self.has_password and not {"password", "keyboard-interactive"}.isdisjoint(self.offered)
        return asks or any(NO_PASSPHRASE in note for note in self.notes)

    def _advice(self) -> list[str]:
        """What could help, as far as it can be told from here."""
        if self.goodbye.text and len(self.tried) > 1:
            return ["name the right key with keyfile, so that it alone is tried"]
        asked = set(self.offered)
        advice: list[str] = []
        if "password" in self.tried or ("keyboard-interactive" in self.tried and not self.left_unanswered):
            advice.append(WRONG_PASSWORD)
        if "publickey" in asked:
            if any("SHA256:" in name for name in self.tried):
                advice.append("put the public key into its authorized_keys, or name another key with keyfile")
            elif not self.notes:
                advice.append("name a key with keyfile, or load one into the agent")
        if asked & {"password", "keyboard-interactive"} and not self.has_password:
            advice.append("give password, password_file or password_env")
        others = [text for name, text in _HINTS.items() if name in asked]
        if others and not advice:
            advice.append(f"{CLIENT_HINT} can do {' and '.join(others)}")
        return advice


class _Answers:
    """Answers to what the server asks (keyboard-interactive, RFC 4256).

    A callable that takes an argument is asked everything. A password as text is the answer to one question that is not
    to be shown, and to nothing else: what comes after it may ask for a code, or for a new password.
    """

    def __init__(self, login: _Login) -> None:
        self._login = login
        self._rounds = 0
        self._spent = False

    def run(self) -> Any:
        handler = self._login.handler
        handler.send_request("keyboard-interactive", self._login.settings.user)
        while True:
            try:
                return handler.wait()
            except paramiko.AuthenticationException:
                questions, handler.questions = handler.questions, None
                if questions is None or not self._login.transport.is_active():
                    raise
            handler.reply(self._answers(questions))

    def _answers(self, questions: Sequence[tuple[bytes, bool]]) -> list[bytes]:
        self._rounds += 1
        if self._rounds > MOST_QUESTIONS:
            raise AuthenticationError(f"{self._login.settings.name}: the server asks questions without end")
        return [_encoded(self._one(_one_line(text), shown)) for text, shown in questions]

    def _one(self, question: str, shown: bool) -> str:
        if self._login.asks:
            return self._login.answer(f"{question} ")
        if shown or self._spent:
            self._login.left_unanswered = True
            self._login.notes.append(f"the server asks {question!r}, which takes a callable as password")
            return ""
        self._spent = True
        return self._login.answer(question)


class _Handler(AuthHandler):  # type: ignore[misc]
    """All attempts of one login, after one request for the service (RFC 4253, section 10).

    paramiko's own handler is made for one attempt and requests the service for each, at which servers in Go, Erlang and
    Python end the connection. It also answers questions by itself, on the thread that reads: here they are kept for the
    thread that logs in.
    """

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self.questions: list[tuple[bytes, bool]] | None = None
        self.submethods = ""
        self._is_accepted = False  # the service
        transport.auth_handler = self

    def send_request(self, method: str, user: str, key: Offer | None = None, password: bytes | None = None) -> None:
        """Send one request of the login, the first as soon as the server has accepted the service.

        :param method: its name in RFC 4252; the first has to be one that makes no signature, which may block.
        :param user: who logs in.
        :param key: for ``publickey``.
        :param password: for ``password``.
        """
        self.auth_event = threading.Event()
        self.auth_method, self.username, self.private_key, self.password = method, user, key, password
        if self._is_accepted:
            super()._parse_service_accept(_service())
        else:
            self._request_auth()

    def wait(self) -> Any:
        """Wait for the server's answer, or for its questions; as paramiko's ``auth_*`` methods do."""
        return self.wait_for_response(self.auth_event)

    def forget_password(self) -> None:
        """It is not to lie about for as long as the connection lives."""
        self.password = None

    def _parse_service_accept(self, m: Any) -> None:
        """RFC 4253, section 10. paramiko answers with the request of the login, so only the first one counts."""
        if not self._is_accepted:
            self._is_accepted = True
            super()._parse_service_accept(m)

    def _parse_userauth_info_request(self, m: Any) -> None:
        """RFC 4256, section 3.2."""
        if self.auth_method != "keyboard-interactive":
            raise paramiko.SSHException("it asks a question that belongs to no request")
        m.get_binary(), m.get_binary(), m.get_binary()  # name, instruction, language
        count = m.get_int()
        if count > MOST_QUESTIONS:
            raise paramiko.SSHException(f"it asks {count} questions at once")
        self.questions = [(m.get_binary(), m.get_boolean()) for _ in range(count)]
        self.auth_event.set()

    def reply(self, answers: Sequence[bytes]) -> None:
        """RFC 4256, section 3.4."""
        self.auth_event = threading.Event()
        message = paramiko.Message()
        message.add_byte(cMSG_USERAUTH_INFO_RESPONSE)
        message.add_int(len(answers))
        for answer in answers:
            message.add_string(answer)
        self.transport._send_message(message)


class _Goodbye:
    """What the server says when it ends the connection, which paramiko only writes into its log."""

    def __init__(self, transport: Any) -> None:
        self.code = 0
        self.text = ""
        self._parse = transport._parse_disconnect
        transport._parse_disconnect = self

    def __call__(self, message: Any) -> None:
        self.code = message.get_int()
        self.text = _one_line(message.get_binary())
        message.rewind()
        self._parse(message)


def _service() -> Any:
    """The server's acceptance of the service, of which paramiko makes the next request."""
    message = paramiko.Message()
    message.add_string("ssh-userauth")
    message.rewind()
    return message


def _methods(names: object) -> tuple[str, ...]:
    """The server's word for what it takes, cut to what can be shown."""
    return tuple(_one_line(str(name))[:40] for name in names[:20]) if isinstance(names, list) else ()


def _encoded(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape")


def _one_line(text: str | bytes) -> str:
    """What another side says, fit for a line of ours."""
    if isinstance(text, bytes):
        text = text[: 4 * LONGEST_SHOWN].decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * LONGEST_SHOWN]).split())
    return line if len(line) <= LONGEST_SHOWN else line[:LONGEST_SHOWN] + "…"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown
