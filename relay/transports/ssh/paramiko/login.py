"""Authentication (RFC 4252) with all available credentials, in as many steps as the server requires; no prompts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.common import cMSG_USERAUTH_INFO_RESPONSE

from ....addresses.printable import one_line
from ....errors import AuthenticationError, CarrierError
from ...credentials import password_of, wants_prompt
from ..connection import CLIENT_HINT, Settings
from ..login_failures import login_rejected
from .keys import Keys, Offer

MOST_ATTEMPTS = 30  # of all kinds; the default limit of a server is six (MaxAuthTries)
KEYS_BEFORE_PASSWORD = 4  # so that a password is among the six
LIKELY_LIMIT = 5  # rejections after which a connection that ends without a reason has hit the limit
MOST_QUESTIONS = 32  # in one round, and rounds
LONGEST_SHOWN = 200  # characters of a server's text

_Answer = TypeVar("_Answer")

_CHECK_INTERVAL = 0.1  # seconds; paramiko reports the end of the connection in no other way
_NO_MORE_METHODS = 14  # SSH_DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE; RFC 4253, section 11.1
_HINTS = {"gssapi-with-mic": "GSSAPI", "hostbased": "host-based login"}


def authenticate(transport: paramiko.Transport, settings: Settings) -> dict[str, Sequence[str]]:
    """Log in over a connection whose host key has been verified. Blocks.

    A caller with a deadline closes the transport from another thread; this function then raises within 0.1 s, also
    while it waits for one of the caller's callables. Each call of a callable has its own thread.

    :param transport: the transport, after its key exchange.
    :param settings: the user and the credentials.
    :returns: ``offered`` methods of the server, and the credentials that it has ``rejected`` and ``accepted``.
    :raises AuthenticationError: if the server accepts none of the credentials. The one line contains the methods of
        the server, the rejected and the unusable credentials, and a remedy.
    :raises CarrierError: if the connection was lost meanwhile.

    Source: RFC 4252; RFC 4256 (keyboard-interactive); RFC 8332 (RSA with SHA-2). The order is: configured keys, other
    keys of the agent, password, keyboard-interactive; the last two in the reverse order for a callable that takes the
    question.
    """
    login = _Login(transport, settings)
    try:
        login.run()
    finally:
        login.keys.close()
    *rejected, last = login.tried
    return {"offered": login.offered, "rejected": rejected, "accepted": [*login.accepted, last]}


class _Login:
    """One login in progress."""

    def __init__(self, transport: paramiko.Transport, settings: Settings) -> None:
        self.transport = transport
        self.settings = settings
        self.offered: Sequence[str] = ()  # the methods that the server accepts now
        self.tried: list[str] = []
        self.accepted: list[str] = []  # steps that the server accepted while it required more
        self.notes: list[str] = []  # credentials that were unusable, with the reason
        self.secrets = Secrets(settings, transport.is_active)
        self.keys = Keys(settings, self.notes.append, self.secrets.patiently)
        self.handler = _Handler(transport)
        self.goodbye = _Goodbye(transport)
        self.left_unanswered = False  # a question of the server

    def run(self) -> None:
        # A server may let the user in without a credential; else its reply lists what it accepts, which saves attempts.
        if self._attempt("none", self._ask_for_methods):
            return
        self.tried.clear()  # every client begins with that request
        steps: dict[str, Iterator[tuple[str, Callable[[], Any]]]] = {"publickey": self._with_keys()}
        if self.secrets.has_password:
            steps |= {"password": self._with_password(), "keyboard-interactive": self._with_answers()}
        order = ("publickey", "keyboard-interactive", "password") if self.secrets.asks else tuple(steps)
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
        """Try one credential and remember the methods that the server accepts next. Return whether it was the last."""
        self.tried.append(name)
        try:
            further = call()
        except (AuthenticationError, CarrierError):
            raise
        except paramiko.BadAuthenticationType as refusal:
            self.offered = _methods(refusal.allowed_types)
            return False
        except (paramiko.SSHException, EOFError, OSError, ValueError) as error:
            self._check_alive(error)  # the connection is alive, so it is a rejection
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
        most = KEYS_BEFORE_PASSWORD if self.secrets.has_password else None
        for offer in itertools.islice(filter(self._can_sign, self.keys), most):
            yield offer.text, partial(self._offer, offer)
            # Known after the attempt, for which the key was asked for a signature.
            if offer.problem:
                self.notes.append(f"{offer.where} gave no signature: {_one_line(offer.problem)}")

    def _offer(self, offer: Offer) -> Any:
        self.secrets.patiently(partial(self.handler.send_request, "publickey", self.settings.user, key=offer))
        return self.handler.wait()

    def _can_sign(self, offer: Offer) -> bool:
        """Return whether both sides have a signature algorithm for a key; without one paramiko ends the connection."""
        if "rsa" not in offer.get_name():
            return True
        taken = self.transport.server_extensions.get("server-sig-algs", b"")
        names = (taken.decode("ascii", "replace") if isinstance(taken, bytes) else taken).split(",")
        if taken and not set(names) & {"rsa-sha2-256", "rsa-sha2-512"}:
            self.notes.append(f"{offer.where} was not tried: the server accepts no RSA signature with SHA-2")
            return False
        return True

    def _with_password(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "password", partial(self._send_password, _encoded(self.secrets.password()))

    def _send_password(self, word: bytes) -> Any:
        self.handler.send_request("password", self.settings.user, password=word)
        return self.handler.wait()

    def _with_answers(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "keyboard-interactive", _Answers(self).run

    def _check_alive(self, error: Exception) -> None:
        if self.transport.is_active():
            return
        said = self.goodbye.text
        refused = len(self.tried) - 1
        if "authentication failures" in said or self.goodbye.code == _NO_MORE_METHODS:
            self._fail(f": {said}")
        # sshd says it; other servers only close, and "too many keys" is then the likeliest reason.
        if not said and refused >= LIKELY_LIMIT:
            self._fail(" without a reason")
        reason = f"the server says: {said}" if said else _one_line(str(error) or type(error).__name__)
        raise CarrierError(f"{self.settings.name}: the connection was lost during the login: {reason}") from error

    def _fail(self, end: str = "") -> NoReturn:
        is_wrong = "password" in self.tried or ("keyboard-interactive" in self.tried and not self.left_unanswered)
        others = [text for name, text in _HINTS.items() if name in self.offered]
        raise login_rejected(
            self.settings,
            self.offered,
            self.tried,
            accepted=self.accepted,
            end=end,
            notes=self.notes,
            is_wrong=is_wrong,
            others=[f"{CLIENT_HINT} supports {' and '.join(others)}"] if others else [],
            banner=_one_line(self.handler.banner or ""),
        )


class _Answers:
    """Answers to the questions of the server (keyboard-interactive, RFC 4256).

    A callable with a parameter gets every question. A password as text answers only the first question whose answer is
    hidden: a later one may ask for a code, or for a new password.
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
            raise AuthenticationError(f"{self._login.settings.name}: the server asks too many questions")
        return [_encoded(self._one(_one_line(text), shown)) for text, shown in questions]

    def _one(self, question: str, shown: bool) -> str:
        if self._login.secrets.asks:
            return self._login.secrets.answer(f"{question} ")
        if shown or self._spent:
            self._login.left_unanswered = True
            self._login.notes.append(f"the server asks {question!r}; set password to a callable to answer it")
            return ""
        self._spent = True
        return self._login.secrets.answer(question)


class Secrets:
    """The secrets of one login. Each call of the user's code has its own thread.

    :param settings: the user and the credentials.
    :param is_active: returns whether the connection is up.
    """

    def __init__(self, settings: Settings, is_active: Callable[[], bool]) -> None:
        self._settings = settings
        self._is_active = is_active
        self._text: str | None = None
        self.has_password = settings.server.has_password
        self.asks = wants_prompt(settings.server.password)
        """Whether the password is a callable that takes the question."""

    def password(self) -> str:
        """Return the password; a callable without parameters is called once.

        :raises CarrierError: if the connection was lost meanwhile.
        """
        if self._text is None:
            self._text = self._ask(f"{self._settings.user}@{self._settings.hostname}'s password: ")
        return self._text

    def answer(self, question: str) -> str:
        """Return the answer to a question of the server.

        :raises CarrierError: if the connection was lost meanwhile.
        """
        return self._ask(question) if self.asks else self.password()

    def _ask(self, question: str) -> str:
        return self.patiently(partial(password_of, self._settings.server, question)) or ""

    def patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """Call a function that may block (the caller's code, an agent); stop waiting when the connection is lost.

        :raises CarrierError: if the connection was lost meanwhile, or the system has no thread left.
        """
        answered: list[_Answer | BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                answered.append(ask())
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                answered.append(error)
            done.set()

        try:
            # A daemon: a question that stays unanswered must not hold up the exit.
            threading.Thread(target=work, name="relay ssh secret", daemon=True).start()
        except RuntimeError as error:
            raise CarrierError(f"{self._settings.name}: {error}") from error
        while not done.wait(_CHECK_INTERVAL):
            if not self._is_active():
                raise CarrierError(f"{self._settings.name}: the connection was lost while relay waited for a secret")
        (answer,) = answered
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Handler(AuthHandler):  # type: ignore[misc]
    """All attempts of one login, after one request for the service (RFC 4253, section 10).

    paramiko's own handler makes one attempt and requests the service for each, at which servers in Go, Erlang and
    Python end the connection. It also answers questions itself, on the thread that reads; this class stores them for
    the thread that logs in.
    """

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self.questions: list[tuple[bytes, bool]] | None = None
        self.submethods = ""
        self._is_accepted = False  # the service
        transport.auth_handler = self

    def send_request(self, method: str, user: str, key: Offer | None = None, password: bytes | None = None) -> None:
        """Send one request of the login, the first as soon as the server has accepted the service.

        :param method: its name in RFC 4252. The first one must not need a signature, because signing may block.
        :param user: the user name.
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
        """Wait for the server's reply or its questions, as paramiko's ``auth_*`` methods do."""
        return self.wait_for_response(self.auth_event)

    def forget_password(self) -> None:
        """Remove the password from memory, where it would stay as long as the connection."""
        self.password = None

    def _parse_service_accept(self, m: Any) -> None:
        """Handle RFC 4253, section 10. paramiko replies with a login request, so only the first message counts."""
        if not self._is_accepted:
            self._is_accepted = True
            super()._parse_service_accept(m)

    def _parse_userauth_info_request(self, m: Any) -> None:
        """Store the questions (RFC 4256, section 3.2)."""
        if self.auth_method != "keyboard-interactive":
            raise paramiko.SSHException("it asks a question without a request")
        m.get_binary(), m.get_binary(), m.get_binary()  # name, instruction, language
        count = m.get_int()
        if count > MOST_QUESTIONS:
            raise paramiko.SSHException(f"it asks {count} questions at once")
        self.questions = [(m.get_binary(), m.get_boolean()) for _ in range(count)]
        # The thread that logs in answers them: this one reads for all streams, and answers may block.
        self.auth_event.set()

    def reply(self, answers: Sequence[bytes]) -> None:
        """Send the answers (RFC 4256, section 3.4)."""
        self.auth_event = threading.Event()
        message = paramiko.Message()
        message.add_byte(cMSG_USERAUTH_INFO_RESPONSE)
        message.add_int(len(answers))
        for answer in answers:
            message.add_string(answer)
        self.transport._send_message(message)


class _Goodbye:
    """The server's DISCONNECT message, which paramiko only logs."""

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
    """Return a message that makes paramiko send the next login request: the server has accepted the service."""
    message = paramiko.Message()
    message.add_string("ssh-userauth")
    message.rewind()
    return message


def _methods(names: object) -> tuple[str, ...]:
    """Return the server's list of methods, printable and bounded."""
    return tuple(_one_line(str(name))[:40] for name in names[:20]) if isinstance(names, list) else ()


def _encoded(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape")


def _one_line(text: str | bytes) -> str:
    """Return a text of the peer as one printable line of bounded length."""
    return one_line(text, LONGEST_SHOWN)
