"""The algorithms that paramiko has, by the option of ssh_config(5) that chooses among them."""

from __future__ import annotations

__all__ = ["CLIENT_HINT", "LISTS", "supported"]

CLIENT_HINT = "backend='openssh' (in an address: ?backend=openssh)"  # what to take where they do not suffice

_ATTRIBUTES = {
    "ciphers": "_preferred_ciphers",
    "kexalgorithms": "_preferred_kex",
    "macs": "_preferred_macs",
    "hostkeyalgorithms": "_preferred_keys",
    "pubkeyacceptedalgorithms": "_preferred_pubkeys",
}
LISTS = tuple(_ATTRIBUTES)


def supported(option: str) -> tuple[str, ...]:
    """What the installed paramiko can do, its favourites first.

    :param option: one of :data:`LISTS`.
    :raises RelayError: if it is no paramiko that relay knows.
    """
    import paramiko

    from ..internals import BACKEND, check

    check(BACKEND, "relay")
    # `Transport.get_security_options` says the same, but only of a connection that is there.
    return tuple(getattr(paramiko.Transport, _ATTRIBUTES[option]))
