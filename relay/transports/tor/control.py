"""The control connection to tor: its login, and the onion service that lives as long as it (control-spec)."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import secrets
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...access.regular_file import open_regular
from ...addresses.options import Secret
from ...addresses.tor import TorListen, control_of
from ...addresses.values import TCPAddress
from ...carriers.link import Lost
from ...errors import AuthenticationError, CarrierError, ConnectError, RelayError, SAMError
from ...eventloop.background import IOThread
from ...eventloop.poller import IN
from ...streams.promise import Cancel, Cancellation
from ...streams.stream import Stream
from ..credentials import secret_of
from ..i2p.key_file import KeyFile, path_of_session
from ..tcp import tcp
from ..unix import unix
from .replies import Reply, ReplyError, ReplyReader, quoted, words_of

_CHUNK = 4096  # bytes read at once
_ANSWER = 30.0  # seconds for one reply
_COOKIE = 32  # bytes; control-spec, section 3.24
_NONCE = 32  # bytes
_HEAD = b"== ed25519v1-secret: type0 ==\0\0\0"  # of tor's file hs_ed25519_secret_key
_KEY = 64  # bytes of an expanded key
_SERVER = b"Tor safe cookie authentication server-to-controller hash"
_CONTROLLER = b"Tor safe cookie authentication controller-to-server hash"
WHERE = (
    "check that tor runs on this machine with a control port: ControlPort 9051 and CookieAuthentication 1 in torrc, or "
    "control=/PATH for its ControlSocket"
)


@dataclass(frozen=True, slots=True)
class OnionKey:
    """The private key of an onion service, as tor stores it.

    :param secret: the expanded Ed25519 key.
    """

    secret: bytes

    @classmethod
    def generate(cls) -> OnionKey:
        """Return a new key (RFC 8032, section 5.1.5)."""
        digest = bytearray(hashlib.sha512(secrets.token_bytes(32)).digest())
        digest[0] &= 248
        digest[31] = digest[31] & 63 | 64
        return cls(bytes(digest))

    @classmethod
    def parse(cls, data: bytes) -> OnionKey:
        """Return the key in the bytes of a file.

        :raises ValueError: if there is none.
        """
        if len(data) != len(_HEAD) + _KEY or not data.startswith(_HEAD):
            raise ValueError("its form is not that of hs_ed25519_secret_key")
        return cls(data[len(_HEAD) :])

    @property
    def data(self) -> bytes:
        """The bytes of its file."""
        return _HEAD + self.secret

    def __repr__(self) -> str:
        return "<OnionKey>"


class _Conversation:
    """Commands and replies, in a thread that may block.

    :param name: in errors.
    :param stream: to the control port, non-blocking.
    :param deadline: monotonic seconds.
    :param cancel: ends each wait.
    """

    def __init__(self, name: str, stream: Stream, deadline: float, cancel: Cancel) -> None:
        self._name = name
        self._stream = stream
        self._deadline = deadline
        self._cancel = cancel
        self._reader = ReplyReader()

    def ask(self, command: str) -> Reply:
        """Send a command, and return the reply.

        :raises ConnectError: if there is none.
        """
        until = min(self._deadline, time.monotonic() + _ANSWER)
        try:
            self._stream.socket.send(f"{command}\r\n".encode())
            while True:
                self._wait(until)
                data = self._stream.socket.recv(_CHUNK)
                if not data:
                    raise ConnectError(f"{self._name}: tor closed the control connection; look at its log")
                for reply in self._reader.feed(data):
                    if reply.status < 600:  # else an event, which relay does not ask for
                        return reply
        except ReplyError as error:
            raise ConnectError(f"{self._name}: this is no control port of tor ({error}); check the port") from None
        except ConnectError:
            raise
        except OSError as error:
            raise ConnectError(f"{self._name}: the control connection was lost ({error.strerror or error})") from error

    def _wait(self, until: float) -> None:
        poller = select.poll()
        poller.register(self._stream.fileno(), select.POLLIN)
        poller.register(self._cancel.fileno(), select.POLLIN)
        if not poller.poll(max(0.0, until - time.monotonic()) * 1000) or self._cancel.is_set():
            raise ConnectError(f"{self._name}: tor's control port does not answer in time", reason="connect_timeout")


class OnionService:
    """An onion service that is up; see :class:`relay.carriers.link.Link`. It ends with its control connection.

    :param name: of the carrier, in errors.
    :param stream: the control connection.
    :param host: the address ``….onion``.
    :param user: the user ID of tor; ``None`` if it is not known.
    :param lost: called once with the error if it ends before :meth:`close`.
    """

    streams = 0  # they do not need the control connection
    rtt = None
    is_doubtful = False
    router = ""

    def __init__(self, name: str, stream: Stream, host: str, user: int | None, lost: Lost) -> None:
        self.host = host
        self.user = user
        self._name = name
        self._stream = stream
        self._lost: Lost | None = lost
        self._lock = threading.Lock()  # for the above
        self._error: CarrierError | None = None
        self._io_thread = IOThread.acquire(self)
        loop = self._io_thread.loop
        loop.call(functools.partial(loop.watch, stream.fileno(), IN, self._on_event))

    def failure(self) -> CarrierError | None:
        """Return why it was lost; ``None`` while it is up, or if it was closed."""
        return self._error

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` at once: streams outlive the control connection."""
        call()

    def confirm(self, done: Callable[[], object]) -> None:
        """Call ``done`` at once: tor has answered."""
        done()

    def check(self) -> None:
        """Do nothing: a local connection says itself when it ends."""

    def probe(self, why: str) -> None:
        """Do nothing: no change of the network cuts a connection within this machine."""

    def close(self) -> None:
        """Close the control connection, which ends the service. Idempotent."""
        self._end(None)

    def abandon(self) -> None:
        """Only close the descriptor, in a forked child."""
        self._stream.socket.close()

    def crashed(self, now: float) -> None:
        """Give it up after a bug in a handler."""
        self._end(CarrierError(f"{self._name}: a bug in relay; the log has it"))

    def _on_event(self, event: int, now: float) -> None:
        try:
            # What tor sends unasked says nothing that relay needs.
            if self._stream.socket.recv(_CHUNK):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(CarrierError(f"{self._name}: tor has closed the control connection; it may have stopped"))

    def _end(self, error: CarrierError | None) -> None:
        with self._lock:
            lost, self._lost = self._lost, None
            if lost is None:
                return
            self._error = error
        self._io_thread.loop.call(self._close)
        if error is not None:
            lost(error)

    def _close(self) -> None:
        self._io_thread.loop.forget(self._stream.fileno())
        self._stream.close()
        self._io_thread.release(self)

    def __repr__(self) -> str:
        return f"<onion service {self.host}>"


class ControlConnector:
    """Publishes the service, each time that its carrier asks for it; see :class:`relay.carriers.link.Connector`.

    :param name: of the carrier, in errors.
    :param place: the address to listen on.
    :param target: the port of this machine to which tor connects.
    """

    def __init__(self, name: str, place: TorListen, target: TCPAddress) -> None:
        self._name = name
        self._place = place
        self._target = target
        self._file: KeyFile[OnionKey] | None = None
        self._key: OnionKey | None = None

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> OnionService:
        """Log in at the control port, and publish the service."""
        key = self._open_key()
        stream = self._dial(deadline, cancel)
        try:
            ask = _Conversation(self._name, stream, deadline, cancel).ask
            log_in(self._name, self._place, ask)
            user = ask("GETINFO process/uid").value("process/uid")
            host = self._publish(ask, key)
            return OnionService(self._name, stream, host, int(user) if user and user.isdigit() else None, lost)
        except BaseException:
            stream.close()
            raise

    def try_login(self, deadline: float) -> None:
        """Log in, and publish nothing.

        :param deadline: monotonic seconds.
        :raises OSError: if that fails, as for :func:`log_in`.
        """
        cancel = Cancellation()
        try:
            with self._dial(deadline, cancel) as stream:
                log_in(self._name, self._place, _Conversation(self._name, stream, deadline, cancel).ask)
        finally:
            cancel.close()

    def alternative(self, error: Exception) -> str:
        """Return that there is none."""
        return ""

    def close(self) -> None:
        """Release the key."""
        if self._file is not None:
            self._file.close()

    def _dial(self, deadline: float, cancel: Cancel) -> Stream:
        where = control_of(self._place)
        dialer = tcp(where.host, where.port) if isinstance(where, TCPAddress) else unix(where.path)
        try:
            return dialer(deadline=deadline, cancel=cancel)
        except ConnectError as error:
            explained = ConnectError(f"{self._name}: {error.args[0].partition('; ')[0]}; {WHERE}", reason=error.reason)
            explained.advice = f"; {WHERE}"
            raise explained from error

    def _open_key(self) -> OnionKey:
        """Return the key, whose file stays locked until :meth:`close`."""
        place = self._place
        if self._key is None and place.keys is None and not place.session:
            self._key = OnionKey.generate()
        elif self._key is None:
            try:
                path = place.keys if place.keys is not None else path_of_session(place.session, "tor")
                self._file = KeyFile.open(path, OnionKey.generate, OnionKey.parse)
            except SAMError as error:
                if "in use" in str(error):  # by a process that may be about to end
                    raise ConnectError(str(error)) from None
                raise RelayError(str(error)) from None
            self._key = self._file.key
        assert self._key is not None
        return self._key

    def _publish(self, ask: Callable[[str], Reply], key: OnionKey) -> str:
        blob = base64.b64encode(key.secret).decode()
        reply = ask(f"ADD_ONION ED25519-V3:{blob} Flags=DiscardPK Port={self._place.port},{self._target}")
        if reply.status == 550 and "collision" in reply.text:
            raise ConnectError(f"{self._name}: this tor publishes the onion service already; end the other program")
        if not reply.is_ok:
            raise RelayError(f"{self._name}: tor does not publish the onion service ({reply.text}); look at its log")
        service = reply.value("ServiceID") or ""
        if not (service.isascii() and service.isalnum() and len(service) == 56):
            raise ConnectError(f"{self._name}: tor does not name the onion service; update tor")
        return f"{service.lower()}.onion"


def log_in(name: str, place: TorListen, ask: Callable[[str], Reply]) -> None:
    """Log in by what tor accepts: a password, nothing, or the file with its cookie.

    :param name: in errors.
    :param place: has the password.
    :param ask: sends a command, and returns the reply.
    :raises AuthenticationError: if tor rejects the login, or its cookie cannot be read.
    :raises ConnectError: if tor does not answer, or what answers does not have its cookie.

    Source: control-spec, sections 3.5, 3.21 and 3.24.
    """
    info = ask("PROTOCOLINFO 1")
    if not info.is_ok:
        raise ConnectError(f"{name}: this is no control port of tor (it says {info.text}); check the port")
    auth = next((words_of(line[5:]) for line in info.lines if line.startswith("AUTH ")), {})
    methods = auth.get("METHODS", "").split(",")
    password = secret_of(place, "password", f"password of {name}: ")
    if password is not None:
        _check(name, ask(f"AUTHENTICATE {quoted(_sendable(name, password))}"), "check the password")
    elif "NULL" in methods:
        _check(name, ask("AUTHENTICATE"), "look at its log")
    elif "SAFECOOKIE" in methods or "COOKIE" in methods:
        path = auth.get("COOKIEFILE", "")
        cookie = _cookie(name, path)
        proof = _proof(name, path, cookie, ask) if "SAFECOOKIE" in methods else cookie
        _check(name, ask(f"AUTHENTICATE {proof.hex()}"), "look at its log")
    else:
        raise AuthenticationError(f"{name}: tor wants a password; set password_file= or password_env=")


def _check(name: str, reply: Reply, advice: str) -> None:
    if not reply.is_ok:
        raise AuthenticationError(f"{name}: tor rejects the login ({reply.text}); {advice}")


def _sendable(name: str, password: Secret) -> str:
    if not isinstance(password, str) or "\r" in password or "\n" in password:
        raise AuthenticationError(f"{name}: the password holds the end of a line; tor takes none")
    return password


def _cookie(name: str, path: str) -> bytes:
    """Return the cookie; a file of another length is none, and must not be sent (control-spec, section 5.1)."""
    try:
        with open_regular(path) as file:
            data = file.read(_COOKIE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        advice = "join tor's group (Debian: debian-tor), or set a password"
        raise AuthenticationError(f"{name}: cannot read tor's cookie {path or '(no file)'}: {why}; {advice}") from None
    if len(data) != _COOKIE:
        raise AuthenticationError(f"{name}: {path} is not a cookie of tor; check the port")
    return data


def _proof(name: str, path: str, cookie: bytes, ask: Callable[[str], Reply]) -> bytes:
    """Return what shows tor that relay has the cookie, once tor has shown that it has it."""
    nonce = secrets.token_bytes(_NONCE)
    reply = ask(f"AUTHCHALLENGE SAFECOOKIE {nonce.hex()}")
    words = words_of(reply.lines[-1])
    try:
        theirs, server_nonce = (bytes.fromhex(words.get(key, "")) for key in ("SERVERHASH", "SERVERNONCE"))
    except ValueError:
        theirs = server_nonce = b""
    proven = cookie + nonce + server_nonce
    if not reply.is_ok or not hmac.compare_digest(theirs, hmac.digest(_SERVER, proven, "sha256")):
        raise ConnectError(f"{name}: what answers there does not have the cookie in {path}; check that it is tor")
    return hmac.digest(_CONTROLLER, proven, "sha256")
