"""Certificates and keys in files, the TLS contexts made of them, and the identity of a client with a certificate."""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import os
import re
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable

from ...addresses.options import GROUPS
from ...streams.identity import Certificate, Identity, identity_of_peer, name_of

logger = logging.getLogger("relay.tls")

Path = str | os.PathLike[str]

_INTERVAL = 1.0  # seconds between two looks at the files
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_CURVES = {"P-256": "prime256v1", "secp256r1": "prime256v1", "P-384": "secp384r1", "P-521": "secp521r1"}  # in ssl

_own: weakref.WeakKeyDictionary[ssl.SSLContext, bytes] = weakref.WeakKeyDictionary()  # which no context tells


class Credentials:
    """The context made of some files, and another one once they have changed.

    Handshakes look, at most once a second, and nothing does in the background. A new context has no sessions and no
    tickets, so that nothing which another authority has vouched for is resumed.

    :param make: makes the context of the files; its errors are those of :func:`load_chain` and :func:`trusting`.
    :param files: the arguments of ``make``; ``None`` for one that is not given.
    """

    def __init__(self, make: Callable[..., ssl.SSLContext], *files: Path | None) -> None:
        self.loads, self.failures = 0, 0
        """The loads after the files have changed, and those that have failed."""
        self._make = make
        self._seen = [_identity(path) for path in files]  # before they are read: what changes meanwhile is seen later
        self._context = make(*files)
        # The working directory may be another one by then.
        self._files = [None if path is None else os.path.abspath(path) for path in files]
        self._due = time.monotonic() + _INTERVAL
        self._is_failing = False
        self._turn = threading.Lock()  # no thread waits for it

    def current(self, owner: object) -> ssl.SSLContext:
        """Return the context for a handshake that begins now. From any thread.

        :param owner: what shakes hands, for the log.
        """
        now = time.monotonic()
        if now >= self._due and self._turn.acquire(blocking=False):
            try:
                # First: while the files are read, other threads go on with the context that there is.
                self._due = now + _INTERVAL
                seen = [_identity(path) for path in self._files]
                if seen != self._seen:
                    self._seen = seen
                    self._load(owner)
            finally:
                self._turn.release()
        return self._context

    def not_after(self, owner: object = None) -> float | None:
        """Return until when the certificate in use is valid: seconds since 1970, ``None`` if unknown.

        :param owner: what may load changed files before; ``None`` to leave that to handshakes.
        """
        return not_after(self._context if owner is None else self.current(owner))

    def _load(self, owner: object) -> None:
        try:
            self._context = self._make(*self._files)
        except (OSError, ValueError) as error:
            self.failures += 1
            if not self._is_failing:  # else it has been said; a renewal may write its files one after the other
                text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
                logger.warning("%s: %s; the certificates loaded before stay in use", owner, text)
            self._is_failing = True
        else:
            self.loads += 1
            self._is_failing = False
            logger.info("%s: loaded the certificates again, because their files have changed", owner)


def _identity(path: Path | None) -> tuple[int, ...] | None:
    """Return what changes when a file does; ``None`` if there is none."""
    try:
        status = os.stat(path) if path is not None else None
    except (OSError, TypeError, ValueError):
        return None
    return status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def trusting(purpose: ssl.Purpose, argument: str, ca: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """A context for TLS 1.2 and later, with Python's recommended settings.

    :param purpose: ``ssl.Purpose.SERVER_AUTH`` for a client, which verifies; ``CLIENT_AUTH`` for a server, which
        verifies if ``ca`` is given.
    :param argument: the name of the argument ``ca``, for errors.
    :param ca: a PEM file with the only authorities to trust; ``None`` for the system's (a client) or none (a server).
    :raises OSError: if the file cannot be read.
    :raises ValueError: if it holds no certificate.
    """
    if ca is not None:
        _check_readable(argument, ca)
    try:
        context = ssl.create_default_context(purpose, cafile=ca)
    except ssl.SSLError as error:
        raise ValueError(
            f"{argument}: {os.fspath(ca or '')} holds no certificate in PEM form; name a file with one"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could make the server compute without end, and TLS 1.3 has none anyway.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def set_groups(context: ssl.SSLContext, groups: str | None) -> None:
    """Let a context agree on keys in some groups only.

    :param groups: their names, the preferred one first, with commas between them; ``None`` for those of OpenSSL. Python
        before 3.15 can set one.
    :raises TypeError: if it is no text.
    :raises ValueError: if the names are not valid, or this Python cannot set them.
    """
    if groups is None:
        return
    GROUPS.check("groups", groups)
    try:
        if sys.version_info >= (3, 15):
            context.set_groups(groups.replace(",", ":"))
        else:
            context.set_ecdh_curve(_CURVES.get(groups, groups))
    except (ValueError, ssl.SSLError):
        version = ".".join(map(str, sys.version_info[:2]))
        raise ValueError(
            f"groups: Python {version} with {ssl.OPENSSL_VERSION} cannot set {groups!r}; give one group that it knows, "
            "such as X25519 or P-256, or set Groups in a configuration file of OpenSSL"
        ) from None


def load_chain(context: ssl.SSLContext, cert: str | os.PathLike[str], key: str | os.PathLike[str] | None) -> None:
    """Let a context show a certificate.

    :param cert: a PEM file with the certificate and those of the authorities between it and the root.
    :param key: a PEM file with its private key, not encrypted; ``None`` if it is in ``cert``.
    :raises OSError: if a file cannot be read.
    :raises ValueError: if one does not hold what it should, the key is encrypted, or they do not belong together.
    """
    _check_readable("cert", cert)
    if key is not None:
        _check_readable("key", key)
    argument, path = ("cert", os.fspath(cert)) if key is None else ("key", os.fspath(key))

    def no_passphrase() -> str:
        raise ValueError(f"{argument}: the key in {path} is encrypted; 'openssl pkey -in {path}' writes it without")

    try:
        # Without the callable OpenSSL would ask at the terminal, and block the process.
        context.load_cert_chain(cert, key, password=no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            mismatch = f"the key in {path} is not that of the certificate in {cert}"
            raise ValueError(f"{argument}: {mismatch}; name files that belong together") from error
        _check_certificate(cert)
        raise ValueError(f"{argument}: {path} holds no private key in PEM form; name a file with one") from error
    with open(cert, "rb") as file:  # without the key, which may follow
        found = _CERTIFICATE.search(file.read())
    if found is not None:
        _own[context] = found[0]


def not_after(context: ssl.SSLContext) -> float | None:
    """Return until when the certificate that a context shows is valid: seconds since 1970, ``None`` if unknown."""
    own = _own.get(context)
    return None if own is None else _end_of(own)


@functools.lru_cache(1024)
def _end_of(certificate: bytes) -> float | None:
    from cryptography import x509  # a listener does not need it

    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except ValueError:
        return None


def _check_certificate(cert: str | os.PathLike[str]) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except ssl.SSLError as error:
        raise ValueError(f"cert: {os.fspath(cert)} holds no certificate in PEM form; name a file with one") from error


def _check_readable(argument: str, path: str | os.PathLike[str]) -> None:
    """Open the file, for :mod:`ssl` does not say which one it could not read."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument}: expected the path of a PEM file, got {type(path).__name__}")
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        remedy = "; check the path" if isinstance(error, FileNotFoundError) else ""
        raise OSError(error.errno, f"{argument}: {error.strerror}{remedy}", os.fspath(path)) from None


def identity_of_client(tls: ssl.SSLObject, peer: object) -> Identity | None:
    """Return the identity of a client whose handshake is done.

    :param tls: the session, of a server.
    :param peer: the client's address, as ``accept()`` returned it.
    :returns: that of its certificate; ``None`` if it has shown none.
    :raises ValueError: if that cannot be read. No rule that denies one of its names would hold.
    """
    encoded = tls.getpeercert(binary_form=True)
    if encoded is None:
        return None
    certificate = certificate_of(encoded)
    address = identity_of_peer(peer)
    host, port = (address.host, address.port) if address is not None else (None, None)
    return Identity("tls", name_of(certificate.name), host, port, certificate=certificate)


def certificate_of(encoded: bytes) -> Certificate:
    """Return the names in a certificate.

    :param encoded: the certificate, in DER.
    :raises ValueError: if it cannot be read.
    """
    try:
        return _names_in(encoded)
    except Exception as error:  # the library has a class of its own for each kind of what it does not know
        raise ValueError(f"the certificate of the client cannot be read: {error}") from error


def _names_in(encoded: bytes) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    certificate = x509.load_der_x509_certificate(encoded)
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    dns: tuple[str, ...] = ()
    uri: tuple[str, ...] = ()
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        dns = tuple(alternatives.get_values_for_type(x509.DNSName))
        uri = tuple(alternatives.get_values_for_type(x509.UniformResourceIdentifier))
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    spki = base64.b64encode(hashlib.sha256(key).digest()).decode()
    return Certificate(str(names[-1].value) if names else None, dns, uri, f"sha256:{spki}")
