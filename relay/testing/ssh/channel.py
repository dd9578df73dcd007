"""Additions to paramiko's server mode: delayed replies to opens, every kind of forward, and an orderly end."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import paramiko
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_REQUEST,
    cMSG_CHANNEL_CLOSE,
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_OPEN_FAILURE,
    cMSG_CHANNEL_OPEN_SUCCESS,
    cMSG_CHANNEL_REQUEST,
)

from ...transports.ssh.internals import TESTING, check

check(TESTING, "relay.testing.SSHServer")

GONE = (OSError, EOFError, paramiko.SSHException)  # what paramiko raises when the connection is lost
_CHUNK = 65536  # bytes copied at once
_KEX_TIMEOUT = 30.0  # seconds for the end of a key exchange, when both sides have new keys
_OPEN_TIMEOUT = 30.0  # seconds for a client's reply to a channel that its forward opens


class Remote(NamedTuple):
    """The client's end of a channel that it requests (RFC 4254, section 5.1)."""

    number: int
    window: int
    packet: int


class GatedSocket(socket.socket):
    """A connected socket whose reads and writes can be suspended while the connection stays open."""

    def __init__(self, connected: socket.socket) -> None:
        # The same descriptor under a new class: paramiko calls recv and send of the object that it gets.
        super().__init__(fileno=connected.detach())
        self._flows = threading.Event()
        self._flows.set()

    def freeze(self) -> None:
        """Suspend reads and writes."""
        self._flows.clear()

    def thaw(self) -> None:
        """Resume reads and writes."""
        self._flows.set()

    def cut(self) -> None:
        """End the connection, and wake the threads that wait."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive; while the socket is frozen, the data are returned later."""
        # Read first and held back then: a thread that waits in recv already when the socket freezes must not return
        # either.
        data = super().recv(size, flags)
        self._flows.wait()
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send; later, if the socket is frozen."""
        self._flows.wait()
        return super().send(data, flags)


class Channel(paramiko.Channel):  # type: ignore[misc]
    """A channel that sends CLOSE last, on the thread that copies its bytes (RFC 4254, section 5.3).

    paramiko replies to the peer's CLOSE on the connection's thread, while another thread may be sending EOF: OpenSSH
    ends the connection for an EOF after CLOSE. The same happens with a reply to a request, which paramiko may be
    sending on the connection's thread while this thread sends CLOSE: PuTTY ends the connection for that.
    """

    _target: socket.socket | None = None
    _close_sent = False
    _close_came = False
    _is_answering = False  # a request, on the connection's thread; guarded by the lock as _close_sent is
    _signalled: Callable[[str], object] | None = None

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._commands: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask_for_command(self, text: str) -> None:
        """Queue a command that the client requests."""
        self._commands.put(text)

    def wait_for_command(self, seconds: float) -> str | None:
        """Return the command; ``None`` if the channel was closed, or no request has arrived in time."""
        try:
            return self._commands.get(timeout=seconds)
        except queue.Empty:
            return None

    def use_signals(self, signalled: Callable[[str], object]) -> None:
        """Call ``signalled``, on the connection's thread, with the name of each signal that the client sends."""
        self._signalled = signalled

    def _handle_request(self, message: Any) -> None:
        with self.lock:
            if self._close_sent:
                return
            self._is_answering = True
        try:
            self._answer_request(message)
        finally:
            self._end_answer()

    def _end_answer(self) -> None:
        with self.lock:
            self._is_answering = False
            # finish() came while the answer was on its way, and has left CLOSE to this thread.
            is_closing = self._close_sent
        if is_closing:
            self._send_close()

    def _answer_request(self, message: Any) -> None:
        start = message.packet.tell()
        if message.get_text() == "signal" and self._signalled is not None:
            message.get_boolean()
            self._signalled(message.get_text())
        else:
            # paramiko reads the kind of the request again.
            message.packet.seek(start)
            super()._handle_request(message)

    def send_exit_signal(self, name: str) -> None:
        """Report that a signal has ended the command (RFC 4254, section 6.10)."""
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(self.remote_chanid)
        message.add_string("exit-signal")
        message.add_boolean(False)
        message.add_string(name)
        message.add_boolean(False)
        message.add_string("")
        message.add_string("")
        self.transport._send_user_message(message)

    @contextlib.contextmanager
    def bound(self, target: socket.socket) -> Iterator[None]:
        """Shut ``target`` down when the channel ends; never after the block, when its descriptor may be another's.

        Python reads the number of a descriptor before it waits for the GIL. A shutdown and a close in two threads could
        therefore shut down a socket that was opened in between.
        """
        with self.lock:
            self._target = target
            if self.closed:
                self._wake_target()
        try:
            yield
        finally:
            with self.lock:
                self._target = None

    def _wake_target(self) -> None:
        if self._target is not None:
            with contextlib.suppress(OSError):
                # Only reading: what the client has sent is still written to the target by the other thread.
                self._target.shutdown(socket.SHUT_RD)

    def _set_closed(self) -> None:
        super()._set_closed()
        # A channel that is closed before its command came: the thread that waits for it ends at once.
        self._commands.put(None)
        self._wake_target()

    def _handle_close(self, message: Any) -> None:
        with self.lock:
            self._close_came = True
            if self._close_sent:
                self.transport._unlink_channel(self.chanid)
            else:
                self._set_closed()

    def stop_receiving(self) -> None:
        """Wake :meth:`recv`, which then ends."""
        self.in_buffer.close()

    def finish(self) -> None:
        """Send CLOSE; called once, after everything else was sent."""
        with self.lock:
            self._close_sent = True
            is_answering = self._is_answering  # then CLOSE is sent after the answer, on the connection's thread
            self._set_closed()
            if self._close_came:
                self.transport._unlink_channel(self.chanid)
        if not is_answering:
            self._send_close()

    def _send_close(self) -> None:
        self.transport.tell(cMSG_CHANNEL_CLOSE, self.remote_chanid)


class Transport(paramiko.Transport):  # type: ignore[misc]
    """The server's side of one connection.

    :param wanted: called on the connection's thread for each channel that the client requests, with its kind, the
        client's end and the rest of the message; must not block. The reply is :meth:`grant` or :meth:`refuse`.
    :param over: called on the connection's thread when the connection has ended.
    """

    # paramiko's table contains functions and not their names, so a subclass must replace the entries, too.
    _channel_handler_table = {  # noqa: RUF012
        **paramiko.Transport._channel_handler_table,
        MSG_CHANNEL_CLOSE: Channel._handle_close,
        MSG_CHANNEL_REQUEST: Channel._handle_request,
    }

    def __init__(
        self, sock: GatedSocket, wanted: Callable[[str, Remote, Any], object], over: Callable[[], object]
    ) -> None:
        super().__init__(sock)
        self._wanted = wanted
        self._when_over = over
        self.over = False

    def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            super().run()
        finally:
            self.packetizer.complete_handshake()  # else its timer's thread lives on when a handshake fails
            self.clear_to_send.set()  # wakes renegotiate_keys
            with self.lock:
                self.over = True
                # Threads that wait for the client's answer to a channel would wait out their time.
                events = list(self.channel_events.values())
            for channel in list(self._channels.values()):
                channel._unlink()
            for event in events:
                event.set()
            self._when_over()

    def renegotiate_keys(self) -> None:
        """Exchange new keys; return when messages may be sent again.

        paramiko returns a moment before that. An exchange that began in that moment would not hold messages back, and
        a message during an exchange ends the connection (RFC 4253, section 7.1).
        """
        super().renegotiate_keys()
        self.clear_to_send.wait(_KEX_TIMEOUT)

    def _parse_kex_init(self, message: Any) -> None:
        """Ignore the first packet after a wrong guess of the client (RFC 4253, section 7.1); paramiko does not."""
        guess = self._really_parse_kex_init(message)
        message.rewind()
        super()._parse_kex_init(message)
        if guess["kex_follows"] and not self._is_right(guess):
            self.packetizer.read_message()

    def _is_right(self, guess: dict[str, list[str]]) -> bool:
        """Return whether both sides prefer the same key exchange and the same host key."""
        ours = self._really_parse_kex_init(paramiko.Message(self.local_kex_init), ignore_first_byte=True)
        return all(ours[names][:1] == guess[names][:1] for names in ("kex_algo_list", "server_key_algo_list"))

    def _parse_channel_open(self, message: Any) -> None:
        kind = message.get_text()
        # Never answered here: connecting to the target takes as long as it takes, and this thread reads for every
        # channel.
        self._wanted(kind, Remote(message.get_int(), message.get_int(), message.get_int()), message)

    def grant(self, remote: Remote) -> Channel:
        """Open a channel that the client has requested."""
        window, packet = self.default_window_size, self.default_max_packet_size
        with self.lock:
            channel = self._new_channel(window, packet)
            channel._set_remote_channel(*remote)
        if self.over:
            channel._unlink()
        self.tell(cMSG_CHANNEL_OPEN_SUCCESS, remote.number, channel.chanid, window, packet)
        return channel

    def refuse(self, remote: Remote, code: int, text: str) -> None:
        """Reject a channel (RFC 4254, section 5.1)."""
        self.tell(cMSG_CHANNEL_OPEN_FAILURE, remote.number, code, text, "en")

    def ask(self, kind: str, *fields: str | int) -> Channel | None:
        """Open a channel to the client, and wait for its reply.

        :returns: the channel, or ``None`` if the client has rejected it.
        """
        window, packet = self.default_window_size, self.default_max_packet_size
        answered = threading.Event()
        with self.lock:
            channel = self._new_channel(window, packet)
            self.channel_events[channel.chanid] = answered
            if self.over:
                answered.set()
        self.tell(cMSG_CHANNEL_OPEN, kind, channel.chanid, window, packet, *fields)
        # A client that is frozen never answers; the socket of the forward's client must not stay open for ever.
        answered.wait(_OPEN_TIMEOUT)
        if channel.active and not self.over:
            return channel
        channel._unlink()
        return None

    def tell(self, kind: bytes, *fields: str | int) -> None:
        """Send a message, after a key exchange in progress; do nothing if the connection is lost."""
        message = paramiko.Message()
        message.add_byte(kind)
        for field in fields:
            message.add_string(field) if isinstance(field, str) else message.add_int(field)
        with contextlib.suppress(*GONE):
            self._send_user_message(message)

    def _new_channel(self, window: int, packet: int) -> Channel:
        # The lock is held.
        number = self._next_channel()
        channel = Channel(number)
        self._channels.put(number, channel)
        self.channels_seen[number] = True
        channel._set_transport(self)
        channel._set_window(window, packet)
        return channel


def move(channel: Channel, target: socket.socket) -> None:
    """Copy bytes both ways until both ends have sent EOF; then close both."""
    with target, channel.bound(target):
        inward = threading.Thread(target=_inward, args=(channel, target), name="ssh server channel inward", daemon=True)
        inward.start()
        _outward(channel, target)
        inward.join()
    # Only when both directions have ended: CLOSE means that nothing more is read, and the rest of an upload would be
    # lost.
    channel.finish()


def _inward(channel: Channel, target: socket.socket) -> None:
    """From the client to the target."""
    try:
        while data := channel.recv(_CHUNK):
            target.sendall(data)
        # A channel that was closed without an EOF was cut.
        target.shutdown(socket.SHUT_WR if channel.eof_received else socket.SHUT_RDWR)
    except GONE:
        pass  # the other direction ends by the same error


def _outward(channel: Channel, target: socket.socket) -> None:
    """From the target to the client."""
    try:
        while data := target.recv(_CHUNK):
            channel.sendall(data)
        if not channel.closed:
            channel.shutdown_write()
    except GONE:
        # The target or the channel is gone: the other thread would wait for bytes that the client need not send.
        channel.stop_receiving()
