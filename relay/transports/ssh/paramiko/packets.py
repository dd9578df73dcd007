"""SSH packets without blocking: in batches and by this module for AES-GCM, by paramiko for other ciphers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paramiko
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from paramiko.packet import NeedRekeyException

from .messages import DATA, Handler
from .wire import LONGEST, Wire

if TYPE_CHECKING:
    from .transport import Transport

PIECE = 32 << 10  # bytes of data in a packet at most; what OpenSSH takes
SLOTS = 8  # packets that are filled and sealed at once

_HEAD = 14  # bytes before the data: length, padding length, message number, channel, length of the data
_SLOT = _HEAD + PIECE + 32
_BLOCK = 16  # bytes; RFC 5647, section 7.2
_TAG = 16
_AROUND = 4 + _TAG  # bytes of a packet beside what its length says
_SHORTEST = _BLOCK + _AROUND
_COUNTER = (1 << 64) - 1
_ROOM = LONGEST + (64 << 10)  # bytes
_ZEROS = bytes(_BLOCK + 4)
_GREETING = 16 << 10  # bytes before and in the line with the version
_AEAD_REKEY = 1 << 36  # bytes with one key: 2^32 blocks of AES, or 2^31 packets, each of which counts one block more;
# RFC 4344, section 3

_DAMAGE = ("Mismatched MAC", "Invalid packet blocking")  # paramiko's words for it

_read_length = struct.Struct(">I").unpack_from


class Packetizer(paramiko.packet.Packetizer):  # type: ignore[misc]
    """Packets over a :class:`Wire`; waiting for one turns the loop.

    Everything is for the transport's thread.
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.transport: Transport
        self.handlers: dict[int, Handler] = {}  # of messages that do not go through paramiko
        self.deliver: Callable[[], object] = _nothing  # called before each wait
        self.greeting = ""  # the first line of the server
        self._Packetizer__sequence_number_in = self._Packetizer__sequence_number_out = 0  # paramiko's, as it sets them
        self._room = memoryview(bytearray(_ROOM))  # where packets are decrypted
        self._decrypt: Callable[[bytes, memoryview, memoryview, memoryview], object] = _nothing
        self._wire = wire
        self._open: AESGCM | None = None
        self._seal: AESGCM | None = None
        self._fixed_in = self._fixed_out = b""
        self._counter_in = self._counter_out = 0  # the invocation counters; RFC 5647, section 7.1
        self._left_in = self._left_out = 0  # bytes until new keys are due
        self._deflate: Callable[[bytes], bytes] | None = None
        self._inflate: _Inflate | None = None
        slots = memoryview(bytearray(_SLOT * SLOTS))
        self._slots = [slots[start : start + _SLOT] for start in range(0, _SLOT * SLOTS, _SLOT)]
        self.places = [slot[_HEAD : _HEAD + PIECE] for slot in self._slots]  # where data to be sent is received

    # -- receiving ------------------------------------------------------------------------------------------------

    def read_message(self) -> tuple[int, Any]:
        """Return the next message for paramiko; messages with a handler are handled before it.

        :raises EOFError: if the connection has ended.
        :raises paramiko.SSHException: if the server breaks the protocol.
        :raises NeedRekeyException: if new keys are due.
        """
        try:
            return self._read_message()
        except (InvalidTag, zlib.error) as error:
            raise paramiko.SSHException("a packet was damaged on the way") from error
        except paramiko.SSHException as error:
            if str(error) not in _DAMAGE:
                raise
            raise paramiko.SSHException("a packet was damaged on the way") from error

    def _read_message(self) -> tuple[int, Any]:
        wire = self._wire
        while self._open is not None:
            # Half of the turns bring no packet, but something that is to be sent.
            if wire.last - wire.first >= _SHORTEST:
                payload = self._open_packets()
                self.deliver()
                if payload is not None:
                    message = paramiko.Message(payload[1:])
                    message.seqno = self._Packetizer__sequence_number_in - 1
                    return payload[0], message
            if self._Packetizer__need_rekey and not self.transport.in_kex:
                raise NeedRekeyException
            wire.turn()
        self.deliver()
        kind, message = super().read_message()
        return kind, message

    def _open_packets(self) -> bytes | None:
        """Decrypt all packets that have arrived, and call the handlers of their messages.

        :returns: the first message without a handler, which is for paramiko; ``None`` if there is none yet.
        """
        wire, handlers, transport, fixed, opened = self._wire, self.handlers, self.transport, self._fixed_in, 0
        source, counter, left, room, used = wire.view, self._counter_in, self._left_in, self._room, 0
        try:
            while True:
                first = wire.first
                have = wire.last - first
                if have < _SHORTEST:
                    return None
                (length,) = _read_length(source, first)
                # The length is not authenticated before the packet is complete; without a bound it would make relay
                # wait, and buffer, for 4 GiB.
                if length > LONGEST or length < _BLOCK or length % _BLOCK:
                    raise paramiko.SSHException("a packet of an impossible length")
                if have < length + _AROUND:
                    return None
                # Handlers keep views of the room until they deliver: it is used again only after that.
                if used + length > _ROOM:
                    self.deliver()  # nothing refers to the room after that
                    used = 0
                body = first + 4
                nonce, end = fixed + counter.to_bytes(8, "big"), body + length + _TAG
                plain = room[used : used + length]
                self._decrypt(nonce, source[body:end], source[first:body], plain)
                wire.first, counter, used, left = end, (counter + 1) & _COUNTER, used + length, left - length - _BLOCK
                opened += 1
                padding = plain[0]
                if not 4 <= padding <= length - 2:
                    raise paramiko.SSHException("a packet with an impossible padding")
                payload = plain[1 : length - padding]
                if self._inflate is not None:
                    payload = memoryview(self._inflate(payload))
                handler = handlers.get(payload[0])
                # During a key exchange paramiko must see each message, to reject those that may not come then.
                if handler is None or transport._expected_packet:
                    return bytes(payload)
                handler(payload[1:])
        finally:
            # Locals in the loop, which runs for each packet; written back also after an error.
            self._counter_in, self._left_in = counter, left
            # paramiko sets it to zero with new keys (strict key exchange).
            self._Packetizer__sequence_number_in = (self._Packetizer__sequence_number_in + opened) & 0xFFFFFFFF
            if left < 0:
                self._want_keys()

    def _wait(self, *, check_rekey: bool) -> None:
        self.deliver()
        if check_rekey and self.need_rekey() and not self.transport.in_kex:
            raise NeedRekeyException
        self._wire.turn()

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Return exactly ``n`` bytes, for packets that paramiko reads; the loop turns until they have arrived."""
        wire = self._wire
        if not 0 <= n <= LONGEST:
            raise paramiko.SSHException("a packet of an impossible length")
        while wire.last - wire.first < n:
            self._wait(check_rekey=check_rekey)
        taken = bytes(wire.view[wire.first : wire.first + n])
        wire.first += n
        return taken

    def readline(self, timeout: float) -> str:
        """Return the next line of the greeting (RFC 4253, section 4.2)."""
        wire = self._wire
        while (end := wire.input.find(b"\n", wire.first, wire.last)) < 0:
            if wire.last - wire.first > _GREETING:
                raise paramiko.SSHException("a greeting without end")
            wire.turn()
        line = bytes(wire.view[wire.first : end]).rstrip(b"\r").decode("utf-8", "replace")
        wire.first = end + 1
        self.greeting = self.greeting or line
        return line

    def start_handshake(self, timeout: float) -> None:
        """Start no timer: the connect has its own deadline, and paramiko's would need one more thread."""

    # -- sending --------------------------------------------------------------------------------------------------

    def send_message(self, data: Any) -> None:
        """Send a message of paramiko."""
        self.send(data.asbytes())

    def send(self, payload: bytes) -> None:
        """Encrypt a message and queue it; the next turn sends it."""
        if self._seal is None:
            return super().send_message(paramiko.Message(payload))  # type: ignore[no-any-return]
        if self._deflate is not None:
            payload = self._deflate(payload)
        size = len(payload)
        padding = 4 + (-size - 5) % _BLOCK
        # Zeros for the padding: it is encrypted with the packet, and random bytes would cost a system call for each.
        plain = b"%c%b%b" % (padding, payload, _ZEROS[:padding])
        self._send_sealed((size + padding + 1).to_bytes(4, "big"), plain)

    def send_data(self, number: int, size: int) -> None:
        """Send the data in :attr:`places` to a channel of the server.

        :param number: the server's number of the channel.
        :param size: bytes, in the first place and, where it is full, in those behind it.
        """
        plainly = self._seal is None or self._deflate is not None
        for slot in self._slots:
            length = min(size, PIECE)
            if plainly:
                self.send(struct.pack(">BII", DATA, number, length) + bytes(slot[_HEAD : _HEAD + length]))
            else:
                end = _HEAD + length
                padding = 4 + (-length - 14) % _BLOCK
                struct.pack_into(">IBBII", slot, 0, 10 + length + padding, padding, DATA, number, length)
                slot[end : end + padding] = _ZEROS[:padding]
                self._send_sealed(bytes(slot[:4]), slot[4 : end + padding])
            size -= length
            if not size:
                break

    def _send_sealed(self, head: bytes, plain: bytes | memoryview) -> None:
        nonce = self._fixed_out + self._counter_out.to_bytes(8, "big")
        assert self._seal is not None
        self._wire.write_two(head, self._seal.encrypt(nonce, plain, head))
        self._counter_out = (self._counter_out + 1) & 0xFFFFFFFFFFFFFFFF
        self._Packetizer__sequence_number_out = (self._Packetizer__sequence_number_out + 1) & 0xFFFFFFFF
        self._left_out -= len(plain) + _BLOCK
        if self._left_out < 0:
            self._want_keys()

    def write_all(self, out: bytes) -> None:
        """Queue bytes that paramiko has encrypted; the next turn sends them."""
        self._wire.write(bytes(out))

    # -- keys and compression -------------------------------------------------------------------------------------

    def set_inbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Use new keys (paramiko's parameters)."""
        super().set_inbound_cipher(*args, **kwargs)
        self._open = kwargs.get("block_engine", *args[:1]) if kwargs.get("aead") else None
        if self._open is not None:
            self._decrypt = getattr(self._open, "decrypt_into", None) or _decrypt_into(self._open)
            self._fixed_in, self._counter_in = _split(kwargs["iv_in"])
            self._left_in = self._due()

    def set_outbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Use new keys (paramiko's parameters)."""
        super().set_outbound_cipher(*args, **kwargs)
        self._seal = kwargs.get("block_engine", *args[:1]) if kwargs.get("aead") else None
        if self._seal is not None:
            self._fixed_out, self._counter_out = _split(kwargs["iv_out"])
            self._left_out = self._due()

    def set_outbound_compressor(self, compressor: Any) -> None:
        """Compress from now on."""
        super().set_outbound_compressor(compressor)
        self._deflate = compressor

    def set_inbound_compressor(self, compressor: Any) -> None:
        """Decompress from now on, within bounds."""
        self._inflate = _Inflate()
        super().set_inbound_compressor(self._inflate)

    def _due(self) -> int:
        """Return the bytes allowed with one key; paramiko's number, if a test has changed it."""
        usual = self.REKEY_BYTES == paramiko.packet.Packetizer.REKEY_BYTES
        return _AEAD_REKEY if usual else int(self.REKEY_BYTES)

    def _want_keys(self) -> None:
        """Request new keys, once; end the connection if the server does not comply."""
        if self.need_rekey():
            if min(self._left_in, self._left_out) < -int(self.REKEY_BYTES_OVERFLOW_MAX):
                raise paramiko.SSHException("the server ignores the request for new keys")
        else:
            self._trigger_rekey()


def _decrypt_into(key: AESGCM) -> Callable[[bytes, memoryview, memoryview, memoryview], object]:
    """Return the equivalent of ``AESGCM.decrypt_into``, which cryptography has from version 47 on."""

    def decrypt(nonce: bytes, data: memoryview, associated: memoryview, place: memoryview) -> None:
        place[:] = key.decrypt(nonce, data, associated)

    return decrypt


class _Inflate:
    """Decompresses packets, each to at most the size of the longest packet."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()

    def __call__(self, data: bytes | memoryview) -> bytes:
        plain = self._stream.decompress(data, LONGEST)
        if self._stream.unconsumed_tail or not plain:
            raise paramiko.SSHException("a packet of an impossible length after decompression")
        return plain


def _split(iv: bytes) -> tuple[bytes, int]:
    return iv[:4], int.from_bytes(iv[4:], "big")


def _nothing(*_: object) -> None:
    pass
