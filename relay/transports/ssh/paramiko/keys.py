"""The keys for the login in the order of their offers: from files, from the agent, with their certificates."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from paramiko.pkey import PublicBlob

from ....access.regular_file import open_regular
from ....addresses.printable import one_line
from ...credentials import passphrase_of
from ..config.identities import (
    CERTIFICATE,
    LONGEST_FILE,
    NO_PASSPHRASE,
    certified_key,
    clear_part,
    key_type,
    public_key,
)
from ..config.known_hosts import fingerprint
from ..connection import Settings
from .agent import Agent

Sign = Callable[[bytes, str], bytes]
Patiently = Callable[[Callable[[], str | None]], str | None]

_FLAGS = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}
_KINDS = {rsa.RSAPrivateKey: "RSAKey", ec.EllipticCurvePrivateKey: "ECDSAKey", ed25519.Ed25519PrivateKey: "Ed25519Key"}


class Offer(paramiko.PKey):  # type: ignore[misc]
    """A key or certificate for paramiko, with a function that signs.

    If signing fails, the signature is empty: the server rejects it, and ``problem`` has the reason.

    :param blob: the public key or certificate.
    :param where: its name in an error.
    :param sign: makes the signature, from the data and the name of the algorithm.
    """

    def __init__(self, blob: bytes, where: str, sign: Sign) -> None:
        self.blob = blob
        self.where = where
        self.problem = ""
        self.public_blob = PublicBlob(key_type(blob), blob)
        self._sign = sign

    def get_name(self) -> str:
        """Return the type of the key."""
        return key_type(self.blob)

    def asbytes(self) -> bytes:
        """Return the public key."""
        return self.blob

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> Any:
        """Return the signature as a message."""
        try:
            return self._sign(data, algorithm or self.get_name())
        except Exception as error:  # noqa: BLE001 - of any library or agent; see above
            self.problem = str(error) or type(error).__name__
            return b""

    @property
    def text(self) -> str:
        """The description for an error: the key's origin, type and fingerprint."""
        kind = self.get_name().removesuffix(CERTIFICATE).removeprefix("ssh-").partition("-")[0].upper()
        certificate = " certificate" if self.get_name().endswith(CERTIFICATE) else ""
        shown = fingerprint(certified_key(self.blob) or self.blob)
        return f"{self.where} ({kind}{certificate} {shown})"


class Keys:
    """The keys that may be offered to a server. Each is loaded and decrypted only when its turn comes.

    :param settings: names the keys.
    :param note: called with one line for each key that is unusable.
    :param patiently: calls a function that may run the caller's code, which may block.
    """

    def __init__(self, settings: Settings, note: Callable[[str], object], patiently: Patiently) -> None:
        self._settings = settings
        self._note = note
        self._patiently = patiently
        self._agent: Agent | None = None
        self._held: dict[bytes, str] = {}

    def close(self) -> None:
        """Close the connection to the agent. Idempotent."""
        if self._agent is not None:
            self._agent.close()

    def __iter__(self) -> Iterator[Offer]:
        """Yield the caller's keys and the configured ones, each after its certificates; then the others of the agent.

        :raises AuthenticationError: if the passphrase cannot be read from its file or variable.
        """
        # Once, and before the files: a key that the agent has needs no passphrase of its file.
        self._ask_agent()
        seen: set[bytes] = set()
        for offer in self._all():
            # Servers count attempts (MaxAuthTries): no key is offered twice.
            if offer.blob not in seen:
                seen.add(offer.blob)
                yield offer

    def _all(self) -> Iterator[Offer]:
        certificates = [blob for path in self._settings.certificates if (blob := public_key(path)) is not None]
        for key in self._settings.keys:
            yield from _of_key(key)
        for path in self._settings.identities:
            yield from self._of_file(path, certificates)
        for blob in () if self._settings.identities_only else self._held:
            yield self._of_agent(blob, blob)

    def _ask_agent(self) -> None:
        if self._settings.agent is None:
            return
        try:
            self._agent = Agent(self._settings.agent)
        except OSError as error:
            self._note(f"the agent at {self._settings.agent} is not available: {error.strerror or error}")
        else:
            self._held = self._agent.keys

    def _of_file(self, path: str, certificates: list[bytes]) -> Iterator[Offer]:
        public = public_key(path)
        plain = public and (certified_key(public) or public)
        if plain in self._held:
            sign, blob = self._agent_signs(plain), plain
        elif path.endswith(".pub"):
            self._note(f"the key of {path} is not in the agent")
            return
        else:
            loaded = self._load(path)
            if loaded is None:
                return
            sign, blob = loaded
        beside = public_key(path.removesuffix(".pub").removesuffix("-cert") + "-cert.pub")
        for certificate in (*certificates, *([beside] if beside else []), *self._held):
            if certified_key(certificate) == blob:
                yield Offer(certificate, path, sign)
        yield Offer(blob, path, sign)

    def _of_agent(self, blob: bytes, signer: bytes) -> Offer:
        comment = one_line(self._held[blob], 60)
        return Offer(blob, f"the agent's {comment or 'key'}", self._agent_signs(signer))

    def _agent_signs(self, blob: bytes) -> Sign:
        def sign(data: bytes, algorithm: str) -> bytes:
            assert self._agent is not None
            return self._agent.sign(blob, data, _FLAGS.get(algorithm.removesuffix(CERTIFICATE), 0))

        return sign

    def _load(self, path: str) -> tuple[Sign, bytes] | None:
        """Load a private key; return its signing function and the public key, or ``None``, with a note, if unusable."""
        try:
            key = load(path, partial(self._patiently, partial(passphrase_of, self._settings.server, path)))
        except ValueError as error:
            self._note(f"{path} {error}")
            return None
        return lambda data, algorithm: bytes(key.sign_ssh_data(data, algorithm)), key.asbytes()


def _of_key(key: Any) -> Iterator[Offer]:
    """Yield a key of the caller, after its certificate."""

    def sign(data: bytes, algorithm: str) -> bytes:
        return bytes(key.sign_ssh_data(data, algorithm))

    certificate = key.public_blob
    for blob in (*([certificate.key_blob] if certificate is not None else []), key.asbytes()):
        yield Offer(blob, "the caller's key", sign)


def load(path: str, passphrase: Callable[[], str | None]) -> Any:
    """Read a private key of any format: OpenSSH's own, PEM or PKCS #8.

    :param path: the file.
    :param passphrase: called only if the key is encrypted.
    :returns: paramiko's key.
    :raises ValueError: if the file is unusable; the text continues a sentence that begins with its name.
    :raises AuthenticationError: if the passphrase cannot be read.
    """
    try:
        with open_regular(path) as file:
            data = file.read(LONGEST_FILE)
            mode = os.fstat(file.fileno())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    # The mode of the open file, and not of its path, which may be another file by then.
    if mode.st_uid == os.getuid() and mode.st_mode & 0o077:
        raise ValueError(f"is accessible to other users (mode {stat.S_IMODE(mode.st_mode):04o}); run chmod 600")
    try:
        # First without: only an encrypted key is worth asking its owner for a passphrase.
        key = _decoded(data, None)
    except TypeError:  # encrypted
        word = passphrase()
        if not word:
            raise ValueError(NO_PASSPHRASE) from None
        try:
            key = _decoded(data, word.encode("utf-8", "surrogateescape"))
        except ValueError:
            raise ValueError("is encrypted with another passphrase than the one that was given") from None
    return _as_paramiko(key)


def _decoded(data: bytes, passphrase: bytes | None) -> Any:
    """Decode a private key.

    :raises TypeError: if it is encrypted and there is no passphrase.
    :raises ValueError: if it is not a private key, or the passphrase is wrong.
    """
    read = serialization.load_pem_private_key
    if b"-----BEGIN OPENSSH PRIVATE KEY-----" in data:
        read = serialization.load_ssh_private_key
        if key_type(clear_part(data) or b"") == "ssh-dss":  # about which it would print a warning
            raise ValueError("holds a kind of key that paramiko cannot use")
    try:
        return read(data, passphrase)
    except UnsupportedAlgorithm:
        raise ValueError("holds a kind of key that paramiko cannot use") from None
    except ValueError:
        raise ValueError("is not a private key that paramiko can read") from None


def _as_paramiko(key: Any) -> Any:
    """Convert a key to paramiko's class, by the one format that all of its classes read."""
    name = next((name for kind, name in _KINDS.items() if isinstance(key, kind)), None)
    if name is None:
        raise ValueError("holds a kind of key that paramiko cannot use")
    form = serialization.PrivateFormat.OpenSSH
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return getattr(paramiko, name).from_private_key(io.StringIO(text.decode("ascii")))
