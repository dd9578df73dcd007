"""Facts about a TLS connection: what was negotiated, and the certificates that the server has sent."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from ...addresses.printable import shown

EXPIRES_SOON = 21  # days before the end of a certificate: what renews it has failed by then
_MOST = 8  # names that are shown


def tls_facts(connection: ssl.SSLObject) -> dict[str, Any]:
    """Return the facts of a TLS connection, also of a handshake that has failed."""
    facts: dict[str, Any] = {"version": connection.version() or "", "alpn": connection.selected_alpn_protocol() or ""}
    cipher = connection.cipher()
    facts["cipher"] = cipher[0] if cipher else ""
    facts["library"] = ssl.OPENSSL_VERSION
    facts["chain"] = _chain(connection)
    return facts


def _chain(connection: ssl.SSLObject) -> list[bytes]:
    """Return the certificates as the server has sent them, whether they were accepted or not."""
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13
        return [bytes(each) for each in connection.get_unverified_chain()]
    # Before 3.13 only the private object has it; where it does not, doctor shows a certificate less and does not fail.
    private: Any = getattr(connection, "_sslobj", None)
    with contextlib.suppress(AttributeError, ssl.SSLError, ValueError):
        return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in private.get_unverified_chain() or ()]
    return []


def certificate_facts(chain: Sequence[bytes]) -> dict[str, Any]:
    """Return what the certificate of a server says, and how many certificates came with it.

    :param chain: in DER, the server's own first.
    :returns: empty if there is none, or if it cannot be read.
    """
    if not chain:
        return {}
    try:
        # The bytes are a peer's, and the handshake may have failed because of them.
        own = x509.load_der_x509_certificate(chain[0])
        return {
            "names": _names(own),
            "issuer": shown(own.issuer.rfc4514_string()),
            "not_before": own.not_valid_before_utc.isoformat(),
            "not_after": own.not_valid_after_utc.isoformat(),
            "days_left": _days(own.not_valid_after_utc),
            "days_until_valid": _days(own.not_valid_before_utc),
            "self_signed": own.issuer == own.subject,
            "fingerprint": own.fingerprint(SHA256()).hex(),
            "chain_length": len(chain),
        }
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return {}


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    names = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    return [shown(name) for name in names[:_MOST]]


def _days(moment: datetime.datetime) -> float:
    """Return the days from now to a moment; negative for the past."""
    return round((moment - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400, 2)
