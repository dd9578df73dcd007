"""Public keys of key files, ``.pub`` files and certificates, read without a passphrase."""

from __future__ import annotations

import base64
import binascii
import re
import struct

from ....access.regular_file import open_regular

CERTIFICATE = "-cert-v01@openssh.com"  # ends the type of a certificate; OpenSSH's PROTOCOL.certkeys
LONGEST_FILE = 1 << 20  # bytes of a key file that are read
NO_PASSPHRASE = "is encrypted and there is no passphrase for it; set passphrase, or run ssh-add"  # noqa: S105
WRONG_PASSWORD = "the password or the user name is wrong"  # noqa: S105

_BEGIN = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_END = b"-----END OPENSSH PRIVATE KEY-----"
_NAME = re.compile(r"[!-+\--~]{1,64}")  # of an algorithm: no space, comma or control character; RFC 4251, section 6
_MAGIC = b"openssh-key-v1\0"
_PARTS = {"ssh-ed25519": 1, "sk-ssh-ed25519": 2, "ssh-rsa": 2, "sk-ecdsa-sha2-nistp256": 3}  # 2 for all other ECDSA


def strings(blob: bytes, count: int) -> list[bytes]:
    """Return the first ``count`` strings of an SSH message (RFC 4251, section 5).

    :raises ValueError: if it has fewer.
    """
    found: list[bytes] = []
    at = 0
    for _ in range(count):
        if len(blob) < at + 4:
            raise ValueError("a string is cut off")
        (size,) = struct.unpack_from(">I", blob, at)
        if len(blob) < at + 4 + size:
            raise ValueError("a string is cut off")
        found.append(blob[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def key_type(blob: bytes) -> str:
    """Return the type of an encoded public key; empty if it is none."""
    try:
        name = strings(blob, 1)[0].decode("ascii")
    except ValueError:
        return ""
    return name if _NAME.fullmatch(name) else ""


def public_key(path: str) -> bytes | None:
    """Return the public key of a key file, from ``path``, ``path.pub``, or the unencrypted part of a private key.

    :param path: a private key or a ``.pub`` file.
    :returns: the key (or the certificate) in SSH's encoding; ``None`` if there is none.
    """
    for candidate in (path, f"{path}.pub"):
        try:
            with open_regular(candidate) as file:
                data = file.read(LONGEST_FILE)
        except OSError:
            continue
        blob = _public_line(data) if b"PRIVATE KEY-----" not in data else clear_part(data)
        if blob is not None:
            return blob
    return None


def file_type(path: str) -> str:
    """Return the type of the key in a file, such as ``ssh-ed25519``; empty if it is unknown."""
    return key_type(public_key(path) or b"")


def certified_key(blob: bytes) -> bytes | None:
    """Return the public key in a certificate; ``None`` if it is no certificate."""
    name = key_type(blob)
    if not name.endswith(CERTIFICATE):
        return None
    plain = name.removesuffix(CERTIFICATE)
    count = _PARTS.get(plain, 2)
    try:
        parts = strings(blob, 2 + count)[2:]  # after the type and the nonce
    except ValueError:
        return None
    plain += "@openssh.com" if plain.startswith("sk-") else ""
    return b"".join(struct.pack(">I", len(part)) + part for part in (plain.encode("ascii"), *parts))


def _public_line(data: bytes) -> bytes | None:
    """Return the key of a line ``type base64 comment``."""
    fields = data.split(None, 2)
    if len(fields) < 2:
        return None
    try:
        blob = base64.b64decode(fields[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob if key_type(blob).encode("ascii") == fields[0] else None


def clear_part(data: bytes) -> bytes | None:
    """Return the public key in a private key of OpenSSH's format, where it is not encrypted (PROTOCOL.key)."""
    body = data.partition(_BEGIN)[2].partition(_END)[0]
    try:
        content = base64.b64decode(body)
        if not content.startswith(_MAGIC):
            return None
        rest = content.removeprefix(_MAGIC)
        head = sum(4 + len(part) for part in strings(rest, 3))  # cipher, key derivation, its options
        return strings(rest[head + 4 :], 1)[0]  # after the number of keys
    except (binascii.Error, ValueError):
        return None
