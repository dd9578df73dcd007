"""Destinations, their addresses and their private keys, as values; nothing here does I/O.

The sources are I2P's specifications: "Common structures" (Destination, Key Certificate, Offline Signature), "B32 for
encrypted leasesets", "Naming", and for private keys SAM v3 ("Destination key generation").
"""

from __future__ import annotations

import base64
import re
import secrets
import struct
import zlib
from dataclasses import dataclass, field
from typing import Self

KEYS = 384  # bytes of a destination before its certificate: 256 of the encryption key, 128 of the signing key
SHORTEST = KEYS + 3  # with an empty certificate
LONGEST_NAME = 67  # characters of a host name ("Naming")
ED25519 = 7

_KEY_CERTIFICATE = 5
_CERTIFICATES = range(6)

# Bytes by type of signature ("Common structures", Key Certificate): public key, private key, signature.
_SIGNING = {
    0: (128, 20, 40),  # DSA-SHA1, of a destination without a key certificate
    1: (64, 32, 64),  # ECDSA P-256
    2: (96, 48, 96),
    3: (132, 66, 132),  # P-521
    4: (256, 512, 256),  # RSA 2048
    5: (384, 768, 384),
    6: (512, 1024, 512),
    ED25519: (32, 32, 64),
    8: (32, 32, 64),  # Ed25519ph
    9: (64, 32, 64),  # GOST R 34.10 256
    10: (128, 64, 128),
    11: (32, 32, 64),  # RedDSA
}
_ENCRYPTION = {0: 256, 1: 256, 4: 32}  # bytes of the private key by type: ElGamal, P-256 (as i2pd writes it), X25519

_RANDOM = 64 + _ENCRYPTION[0]  # bytes of a new key that are random: 32 to sign, 32 of padding, an encryption key

_BASE64 = re.compile(r"[A-Za-z0-9~-]+={0,2}")
_BASE32 = re.compile(r"[a-z2-7]+")
_LABELS = re.compile(r"[a-z0-9]+(-+[a-z0-9]+)*(\.[a-z0-9]+(-+[a-z0-9]+)*)*")
_ALLOWED = "a destination is base64 of 516 characters or more, an address that ends in .b32.i2p, or a name in .i2p"


class Peer(str):
    """The destination of a client, in base64; equal to that text.

    :param destination: the destination.
    :param port: the port that the stream comes from; 0 if unknown.
    :param to_port: the port that it goes to.
    """

    __slots__ = ("port", "to_port")

    port: int
    to_port: int

    def __new__(cls, destination: str, port: int = 0, to_port: int = 0) -> Self:
        """A string with two more attributes."""
        peer = super().__new__(cls, destination)
        peer.port = port
        peer.to_port = to_port
        return peer

    @property
    def b32(self) -> str:
        """Its address: 52 characters and ``.b32.i2p``."""
        return b32_of(self)

    @property
    def place(self) -> str:
        """The address for logs, with the port if there is one."""
        return f"{self.b32}:{self.port}" if self.port else self.b32


@dataclass(frozen=True, slots=True, repr=False)
class PrivateKey:
    """The private key of a destination, as routers write it to files; its ``repr`` shows the address alone.

    :param data: the destination, its encryption and its signing private key, and an offline signature where there is
        one ("Common structures").
    :raises ValueError: if that is not what ``data`` is; it says what is wrong and repeats nothing.
    """

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_private(self.data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key in its binary form, as in i2pd's and the Java router's key files.

        :raises ValueError: if it is none.
        """
        return cls(bytes(data))

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """The key in I2P's base64, as SAM tells it.

        :raises ValueError: if it is none.
        """
        return cls(_decoded(text.strip()))

    @classmethod
    def generate(cls) -> Self:
        """A new key: Ed25519 to sign, as ``DEST GENERATE SIGNATURE_TYPE=7`` makes it.

        A destination's own encryption key has had no use since I2P 0.6 (a session tells its keys in its lease set), so
        it is random on both sides, as i2pd's is. It and the padding are 32 random bytes again and again, which
        compresses well in the first packet of every stream (proposal 161).
        """
        return cls._made(secrets.token_bytes(_RANDOM))

    def derived(self, purpose: str) -> Self:
        """The key of another destination, which only those know who have this one: equal for each of them.

        :param purpose: distinguishes several of them.
        """
        # Here and not above: most uses of destinations make no keys, and start without the library.
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return self._made(HKDF(SHA256(), _RANDOM, None, f"relay {purpose}".encode()).derive(self.data))

    @classmethod
    def _made(cls, random: bytes) -> Self:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        signing = Ed25519PrivateKey.from_private_bytes(random[:32])
        unused = random[32:64] * ((KEYS - 32) // 32)
        certificate = struct.pack(">BHHH", _KEY_CERTIFICATE, 4, ED25519, 0)
        public = unused + signing.public_key().public_bytes_raw() + certificate
        return cls(public + random[64:] + signing.private_bytes_raw())

    @property
    def base64(self) -> str:
        """The private key in I2P's base64, for SAM."""
        return _encoded(self.data)

    @property
    def destination(self) -> str:
        """The destination without the private key, in base64; it is public."""
        return _encoded(self.data[: _destination_length(self.data)])

    @property
    def b32(self) -> str:
        """The destination's address: 52 characters and ``.b32.i2p``."""
        return b32_of(self.destination)

    @property
    def consistent(self) -> bool:
        """``True`` if the signing key is that of the destination, or is not an Ed25519 key, which is not checked.

        A router signs with another key without an error, and then the destination is unreachable.
        """
        signing, encryption = _types(self.data)
        start = _destination_length(self.data) + _ENCRYPTION[encryption]
        private = self.data[start : start + _SIGNING[signing][1]]
        # All zeros stand for an offline signature: there the router has another key on purpose.
        if signing != ED25519 or not any(private):
            return True
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        return public == self.data[KEYS - len(public) : KEYS]

    def __repr__(self) -> str:
        return f"<PrivateKey of {self.b32}>"


def b32_of(destination: str) -> str:
    """The address of a destination ("Naming", base 32 names).

    :param destination: it, in base64.
    :returns: 52 characters and ``.b32.i2p``.
    :raises ValueError: if it is none.
    """
    from i2plib.sam import Destination

    return f"{Destination(_public(destination)).base32}.b32.i2p"


def is_base64(text: str) -> bool:
    """Return whether a text is a whole destination in base64, and not a name."""
    try:
        _public(text)
    except ValueError:
        return False
    return True


def check_destination(text: str) -> str:
    """Check what a user wrote for a destination.

    :param text: base64, an address such as ``….b32.i2p`` (52 characters, or 56 and more for an encrypted lease set), or
        a host name that ends in ``.i2p``.
    :returns: the same without spaces around it; an address or a name in lower case, base64 with its padding.
    :raises ValueError: if it is none of these; it says what is wrong and what is allowed.
    """
    text = text.strip()
    name = text.lower()
    if name.endswith(".b32.i2p"):
        _check_base32(name.removesuffix(".b32.i2p"))
        return name
    if name.endswith(".i2p"):
        _check_name(name)
        return name
    if len(text) < SHORTEST:
        raise ValueError(f"this has {len(text)} characters and does not end in .i2p; {_ALLOWED}")
    return _encoded(_public(text))


def _check_base32(label: str) -> None:
    if not _BASE32.fullmatch(label):
        raise ValueError("before .b32.i2p stands a character that is not of base32; it has a to z and 2 to 7 alone")
    if len(label) != 52 and len(label) < 56:
        raise ValueError(f"before .b32.i2p stand {len(label)} characters; they are 52, or 56 and more")
    if len(label) == 52 and label[-1] not in "aq":  # of its last five bits one is used
        raise ValueError("the 52 characters before .b32.i2p end in a or q; one of these is wrong")
    if len(label) >= 56 and not _is_b33(label):
        raise ValueError(f"the checksum of the {len(label)} characters before .b32.i2p is wrong; one of them must be")


def _is_b33(label: str) -> bool:
    """Return whether this is the address of an encrypted lease set: a checksum covers the flags and the key types."""
    try:
        data = base64.b32decode(label.upper() + "=" * (-len(label) % 8))
    except ValueError:
        return False
    checksum = struct.pack("<I", zlib.crc32(data[3:]))
    data = bytes(a ^ b for a, b in zip(data[:3], checksum, strict=False)) + data[3:]
    kind, start = (data[1] << 8 | data[2], 5) if data[0] & 1 else (data[1], 3)
    return data[0] < 8 and kind in _SIGNING and len(data) - start == _SIGNING[kind][0]


def _check_name(name: str) -> None:
    if len(name) > LONGEST_NAME:
        raise ValueError(f"this name has {len(name)} characters; a name in .i2p has at most {LONGEST_NAME}")
    if not _LABELS.fullmatch(name):
        allowed = (
            "has letters, digits and - between dots, and no - beside a dot; one in another script is its xn-- form"
        )
        raise ValueError(f"this is not a host name; a name in .i2p {allowed}")


def _public(text: str) -> bytes:
    """The bytes of a whole destination that is given in base64."""
    data = _decoded(text)
    length = _destination_length(data)
    if len(data) > length:
        problem = f"these are {len(data)} bytes of base64, and the destination ends after {length}"
        raise ValueError(f"{problem}; the rest may be a private key, which must stay secret")
    return data


def _destination_length(data: bytes) -> int:
    """Return how many of these bytes are the destination."""
    if len(data) < SHORTEST:
        raise ValueError(f"these are {len(data)} bytes; a destination has at least {SHORTEST}")
    kind, size = struct.unpack_from(">BH", data, KEYS)
    if kind not in _CERTIFICATES:
        raise ValueError(f"its certificate is of type {kind}; types are 0 to {max(_CERTIFICATES)}")
    if len(data) < SHORTEST + size:
        problem = f"its certificate has {size} bytes, and {len(data) - SHORTEST} are there"
        raise ValueError(f"{problem}; something is missing at its end")
    if kind == _KEY_CERTIFICATE and size < 4:
        raise ValueError(f"its key certificate has {size} bytes; it has at least 4")
    return SHORTEST + int(size)


def _types(data: bytes) -> tuple[int, int]:
    """The types of a destination's signing and encryption keys."""
    if data[KEYS] != _KEY_CERTIFICATE:
        return 0, 0
    signing, encryption = struct.unpack_from(">HH", data, SHORTEST)
    return signing, encryption


def _check_private(data: bytes) -> None:
    public = _destination_length(data)
    signing, encryption = _types(data)
    if signing not in _SIGNING or encryption not in _ENCRYPTION:
        raise ValueError(f"its keys are of types {signing} and {encryption}, which are not known")
    start = public + _ENCRYPTION[encryption]
    expected = start + _SIGNING[signing][1]
    if len(data) > start and not any(data[start:]):
        raise ValueError("its signing private key is empty")
    if len(data) >= expected and not any(data[start:expected]):
        expected += _offline_length(data[expected:], signing)
    if len(data) != expected:
        problem = f"these are {len(data)} bytes; a private key of this destination has {expected}"
        raise ValueError(f"{problem}" + ("; this is the destination alone" if len(data) == public else ""))


def _offline_length(data: bytes, signing: int) -> int:
    """The length of an offline signature, which is there when the signing private key is all zeros.

    Its parts: when it expires (4 bytes), the type of the transient key, that key, the signature, the private key.
    """
    if len(data) < 6:
        raise ValueError(
            "its signing private key is empty, and of an offline signature not even the beginning is there"
        )
    (transient,) = struct.unpack_from(">H", data, 4)
    if transient not in _SIGNING:
        raise ValueError(f"the transient key of its offline signature is of type {transient}, which is not known")
    public, private, _ = _SIGNING[transient]
    return 6 + public + _SIGNING[signing][2] + private


def _decoded(text: str) -> bytes:
    """The bytes of I2P's base64; the padding may be missing."""
    from i2plib.sam import i2p_b64decode

    if not _BASE64.fullmatch(text):
        raise ValueError("there is a character that is not of I2P's base64; it has A to Z, a to z, 0 to 9, - and ~")
    digits = text.rstrip("=")
    if len(digits) % 4 == 1:
        raise ValueError(f"{len(digits)} characters cannot be base64; one is missing or too many")
    decoded: bytes = i2p_b64decode(digits + "=" * (-len(digits) % 4))
    return decoded


def _encoded(data: bytes) -> str:
    from i2plib.sam import i2p_b64encode

    encoded: str = i2p_b64encode(data)
    return encoded
