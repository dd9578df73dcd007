"""Certificates and keys in files, and the TLS contexts made of them."""

from __future__ import annotations

import functools
import os
import re
import ssl
import weakref

__all__ = ["load_chain", "not_after", "trusting"]

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_own: weakref.WeakKeyDictionary[ssl.SSLContext, bytes] = weakref.WeakKeyDictionary()  # which no context tells


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
    context.options |= ssl.OP_NO_RENEGOTIATION
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


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
        raise OSError(error.errno, f"{argument}: {error.strerror}", os.fspath(path)) from None
