"""Messages between a program and its child: lines of JSON over a socketpair."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import errors
from ..engine.records import ConnectionRecord, Metrics, WarmFigures
from ..eventloop.histogram import Histogram
from ..streams.identity import Certificate, Identity

if TYPE_CHECKING:  # most children are not asked for carriers
    from ..carriers.listing import CarrierStatus

Message = dict[str, Any]

MOST_DESCRIPTORS = 253
"""The most descriptors that Linux passes with one message (SCM_MAX_FD)."""

_SIZE = 1 << 16  # bytes that are read at once
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_BYTES = "__bytes__"
_ERRORS: dict[str, type[Exception]] = {
    name: found
    for name, found in vars(builtins).items()
    if isinstance(found, type) and issubclass(found, (OSError, ValueError, TypeError))
}
_ERRORS |= {name: getattr(errors, name) for name in errors.__all__}
_ERRORS["gaierror"] = socket.gaierror


class Channel:
    """Messages over one end of a socketpair. Its callers take turns; it has no lock of its own.

    :param sock: the end, in blocking mode. It stays with the caller.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""

    def send(self, message: Message, deadline: float | None = None) -> None:
        """Send one message.

        :param deadline: monotonic seconds, or ``None`` for as long as it takes.
        :raises TimeoutError: if the peer did not take it in time.
        :raises OSError: if the peer is gone.
        """
        self._limit(deadline)
        self._socket.sendall(encode(message))

    def receive(self, deadline: float | None = None) -> Message | None:
        """The next message, or ``None`` at the end; a message that the end cut short is dropped.

        :param deadline: monotonic seconds, or ``None`` to wait as long as it takes.
        :raises TimeoutError: if none came in time; what has come of it is kept.
        :raises OSError: if the peer is gone and left something unread.
        """
        while b"\n" not in self._buffer:
            self._limit(deadline)
            data = self._receive_some()
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = json.loads(line, object_hook=_restore)
        return message

    def _receive_some(self) -> bytes:
        return self._socket.recv(_SIZE)

    def _limit(self, deadline: float | None) -> None:
        self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))


class DescriptorChannel(Channel):
    """A channel whose messages may bring descriptors; the parameter is that of the base."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._descriptors: list[list[int]] = []  # by message: those of the last one, and perhaps of later ones

    def take(self, count: int) -> list[int]:
        """Return the descriptors of the last message, which the caller owns then.

        :param count: how many were sent with it.
        :raises OSError: if the system had no room for all of them; those that have come are closed.
        """
        found = self._descriptors.pop(0) if count and self._descriptors else []
        if len(found) != count:
            for descriptor in found:
                os.close(descriptor)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return found

    def _receive_some(self) -> bytes:
        data, descriptors, flags, _ = socket.recv_fds(self._socket, _SIZE, MOST_DESCRIPTORS, _CLOEXEC)
        if descriptors or flags & socket.MSG_CTRUNC:  # the kernel never joins those of two messages
            self._descriptors.append(list(descriptors))
        return data


def answer_all(channel: Channel, answer: Callable[[Message], Any]) -> None:
    """Answer the questions of the program until it closes the channel; in the child.

    :param answer: returns the answer to a question, or raises what the program is to raise.
    :raises OSError: if the program is gone.
    """
    while (request := channel.receive()) is not None:
        logging.getLogger("relay").setLevel(request["level"])
        message: Message
        try:
            message = {"value": answer(request)}
        except Exception as error:  # noqa: BLE001  (the program raises it; the tunnels go on)
            message = {"error": from_error(error)}
        channel.send({"number": request["number"], **message})


def encode(message: Message) -> bytes:
    """One message as it goes over the wire."""
    return json.dumps(message, default=_plain).encode() + b"\n"


def _plain(value: object) -> object:
    """Replace a value that JSON lacks: the name of an abstract Unix socket, a mapping, any logged object."""
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    return dict(value) if isinstance(value, Mapping) else str(value)


def _restore(value: Message) -> Message | bytes:
    return bytes.fromhex(value[_BYTES]) if value.keys() == {_BYTES} else value


def from_error(error: Exception) -> Message:
    """An exception as a message, for :func:`to_error`."""
    # The nearest class that both sides know: the other process may not have the module of a library's own error.
    kind = next((kind for kind in type(error).__mro__ if _ERRORS.get(kind.__name__) is kind), None)
    if kind is None or (kind is not type(error) and not issubclass(kind, (ValueError, TypeError))):
        return {"class": "RelayError", "arguments": [f"{type(error).__name__}: {error}"], "attributes": {}}
    arguments = list(error.args) if kind is type(error) else [str(error)]  # a class of its own has its own arguments
    if isinstance(error, OSError) and error.filename is not None and len(arguments) == 2:
        arguments.append(error.filename)  # OSError keeps it out of its args
    return {"class": kind.__name__, "arguments": arguments, "attributes": vars(error)}


def to_error(message: Message) -> Exception:
    """The exception that :func:`from_error` was given, or the nearest one known on both sides."""
    error = _ERRORS[message["class"]](*message["arguments"])
    vars(error).update(message["attributes"])
    return error


def from_log_record(record: logging.LogRecord) -> Message:
    """A log record as a message, for :func:`to_log_record`; the text and the traceback are written out."""
    # Written out on this side, because arguments and tracebacks are objects that JSON does not have.
    fields = dict(vars(record), msg=record.getMessage(), args=None, exc_info=None)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    return fields


def to_log_record(fields: Message) -> logging.LogRecord:
    """A log record of the child, with its own process id and the record of its connection, if it has one."""
    if fields.get("connection") is not None:
        fields["connection"] = to_record(fields["connection"])
    return logging.makeLogRecord(fields)


def to_socket(descriptor: int) -> socket.socket:
    """The socket of a descriptor that the program has passed; no other program inherits it."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def to_address(value: Any) -> Any:
    """An address of the socket module: JSON knows no tuple."""
    return tuple(value) if isinstance(value, list) else value


def to_record(fields: list[Any]) -> ConnectionRecord:
    """A connection's record."""
    record = ConnectionRecord(*map(to_address, fields))
    return record._replace(hop_times=tuple(map(to_address, record.hop_times)), identity=_to_identity(record.identity))


def _to_identity(fields: Sequence[Any] | None) -> Identity | None:
    if fields is None:
        return None
    identity = Identity(*fields)
    certificate: Any = identity.certificate
    if certificate is None:
        return identity
    return identity._replace(certificate=Certificate(*map(to_address, certificate)))


def to_metrics(fields: list[Any]) -> Metrics:
    """A tunnel's counters for monitoring."""
    metrics = Metrics(*fields)
    return metrics._replace(
        connect_times=_to_histogram(metrics.connect_times),
        ages=_to_histogram(metrics.ages),
        hop_times={label: _to_histogram(times) for label, times in metrics.hop_times.items()},
        warm=None if metrics.warm is None else WarmFigures(*metrics.warm),
    )


def to_carrier(fields: Message, worker: int) -> CarrierStatus:
    """A carrier of a worker.

    :param fields: of :class:`CarrierStatus`, by name.
    :param worker: its number, from 1.
    """
    from ..carriers.listing import CarrierStatus

    return CarrierStatus(**{**fields, "metrics": _to_histogram(fields["metrics"]), "worker": worker})


def _to_histogram(fields: Sequence[Any]) -> Histogram:
    counts, total = fields
    return Histogram(tuple(counts), total)
