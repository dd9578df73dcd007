"""The names of paramiko that relay uses beyond its documented interface, and the check that the installed one has them.

A method that paramiko no longer calls, or an attribute that it no longer reads, would fail silently: limits would not
hold, keys would not change. So all such names are listed here. Each user checks its list once, at its import.
This module imports paramiko only when it is used, because the OpenSSH backend works without it.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Mapping
from importlib import import_module
from types import FunctionType

from ...errors import RelayError

REQUIRED = "paramiko>=5,<6"  # as in pyproject.toml

Names = Mapping[str, str]
"""Names that are overridden or used, by the class or module of paramiko that must have them."""

# Of the backend paramiko and of the settings.
BACKEND: Names = {
    "transport.Transport": """
        _cipher_info _expected_packet _handler_table _kex_info _key_info _log _mac_info _parse_disconnect
        _parse_ext_info _parse_kex_init _parse_newkeys _preferred_ciphers _preferred_kex _preferred_keys
        _preferred_macs _preferred_pubkeys _really_parse_kex_init _send_kex_init _send_message in_kex
        initial_kex_done packetizer run saved_exception server_extensions
    """,
    "packet.Packetizer": """
        REKEY_BYTES REKEY_BYTES_OVERFLOW_MAX _Packetizer__need_rekey _Packetizer__sequence_number_in
        _Packetizer__sequence_number_out _trigger_rekey need_rekey read_all read_message readline send_message
        set_inbound_cipher set_inbound_compressor set_outbound_cipher set_outbound_compressor start_handshake write_all
    """,
    "packet": "NeedRekeyException",
    "auth_handler.AuthHandler": """
        _parse_service_accept _parse_userauth_info_request _request_auth auth_event auth_method banner password
        private_key username wait_for_response
    """,
    "kex_gex.KexGexSHA256": "_parse_kexdh_gex_group min_bits name",
    "pkey.PKey": "asbytes get_name sign_ssh_data",
    "config.SSHConfig": "TOKENS_BY_CONFIG_KEY _does_match",
}

# Of relay.compat.rforward, which uses the caller's transport and channels.
COMPAT: Names = {
    "transport.Transport": """
        _channels _handler_table _next_channel _queue_incoming_channel _send_message _send_user_message
        channels_seen default_max_packet_size default_window_size in_kex lock saved_exception
        server_accepts
    """,
    "transport.ChannelMap": "put",
    "channel.Channel": """
        _set_remote_channel _set_transport _set_window eof_received origin_addr remote_chanid transport
    """,
}

# The attribute with the algorithms for each option of ssh_config(5).
_ATTRIBUTES = {
    "ciphers": "_preferred_ciphers",
    "kexalgorithms": "_preferred_kex",
    "macs": "_preferred_macs",
    "hostkeyalgorithms": "_preferred_keys",
    "pubkeyacceptedalgorithms": "_preferred_pubkeys",
}
LISTS = tuple(_ATTRIBUTES)
"""The options of ssh_config(5) that are lists of algorithms, in lower case."""

# Of relay.testing.SSHServer, which is paramiko's server.
TESTING: Names = {
    "transport.Transport": """
        _channel_handler_table _channels _next_channel _parse_channel_open _parse_kex_init _really_parse_kex_init
        _send_user_message _unlink_channel auth_handler channels_seen clear_to_send default_max_packet_size
        default_window_size local_kex_init lock packetizer renegotiate_keys run
    """,
    "transport.ChannelMap": "put",
    "channel.Channel": """
        _handle_close _handle_request _set_closed _set_remote_channel _set_transport _set_window _unlink chanid
        closed in_buffer lock remote_chanid transport
    """,
    "auth_handler.AuthHandler": "_parse_service_request",
}


def check(names: Names, user: str, instead: str = "") -> None:
    """Check that the installed paramiko has all names.

    :param names: the names, separated by white space, by their place in the package.
    :param user: the part of relay that needs them, for the error.
    :param instead: an alternative for the error; may be empty.
    :raises RelayError: if a name is missing; the one line contains the installed version.
    """
    import paramiko

    missing = [f"{place}.{name}" for place, wanted in names.items() for name in wanted.split() if not _has(place, name)]
    if missing:
        some = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        problem = f"paramiko {paramiko.__version__} has no {some}, which {user} needs"
        raise RelayError(f"{problem}; install {REQUIRED}{instead and f', or {instead}'}")


def supported(option: str) -> tuple[str, ...]:
    """Return the algorithms that the installed paramiko supports, the best first.

    :param option: one of :data:`LISTS`.
    :returns: their names.
    :raises RelayError: if the installed paramiko lacks a name of :data:`BACKEND`.
    """
    import paramiko

    check(BACKEND, "relay")
    # `Transport.get_security_options` returns the same, but only for an open connection.
    return tuple(getattr(paramiko.Transport, _ATTRIBUTES[option]))


def _has(place: str, name: str) -> bool:
    module, _, kind = place.partition(".")
    try:
        owner = import_module(f"paramiko.{module}")
    except ImportError:
        return False
    if not kind:
        return hasattr(owner, name)
    cls = getattr(owner, kind, None)
    return isinstance(cls, type) and (hasattr(cls, name) or any(name in _set_by(base) for base in cls.__mro__))


@functools.cache
def _set_by(cls: type) -> set[str]:
    """Return the attributes that the constructor of a class sets: they are not in the class."""
    constructor = vars(cls).get("__init__")
    if not isinstance(constructor, FunctionType):
        return set()
    # From its bytecode, since an instance would need a socket.
    return {step.argval for step in dis.get_instructions(constructor) if step.opname == "STORE_ATTR"}
