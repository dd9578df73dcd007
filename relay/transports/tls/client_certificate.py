"""The identity of a TLS client, from the certificate that the listener has verified."""

from __future__ import annotations

import base64
import hashlib
import ssl

from ...streams.identity import Certificate, Identity, identity_of_peer, name_of


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
