"""The targets by their names. Each takes bytes, and returns for good and for bad ones; what it raises is a finding."""

from __future__ import annotations

import importlib
from collections.abc import Callable

_MODULES = {
    "of_files": ("relay_toml",),
    "of_users": ("addresses", "host_keys", "i2p_keys", "processes", "rules", "secrets", "ssh_config"),
    "of_clients": (
        "http_client", "identities", "operators", "proxy_header", "sni_client", "socks_client", "tls_client",
        "tls_records", "upgrade",
    ),
    "of_servers": (
        "http_proxy", "sam", "socks_proxy", "ssh_control", "ssh_greeting", "ssh_log", "ssh_packets", "tor_control",
    ),
    "of_resume": ("resume_greetings", "resume_session"),
    "of_websockets": ("websocket_answer", "websocket_frames", "websocket_headers", "websocket_request"),
}  # fmt: skip

NAMES = sorted(name for names in _MODULES.values() for name in names)


def load(name: str) -> Callable[[bytes], None]:
    """Import a target, with the parsers that it needs and no others: atheris rewrites each module."""
    module = next(module for module, names in _MODULES.items() if name in names)
    found: Callable[[bytes], None] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return found
