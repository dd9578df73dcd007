"""The keywords of the options, for type checkers; docs/write_reference.py writes this file."""

from __future__ import annotations

import os
from typing import Literal, TypedDict

from ..access.limit import LimitsLike
from ..access.policy import Admit, Entries
from ..addresses.options import Secret
from ..engine.observer import OnEnd


class SSHKeywords(TypedDict, total=False):
    """Options of SSH servers."""

    keyfile: str | os.PathLike[str] | None
    identities_only: bool
    passphrase_file: str | os.PathLike[str] | None
    passphrase_env: str | None
    password_file: str | os.PathLike[str] | None
    password_env: str | None
    known_hosts: str | os.PathLike[str] | None
    hostkey: str | None
    accept_new: bool
    config: str | os.PathLike[str] | None
    keepalive: float | None
    probe: bool
    carriers: int
    renew_after: float | None
    resume: bool | str | None
    resume_for: float | None
    resume_buffer: str
    compress: bool | None
    backend: str | None
    passphrase: Secret | None
    password: Secret | None


class I2PKeywords(TypedDict, total=False):
    """Options of I2P routers and sessions."""

    keys: str | os.PathLike[str] | None
    carriers: int
    renew_after: float | None
    in_depth: int | None
    out_depth: int | None
    user: str | None
    password: Secret | None
    password_file: str | os.PathLike[str] | None
    password_env: str | None


class ServerKeywords(I2PKeywords, total=False):
    """And of a server."""

    connect_timeout: float | None
    idle_timeout: float | None
    linger: float | None
    first_byte_timeout: float | None
    source: str | None
    limit: LimitsLike | None
    send_proxy: Literal["v1", "v2"] | None
    name: str | None
    tag: str | None
    allow: Entries | None
    deny: Entries | None
    admit: Admit | None
    on_end: OnEnd | None


class ClientKeywords(I2PKeywords, total=False):
    """And of a client."""

    connect_timeout: float | None
    idle_timeout: float | None
    linger: float | None
    first_byte_timeout: float | None
    warm: int
    warm_for: float
    limit: LimitsLike | None
    send_proxy: Literal["v1", "v2"] | None
    name: str | None
    tag: str | None
    allow: Entries | None
    deny: Entries | None
    admit: Admit | None
    on_end: OnEnd | None
