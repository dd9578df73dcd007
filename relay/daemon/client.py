"""The client of a control socket: HTTP with JSON over a Unix socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

REJECTED = 422  # the HTTP status of a reload that has changed nothing, because of its file
_LONGEST = 64 << 20  # bytes of an answer
_UCRED = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


class ClientError(Exception):
    """An answer with an error.

    :param text: what the server says.
    :param status: the HTTP status; 0 if the answer was not HTTP with JSON.
    :param problems: of a reload or a health check that has failed, one line each; else the text.
    """

    def __init__(self, text: str, status: int = 0, problems: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.problems = tuple(problems) or (text,)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self.timeout)
            made.connect(self._path)
            self._check_user(made)
        except BaseException:
            made.close()
            raise
        self.sock = made

    def _check_user(self, made: socket.socket) -> None:
        """Check who answers: this user, root, or the owner of the directory, without whom no other user is there.

        :raises ClientError: if it is another user, who may have put a socket in the place of relay's.
        """
        if not hasattr(socket, "SO_PEERCRED"):
            return
        _, user, _ = _UCRED.unpack(made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if user not in (0, os.geteuid(), os.stat(os.path.dirname(self._path) or os.curdir).st_uid):
            text = f"another user (ID {user}) answers, neither you, root nor the directory's owner; check who listens"
            raise ClientError(f"control socket {self._path}: {text}")


class Client:
    """Requests to one running relay.

    :param path: of its control socket.
    :param timeout: seconds for each step of a request.
    """

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        self.path = path
        self._connection = _Connection(path, timeout)

    def set_timeout(self, seconds: float) -> None:
        """Set the time for each step of a request."""
        self._connection.timeout = seconds
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)

    def get(self, *parts: str, **query: str) -> Any:
        """Return the value at a path; the parts after the first one are quoted.

        :raises ClientError: if the answer is an error, no JSON, or another user's.
        :raises OSError: if there is no answer.
        """
        return self.request("GET", *parts, **query)

    def request(self, method: str, *parts: str, body: Any = None, **query: str) -> Any:
        """Send a request and return the value of its answer; the parameters and errors are those of :meth:`get`.

        :param method: such as ``POST``.
        :param body: sent as JSON; ``None`` for none.
        """
        path = "/".join([parts[0], *(quote(part, safe="") for part in parts[1:])])
        if query:
            path += "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        try:
            self._connection.request(method, path, data, headers)
            answer = self._connection.getresponse()
            text = answer.read(_LONGEST)
        except http.client.HTTPException as error:
            self.close()
            raise ClientError(f"{self.path}: the answer is not HTTP: {type(error).__name__}") from error
        except OSError:
            self.close()
            raise
        try:
            value = json.loads(text) if text else None
        except (ValueError, RecursionError):
            raise ClientError(f"{self.path}: the answer is not JSON", answer.status) from None
        if answer.status >= 400:
            raise ClientError(_error_in(value) or f"status {answer.status}", answer.status, _problems_in(value))
        return value

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        self._connection.close()


def _error_in(value: Any) -> str:
    return str(value.get("error", "")) if isinstance(value, dict) else ""


def _problems_in(value: Any) -> list[str]:
    problems = value.get("problems") if isinstance(value, dict) else None
    if isinstance(problems, dict):  # of a health check, by the name of the tunnel
        return [f"{name}: {text}" for name, text in problems.items()]
    return [str(one) for one in problems] if isinstance(problems, list) else []
