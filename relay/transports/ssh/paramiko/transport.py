"""paramiko's transport over a :class:`Wire`: one thread does everything, and blocks only where the loop waits."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import paramiko
from paramiko.kex_gex import KexGexSHA256

from ....errors import CarrierError
from ....eventloop.loop import Timer
from ....streams import exit_drain
from ..connection import CLIENT_HINT, CLOSED, IncompatibleError, Settings
from .host_keys import ALGORITHMS
from .messages import Handler, printable
from .packets import Packetizer
from .wire import Wire

logger = logging.getLogger("relay.ssh.paramiko")

_exiting = threading.Event()
# When the interpreter exits, paramiko ends every transport that is left. These handlers run before that, because they
# were registered later: first the wait for what was sent, then the other one.
atexit.register(_exiting.set)
exit_drain.run_before_others()

# The default offer, the best first, as far as the installed paramiko has it: no SHA-1 or MD5, no CBC, no group of
# 1024 bits. AES-GCM is by far the fastest; without it, MACs that do not encrypt the length (etm) are better.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
_KEX = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group14-sha256",
    "diffie-hellman-group-exchange-sha256",
)
_HOST_KEYS = tuple(name for names in ALGORITHMS.values() for name in names)

_KEX_TIMEOUT = 30.0  # seconds for an exchange of new keys
_EXTENSIONS = 1024  # in one EXT_INFO; RFC 8308 knows a handful
_LONGEST_OFFER = 8  # names that are shown

# A kind of algorithm in paramiko's error; its name in relay's error, and the field with the server's names. Compression
# is missing: every server supports none (RFC 4253, section 6.2).
_LACKS = {
    "kex": ("key exchange", "kex_algo_list"),
    "host key": ("host key algorithm", "server_key_algo_list"),
    "cipher": ("cipher", "server_encrypt_algo_list"),
    "mac": ("MAC", "server_mac_algo_list"),
}


class _Groups(KexGexSHA256):  # type: ignore[misc]
    """The group exchange with groups that the server chooses (RFC 4419), of at least the size in RFC 8270."""

    min_bits = 2048

    def _parse_kexdh_gex_group(self, m: Any) -> None:
        bits = m.get_mpint().bit_length()
        if bits < self.min_bits:
            raise paramiko.SSHException(
                f"its group for the key exchange has {bits} bits; the minimum is {self.min_bits}"
            )
        m.rewind()
        super()._parse_kexdh_gex_group(m)


def is_exiting() -> bool:
    """Return whether the interpreter exits: a connection that ends now was not lost."""
    return _exiting.is_set()


class Transport(paramiko.Transport):  # type: ignore[misc]
    """An SSH transport whose thread does everything; other threads use the loop's ``call``.

    :param wire: the connection. The transport releases it when its thread ends.
    :param over: called on the transport's thread at its end, before the wire is released.
    """

    _kex_info: ClassVar[dict[str, Any]] = {**paramiko.Transport._kex_info, KexGexSHA256.name: _Groups}

    def __init__(self, wire: Wire, over: Callable[[], object]) -> None:
        super().__init__(wire, packetizer_class=Packetizer)
        self.name = f"relay ssh to {wire.stream.target or 'a server'}"
        self.sendable = True  # no keys are being exchanged
        self.resumed: Callable[[], object] = _nothing  # called after the exchange
        self.packetizer: Packetizer
        self.packetizer.transport = self
        self.wire = wire
        self._over = over
        self._kex_timer = Timer(wire.loop.timers, self._kex_expired)
        self._offered: dict[str, list[str]] = {}  # the algorithms of the server, by field of its last KEXINIT
        self.set_log_channel(logger.name)

    def handle(self, kind: int, handler: Handler) -> None:
        """Register ``handler`` for all messages of this number; it is called on the transport's thread."""
        self.packetizer.handlers[kind] = handler
        self._handler_table[kind] = partial(_handle_message, handler)

    def send(self, payload: bytes) -> None:
        """Send a message; on the transport's thread.

        Allowed while :attr:`sendable`, and for the kinds of RFC 4253, section 7.1.
        """
        self.packetizer.send(payload)

    def run(self) -> None:
        """Run the transport's thread."""
        try:
            super().run()
        finally:
            self.wire.ending = True
            # Before the wire is released: the streams must know their error when their ends are closed.
            self._over()
            self.wire.release()

    @property
    def saved_exception(self) -> Exception | None:
        """The error that has ended the thread.

        An unexpected type of error was caused by a message of the server. It becomes an ``SSHException``, so that it
        counts neither as a rejected credential nor as final.
        """
        return self._saved

    @saved_exception.setter
    def saved_exception(self, error: Exception | None) -> None:
        # paramiko parses what a server sends without checks, so that a wrong message is a KeyError or an IndexError
        # there.
        if not isinstance(error, (paramiko.SSHException, EOFError, OSError, type(None))):
            cause = error
            detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            error = paramiko.SSHException(f"it sent a message that makes no sense ({printable(detail)})")
            error.__cause__ = cause
        self._saved = error

    @property
    def kex(self) -> str:
        """The agreed key exchange: the first one of this side that the server offers (RFC 4253, section 7.1)."""
        theirs = self._offered.get("kex_algo_list", [])
        return next((name for name in self.preferred_kex if name in theirs), "")

    def lacking(self, problem: str) -> str | None:
        """Return the kind of algorithm that the two sides do not share, and the server's offer.

        :param problem: paramiko's error.
        :returns: ``None`` if the server has named no algorithm at all, and so is no SSH server.
        """
        kind, place = next((found for word, found in _LACKS.items() if word in problem.lower()), ("", ""))
        names = [name for name in self._offered.get(place, []) if name]
        if not names:
            return None
        return f"{kind} in common; it offers {_shown(names)}"

    # -- overridden methods of paramiko ---------------------------------------------------------------------------

    def _send_message(self, data: Any) -> None:
        """Send on the transport's thread: packets that another one encrypts could go out in the wrong order."""
        if threading.current_thread() is self:
            self.packetizer.send_message(data)
        else:
            self.wire.loop.call(partial(self.packetizer.send_message, data))

    def _send_kex_init(self) -> None:
        # Before KEXINIT: no message of a channel may follow it.
        self.sendable = False
        now = time.monotonic()
        if self.initial_kex_done:  # before that, the deadline of the connect counts
            self._kex_timer.start(now + _KEX_TIMEOUT, now)
        super()._send_kex_init()

    def _parse_kex_init(self, m: Any) -> None:
        # Parsed twice: paramiko keeps nothing of the offer when it finds no common algorithm, which is when an error
        # needs it.
        self._offered = self._really_parse_kex_init(m)
        m.rewind()
        super()._parse_kex_init(m)

    def _parse_newkeys(self, m: Any) -> None:
        super()._parse_newkeys(m)
        self._kex_timer.stop()
        self.sendable = True
        self.resumed()

    def _kex_expired(self, now: float) -> None:
        self.wire.end(CarrierError("the server did not finish the exchange of new keys in time"))

    def _parse_ext_info(self, msg: Any) -> None:
        if msg.get_int() > _EXTENSIONS:
            raise paramiko.SSHException("more extensions than a server can have")
        msg.rewind()
        super()._parse_ext_info(msg)

    def _parse_disconnect(self, m: Any) -> None:
        m.get_int()
        said = printable(m.get_binary().decode("utf-8", "replace"))
        end = f"the server says: {said}" if said else CLOSED
        # Its words are the reason that users see; the end of the connection that follows says nothing.
        self.wire.error = self.wire.error or CarrierError(end)

    def _log(self, level: int, msg: Any, *args: Any) -> None:
        """Log at most at the level debug: relay reports errors as exceptions."""
        if logger.isEnabledFor(logging.DEBUG):
            super()._log(min(level, logging.DEBUG), msg, *args)


def _handle_message(handler: Handler, message: Any) -> None:
    handler(memoryview(message.asbytes()))


def choose_algorithms(transport: paramiko.Transport, settings: Settings, host_keys: Iterable[str]) -> None:
    """Set the algorithms to offer in the key exchange, the best first.

    :param transport: the transport, before its start.
    :param settings: their lists replace relay's, or add to them; names that paramiko does not know are dropped.
    :param host_keys: host key algorithms to prefer.
    :raises IncompatibleError: if paramiko knows none of the names of a list.
    """
    options = transport.get_security_options()
    known = _Choice(settings.name, transport)
    more = settings.added  # of all kinds; each table selects its own
    options.ciphers = known.of("Ciphers", settings.ciphers or (*_CIPHERS, *more), "_cipher_info")
    options.digests = known.of("MACs", settings.macs or (*_MACS, *more), "_mac_info")
    options.kex = known.of("KexAlgorithms", settings.kex or (*_KEX, *more), "_kex_info")
    own = settings.host_key_algorithms or (*_HOST_KEYS, *more)
    wanted = (name for name in (*host_keys, *own) if "-cert-" not in name)  # paramiko adds those by itself
    options.key_types = known.of("HostKeyAlgorithms", wanted, "_key_info")
    transport.use_compression(settings.compress)


class _Choice:
    """Selects the algorithms that paramiko knows."""

    def __init__(self, name: str, transport: paramiko.Transport) -> None:
        self._name = name
        self._transport = transport

    def of(self, option: str, names: Iterable[str], table: str) -> tuple[str, ...]:
        wanted = tuple(dict.fromkeys(names))
        known: dict[str, object] = getattr(self._transport, table)
        chosen = tuple(name for name in wanted if name in known)
        if not chosen:
            some = ", ".join(list(known)[:4])
            problem = f"{option} {','.join(wanted)!r} has no name that paramiko knows ({some}, …)"
            raise IncompatibleError(f"{self._name}: {problem}; name one of these, or use {CLIENT_HINT}")
        return chosen


def _shown(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _LONGEST_OFFER else ""
    return printable(", ".join(names[:_LONGEST_OFFER])) + more


def _nothing() -> None:
    pass
