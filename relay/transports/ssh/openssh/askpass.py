"""The private socket for ssh's helper: it requests the connection to the server, and secrets (``SSH_ASKPASS``)."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Callable

from ....errors import AuthenticationError
from ....eventloop.loop import Loop
from ....eventloop.poller import ERR, HUP, IN
from ...credentials import passphrase_of, password_of
from ..connection import Settings

logger = logging.getLogger("relay")

_LONGEST = 4096  # bytes of a question
_CALLERS = 16  # helpers at one time
_SEND_TIMEOUT = 1.0  # seconds to send a reply

_LINE_BREAKS = frozenset("\r\n\0")  # ssh would use the text before it

_PASSPHRASE = re.compile(r"Enter passphrase for (?:key )?'?(.*?)'?: ?$")
_PASSWORD = re.compile(r"(?:\((?P<asks>[^)]*)\) .*|(?P<whose>[^ ]*)'s password: ?)$", re.DOTALL)


class AskpassServer:
    """Replies to ssh's helpers, on the loop's thread. A secret is read on its own thread, because that may block.

    :param loop: watches the socket.
    :param path: the path of the socket, in the private directory.
    :param settings: the server and its secrets.
    :param connection: the connection for ssh; ``None`` if ssh connects itself.
    :param failed: called, in any thread, with the error of a secret that could not be read.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        settings: Settings,
        connection: socket.socket | None,
        failed: Callable[[OSError], object],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._connection = connection
        self._failed = failed
        self._callers: set[socket.socket] = set()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            # It gets its name when it listens: a socket without a listener is one of a process that was killed.
            self._socket.bind(f"{path}~")
            self._socket.listen(_CALLERS)
            os.rename(f"{path}~", path)
            self._socket.setblocking(False)
            loop.watch(self._socket.fileno(), IN, self._accept)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket and all connections; on the loop's thread."""
        for one in (self._socket, *self._callers):
            if one.fileno() >= 0:
                self._loop.forget(one.fileno())
                one.close()
        self._callers.clear()

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        for one in (self._socket, *self._callers):
            one.close()

    def _accept(self, event: int, now: float) -> None:
        try:
            caller, _ = self._socket.accept()
        except OSError:
            return
        # Any program of this user can connect to the socket; it must not take relay's descriptors.
        if len(self._callers) >= _CALLERS:
            caller.close()
            return
        caller.setblocking(False)
        self._callers.add(caller)
        received = bytearray()
        self._loop.watch(caller.fileno(), IN, lambda event, now: self._read_question(caller, received, event))

    def _read_question(self, caller: socket.socket, received: bytearray, event: int) -> None:
        try:
            data = caller.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        received += data
        kind, zero, question = bytes(received).partition(b"\0")
        if zero and kind == b"connection":
            # Out of the loop before it is answered: the answer closes it.
            self._drop(caller)
            self._hand_over(caller)
        elif zero and kind == b"secret" and not data:
            self._drop(caller)
            self._look_up(caller, question.decode("utf-8", "replace"))
        elif not data or event & (HUP | ERR) or len(received) > _LONGEST:
            self._drop(caller)
            self._loop.discard(caller)

    def _drop(self, caller: socket.socket) -> None:
        self._callers.discard(caller)
        self._loop.forget(caller.fileno())

    def _hand_over(self, caller: socket.socket) -> None:
        # Handed over once: ssh starts its ProxyCommand once, and a second caller is not ssh.
        connection, self._connection = self._connection, None
        with caller:
            if connection is not None:
                try:
                    socket.send_fds(caller, [b"\0"], [connection.fileno()])
                except OSError as error:
                    logger.debug("%s: the connection could not be passed to ssh: %s", self._settings.name, error)

    def _look_up(self, caller: socket.socket, question: str) -> None:
        thread = threading.Thread(target=self._answer, args=(caller, question), name="relay ssh secret", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            caller.close()

    def _answer(self, caller: socket.socket, question: str) -> None:
        with caller:
            try:
                secret = self._secret(question)
                self._check(secret)
                caller.settimeout(_SEND_TIMEOUT)
                if secret is not None:
                    caller.sendall(b"+" + os.fsencode(secret))
            except OSError as error:
                # ssh itself would only report a login without a password; the error names the file or variable.
                self._failed(error)

    def _check(self, secret: str | None) -> None:
        if secret is not None and not _LINE_BREAKS.isdisjoint(secret):
            problem = "ssh does not support a password or passphrase with a line break"
            raise AuthenticationError(
                f"{self._settings.name}: {problem}; remove the line break, or use the backend paramiko"
            )

    def _secret(self, question: str) -> str | None:
        """Return the reply; ``None`` for a question about another server or key."""
        settings = self._settings
        if match := _PASSPHRASE.match(question):
            known = (settings.server.keyfile or "", *settings.identities)
            # ssh cuts the path in its question.
            mine = any(match[1] == path[:100] for path in known if path)
            return passphrase_of(settings.server, match[1]) if mine else None
        match = _PASSWORD.match(question)
        if match is None or not self._is_own_login(match["asks"] or match["whose"] or ""):
            logger.debug("%s: ssh asked an unexpected question: %.200r", settings.name, question)
            return None
        return password_of(settings.server, question)

    def _is_own_login(self, login: str) -> bool:
        """Return whether a question concerns the login at this server, and not at a server before it."""
        user, _, host = login.rpartition("@")
        hosts = (self._settings.hostname, self._settings.server.host)
        # ssh cuts both in its question. The password is for this server only: a ProxyJump of the configuration asks
        # through the same helper.
        return user == self._settings.user[:30] and host.casefold() in {name[:128].casefold() for name in hosts}
