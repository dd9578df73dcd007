"""Local forwards over SSH, under the names of sshtunnel 0.5.1, with relay underneath.

``from relay.compat import sshtunnel``, or ``from relay.compat.sshtunnel import …``, is all that a program written for
it changes. relay verifies the server's host key, which sshtunnel does not; see :data:`HOST_KEYS`. The native form is
:func:`relay.ssh`.
"""

from __future__ import annotations

import dataclasses
import functools
import getpass
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from ..addresses.ssh import SSHServer
from ..addresses.values import TCPAddress
from ..engine.records import ConnectionRecord
from ..engine.tunnel import Tunnel
from ..errors import AuthenticationError, HostKeyError
from ..streams.dialer import Dialer, Upgrade
from ..transports.ssh.dialer import SSHFactory
from ..transports.tcp import listen_tcp
from ..transports.unix import listen_unix
from . import _sshtunnel as parts

__all__ = [
    "BaseSSHTunnelForwarderError",
    "DEFAULT_LOGLEVEL",
    "DEFAULT_SSH_DIRECTORY",
    "HOST_KEYS",
    "HandlerSSHTunnelForwarderError",
    "SSHTunnelForwarder",
    "SSH_CONFIG_FILE",
    "SSH_TIMEOUT",
    "TRACE_LEVEL",
    "TUNNEL_TIMEOUT",
    "address_to_str",
    "check_address",
    "check_addresses",
    "create_logger",
    "open_tunnel",
]

__version__ = "0.5.1"

Bind = tuple[str, int] | str
"""A TCP address, or the path of a Unix socket."""

SSH_TIMEOUT: float | None = 0.1
"""Without effect: relay does not wake up to look for data, so it has no such interval."""

TUNNEL_TIMEOUT: float | None = 10.0
"""Seconds that a client waits for its connection to the target, a reconnect of SSH included; ``None`` for no limit."""

HOST_KEYS: Literal["strict", "accept-new", "off"] = "strict"
"""Which host keys a forwarder trusts that has neither ``ssh_host_key`` nor ``host_keys``.

``strict``: those of ``known_hosts``. ``accept-new``: also that of an unknown host, which is stored. ``off``: any, as in
sshtunnel. It is not in sshtunnel.
"""

DEFAULT_LOGLEVEL: int | str = logging.ERROR
"""The level of a logger that :func:`create_logger` sets up."""

TRACE_LEVEL = 1
"""The level at which each connection is logged."""

DEFAULT_SSH_DIRECTORY = "~/.ssh"
"""The directory of the user's keys."""

SSH_CONFIG_FILE = "~/.ssh/config"
"""The SSH configuration that a forwarder reads unless it has another one."""

_DEPRECATIONS = {
    "ssh_address": "ssh_address_or_host",
    "ssh_host": "ssh_address_or_host",
    "ssh_private_key": "ssh_pkey",
    "raise_exception_if_any_forwarder_have_a_problem": "mute_exceptions",
}
_CLASSES = {"rsa": "RSAKey", "ecdsa": "ECDSAKey", "ed25519": "Ed25519Key"}  # of paramiko, by the names of files
_FOREVER = 10.0 * 365 * 24 * 3600  # seconds

# Texts of the log that sshtunnel's own tests look for are as they are there.
logging.addLevelName(TRACE_LEVEL, "TRACE")


class BaseSSHTunnelForwarderError(Exception):
    """A forwarder cannot be started or used.

    :param args: the message.
    :param value: the message, if it is not the first argument.
    """

    def __init__(self, *args: Any, value: Any = None) -> None:
        super().__init__(*args)
        self.value = value if value is not None else args[0] if args else ""

    def __str__(self) -> str:
        return str(self.value)


class HandlerSSHTunnelForwarderError(BaseSSHTunnelForwarderError):
    """The SSH connection is open, and no tunnel over it."""


def check_address(address: object) -> None:
    """Check an address to listen at or to connect to.

    :param address: ``(host, port)``, or the path of a Unix socket whose directory is writable.
    :raises ValueError: if it is neither.
    :raises AssertionError: if the host is no text, or the port no number from 0.
    """
    if isinstance(address, tuple):
        host, port = address
        if not isinstance(host, str):
            raise AssertionError(f"host: expected a str, got {type(host).__name__}")
        if not isinstance(port, int) or port < 0:
            raise AssertionError(f"port: expected a number from 0, got {port!r:.100}")
    elif not isinstance(address, str):
        raise ValueError(f"address: expected (host, port) or a path, got {type(address).__name__}")
    elif not (os.path.exists(address) or os.access(os.path.dirname(address), os.W_OK)):
        raise ValueError(f"address: {address!r:.200} is no path for a Unix socket; its directory must be writable")


def check_addresses(address_list: Iterable[object], is_remote: bool = False) -> None:
    """Check several addresses; see :func:`check_address`.

    :param address_list: the addresses.
    :param is_remote: whether they are those of targets, which cannot be Unix sockets.
    :raises ValueError: and :class:`AssertionError`, as :func:`check_address` does, and for the path of a target.
    """
    for address in address_list:
        if not isinstance(address, tuple) and (is_remote or not isinstance(address, str)):
            raise AssertionError(f"address: expected (host, port), got {address!r:.200}")
        check_address(address)


def address_to_str(address: object) -> str:
    """Return an address as text, such as ``127.0.0.1:80``."""
    return "{}:{}".format(*address) if isinstance(address, tuple) else str(address)


def create_logger(
    logger: logging.Logger | None = None,
    loglevel: int | str | None = None,
    capture_warnings: bool = True,
    add_paramiko_handler: bool = True,
) -> logging.Logger:
    """Set up a logger that writes to standard error.

    :param logger: one to set up; ``None`` for ``relay.compat.sshtunnel.SSHTunnelForwarder``. It keeps its handlers.
    :param loglevel: its new level; ``None`` for :data:`DEFAULT_LOGLEVEL` if it has no handler yet.
    :param capture_warnings: whether all warnings of the program go to its handlers, too. A forwarder leaves them alone.
    :param add_paramiko_handler: without effect: relay logs what paramiko reports as ``relay.ssh.paramiko``.
    :returns: the logger.
    """
    logger = logger or logging.getLogger(f"{__name__}.SSHTunnelForwarder")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s| %(levelname)-8s| %(message)s"))
        logger.addHandler(handler)
        loglevel = loglevel or DEFAULT_LOGLEVEL
    if loglevel:
        logger.setLevel(loglevel)
        for each in logger.handlers:
            each.setLevel(loglevel)
    if capture_warnings:
        logging.captureWarnings(True)
        captured = logging.getLogger("py.warnings")
        for each in logger.handlers:
            captured.addHandler(each)  # which adds none twice
    return logger


@dataclasses.dataclass(frozen=True, slots=True)
class _Forward:
    """A tunnel that listens.

    :param remote_address: the target.
    :param local_address: where it listens.
    :param tunnel: the tunnel.
    :param dialer: makes its streams.
    :param daemon_threads: whether the program may end while it is open.
    """

    remote_address: tuple[str, int]
    local_address: Any
    tunnel: Tunnel
    dialer: Dialer
    daemon_threads: bool


class SSHTunnelForwarder:
    """Listens here, and connects each client to an address that an SSH server can reach.

    :meth:`start` connects, or ``with`` does. relay reconnects when the SSH connection is lost; clients that come
    meanwhile wait for :data:`TUNNEL_TIMEOUT` at most. A half-close is passed on. One thread for each address to listen
    at serves all its connections. Its attributes are plain data, as sshtunnel has them.

    :param ssh_address_or_host: the SSH server: ``(host, port)``, a host, or an alias of the configuration.
    :param ssh_config_file: an SSH configuration to read; ``None`` for none.
    :param ssh_host_key: the only host key to accept: a line of a ``known_hosts`` file, a fingerprint (``SHA256:…``), or
        a key of paramiko.
    :param ssh_password: of the user at the server. It also decrypts ``ssh_pkey``.
    :param ssh_pkey: a private key to offer first: a file, or a key of paramiko. Without it relay offers the
        ``IdentityFile`` of the configuration.
    :param ssh_private_key_password: decrypts ``ssh_pkey``, instead of ``ssh_password``.
    :param ssh_proxy: the way to the server: a ``ProxyCommand`` of paramiko, the address of a forwarder to the server as
        ``(host, port)``, or a socket, which serves one connection and so no reconnect.
    :param ssh_proxy_enabled: whether to use ``ssh_proxy``, and ``ProxyCommand`` and ``ProxyJump`` of the configuration.
    :param ssh_username: the user at the server; by default that of the configuration, else the current one.
    :param local_bind_address: where to listen: ``(host, port)``, ``(host,)`` for any port, or the path of a Unix
        socket. An empty host is every IPv4 interface. By default any port of 127.0.0.1, and not of every interface.
    :param local_bind_addresses: several of these, one for each target; those that are missing have the default.
    :param logger: gets the log; by default that of :func:`create_logger`.
    :param mute_exceptions: whether :meth:`start` logs errors and does not raise them.
    :param remote_bind_address: the target as the server sees it, ``(host, port)``.
    :param remote_bind_addresses: several targets, each with an address to listen at.
    :param set_keepalive: seconds between keepalive probes; 0 for none. Without a reply to three of them the connection
        is lost.
    :param threaded: ``False`` for one connection at a time at each address; further clients wait.
    :param compression: whether to compress; ``None`` for what the configuration says.
    :param allow_agent: whether to offer the keys of the SSH agent.
    :param host_pkey_directories: directories whose ``id_rsa``, ``id_ecdsa`` and ``id_ed25519`` are offered; ``None``
        for ``~/.ssh``.
    :param host_keys: ``strict``, ``accept-new`` or ``off``, instead of :data:`HOST_KEYS`. It is not in sshtunnel.
    :param kwargs: ``ssh_port``, for a server without one, and the older names ``ssh_address``, ``ssh_host``,
        ``ssh_private_key`` and ``raise_exception_if_any_forwarder_have_a_problem``.
    :raises ValueError: if there is no target or no credential, or an argument is unknown or invalid.
    :raises TypeError: if one has the wrong type.
    :raises AssertionError: if an address has a part of the wrong type.

    Source: ``sshtunnel.SSHTunnelForwarder`` of sshtunnel 0.5.1.
    """

    skip_tunnel_checkup = True
    """Whether :meth:`start` does not try each target, and takes it for up."""

    daemon_forward_servers = True
    """Whether the program may end while tunnels are open, and :meth:`stop` does not wait for connections."""

    daemon_transport = True
    """Without effect: no thread of the SSH connection keeps the program alive."""

    def __init__(
        self,
        ssh_address_or_host: tuple[str, int] | str | None = None,
        ssh_config_file: str | None = SSH_CONFIG_FILE,
        ssh_host_key: Any = None,
        ssh_password: str | None = None,
        ssh_pkey: Any = None,
        ssh_private_key_password: str | None = None,
        ssh_proxy: Any = None,
        ssh_proxy_enabled: bool = True,
        ssh_username: str | None = None,
        local_bind_address: Bind | tuple[str] | None = None,
        local_bind_addresses: Sequence[Bind | tuple[str]] | None = None,
        logger: logging.Logger | None = None,
        mute_exceptions: bool = False,
        remote_bind_address: tuple[str, int] | None = None,
        remote_bind_addresses: Sequence[tuple[str, int]] | None = None,
        set_keepalive: float | None = 5.0,
        threaded: bool = True,
        compression: bool | None = None,
        allow_agent: bool = True,
        host_pkey_directories: Sequence[str] | None = None,
        *,
        host_keys: Literal["strict", "accept-new", "off"] | None = None,
        **kwargs: Any,
    ) -> None:
        self.logger = logger or _own_logger()
        self.is_alive = False
        """``True`` from :meth:`start` to :meth:`stop`, also while relay reconnects."""
        self.tunnel_is_up: dict[Any, bool] = {}
        """For each address to listen at, whether its target could be reached at the last check."""
        self._server_list: list[_Forward] = []
        self._link: SSHFactory | None = None
        self._threaded = threaded
        for name in ("ssh_address", "ssh_host"):
            ssh_address_or_host = self._process_deprecated(ssh_address_or_host, name, kwargs)
        ssh_pkey = self._process_deprecated(ssh_pkey, "ssh_private_key", kwargs)
        raises = self._process_deprecated(None, "raise_exception_if_any_forwarder_have_a_problem", kwargs)
        self._raise_fwd_exc = not mute_exceptions if raises is None else bool(raises)
        port = kwargs.pop("ssh_port", None)
        if isinstance(ssh_address_or_host, tuple):
            check_address(ssh_address_or_host)
            ssh_address_or_host, port = ssh_address_or_host
        host: Any = ssh_address_or_host  # SSHServer checks its type
        if kwargs:
            raise ValueError(f"unknown arguments: {', '.join(sorted(kwargs))}; check the spelling")
        if host_keys is None:
            host_keys = HOST_KEYS
        if host_keys not in parts.HOST_KEYS:
            raise ValueError(f"host_keys: expected {', '.join(parts.HOST_KEYS)}, got {host_keys!r:.50}")
        self._remote_binds = _binds("remote", remote_bind_address, remote_bind_addresses)
        self._local_binds = _binds("local", local_bind_address, local_bind_addresses)
        missing = len(self._remote_binds) - len(self._local_binds)
        if missing < 0:
            raise ValueError("local_bind_addresses: more than remote_bind_addresses; give each target one at most")
        self._local_binds += [("127.0.0.1", 0)] * missing

        self.ssh_proxy = ssh_proxy if ssh_proxy_enabled else None
        self.ssh_password = ssh_password
        self.ssh_host_key = ssh_host_key
        self.set_keepalive = set_keepalive
        found = _configured(host, ssh_config_file, self.logger)
        config = os.path.expanduser(ssh_config_file) if found is not None and ssh_config_file else os.devnull
        found = found or {}
        self.ssh_host: str = found.get("hostname", host)
        self.ssh_port = int(port or found.get("port") or 22)
        self.ssh_username = ssh_username or found.get("user") or getpass.getuser()
        self.compression = found.get("compression", "").lower() == "yes" if compression is None else compression
        self._pin = parts.Pin.of(ssh_host_key) if ssh_host_key is not None else None
        self._server = SSHServer(
            host,
            ssh_username or None,
            int(port) if port else None,
            backend="paramiko",
            config=config,
            password=ssh_password or None,
            hostkey=self._pin.fingerprint if self._pin is not None else None,
            keepalive=set_keepalive or None,
            compress=compression,
        )
        self._host_keys = host_keys
        self._agent = allow_agent
        self._proxied = ssh_proxy_enabled and ssh_proxy is None
        self._command, self._below = parts.way_to(self.ssh_proxy)
        secret = ssh_private_key_password or ssh_password
        self.ssh_pkeys = self._loaded(ssh_pkey or found.get("identityfile", [None])[0], secret)
        self.ssh_pkeys += self.get_keys(self.logger, host_pkey_directories)
        if not (ssh_password or self.ssh_pkeys or (allow_agent and os.environ.get("SSH_AUTH_SOCK"))):
            raise ValueError("no password or key: give ssh_password or ssh_pkey, or start an SSH agent")
        self.logger.info("SSH server: %s, as user %s", TCPAddress(self.ssh_host, self.ssh_port), self.ssh_username)

    def _loaded(self, key: Any, secret: str | None) -> list[Any]:
        """Return the key of ``ssh_pkey``, if there is one."""
        import paramiko

        if isinstance(key, str):
            path = os.path.expanduser(key)
            if not os.path.exists(path):
                self.logger.warning("Private key file not found: %s", key)
                return []
            key = self.read_private_key_file(path, secret, logger=self.logger)
        elif key is not None and not isinstance(key, paramiko.PKey):
            self.logger.warning("ssh_pkey: a %s is no key and is ignored; give a path", type(key).__name__)
        return [key] if isinstance(key, paramiko.PKey) else []

    @staticmethod
    def _process_deprecated(attrib: Any, deprecated_attrib: str, kwargs: MutableMapping[str, Any]) -> Any:
        """Return the value of an argument that also has an older name; it is taken out of ``kwargs``."""
        if deprecated_attrib not in _DEPRECATIONS:
            raise ValueError(f"{deprecated_attrib}: no older name of an argument; use {', '.join(_DEPRECATIONS)}")
        if deprecated_attrib not in kwargs:
            return attrib
        name = _DEPRECATIONS[deprecated_attrib]
        warnings.warn(f"'{deprecated_attrib}' is DEPRECATED use '{name}' instead", DeprecationWarning, stacklevel=3)
        if attrib:
            raise ValueError(f"{deprecated_attrib}: an older name of {name}, which is given; leave it out")
        return kwargs.pop(deprecated_attrib)

    # -- keys ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def get_agent_keys(logger: logging.Logger | None = None) -> list[Any]:
        """Return the keys of the SSH agent, of paramiko's class.

        :param logger: gets their number.
        """
        import paramiko

        keys = list(paramiko.Agent().get_keys())
        if logger:
            logger.info("%d keys loaded from agent", len(keys))
        return keys

    @staticmethod
    def get_keys(
        logger: logging.Logger | None = None,
        host_pkey_directories: Sequence[str] | None = None,
        allow_agent: bool = False,
    ) -> list[Any]:
        """Return the keys of directories, of paramiko's classes.

        :param logger: gets their number, and a line for each that cannot be read.
        :param host_pkey_directories: the directories; ``None`` for ``~/.ssh``.
        :param allow_agent: whether to put those of the SSH agent before them.
        """
        import paramiko

        keys = SSHTunnelForwarder.get_agent_keys(logger) if allow_agent else []
        for directory in [DEFAULT_SSH_DIRECTORY] if host_pkey_directories is None else host_pkey_directories:
            for kind, name in _CLASSES.items():
                path = os.path.expanduser(os.path.join(directory, f"id_{kind}"))
                try:
                    known = os.path.isfile(path)
                    owner = getattr(paramiko, name)
                    key = SSHTunnelForwarder.read_private_key_file(path, None, owner, logger) if known else None
                except OSError as error:
                    if logger:
                        logger.warning("%s: this key cannot be read: %s", path, error)
                else:
                    keys += [key] if key is not None else []
        if logger:
            logger.info("%d key(s) loaded", len(keys))
        return keys

    @staticmethod
    def read_private_key_file(
        pkey_file: str,
        pkey_password: str | None = None,
        key_type: type[Any] | None = None,
        logger: logging.Logger | None = None,
    ) -> Any:
        """Read a private key.

        :param pkey_file: the file.
        :param pkey_password: decrypts it.
        :param key_type: paramiko's class for it; ``None`` to try RSA, ECDSA and Ed25519.
        :param logger: gets the problems.
        :returns: a key of paramiko; ``None`` if the file has none of these, or the password is wrong or missing.
        :raises OSError: if it cannot be read.
        """
        import paramiko

        for owner in [key_type] if key_type else [getattr(paramiko, name) for name in _CLASSES.values()]:
            try:
                return owner.from_private_key_file(pkey_file, password=pkey_password)
            except paramiko.PasswordRequiredException:
                if logger:
                    logger.error("Password is required for key %s", pkey_file)
                return None
            except (paramiko.SSHException, ValueError):
                if logger:
                    logger.debug(
                        "Private key file (%s) could not be loaded as type %s or bad password", pkey_file, owner
                    )
        return None

    # -- start and stop -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect to the server, and listen.

        :raises BaseSSHTunnelForwarderError: if the server cannot be reached, has the wrong or an unknown host key, or
            rejects the login.
        :raises HandlerSSHTunnelForwarderError: if no tunnel can be opened.
        """
        if self.is_alive:
            self.logger.warning("Already started!")
            return
        try:
            self._start()
        except BaseException as error:
            self._drop(force=True)
            if not isinstance(error, BaseSSHTunnelForwarderError):
                raise
            self._raise(type(error), error.value, error.__cause__)

    def _start(self) -> None:
        if self._host_keys == "off" and self._pin is None:
            self.logger.warning("host keys are not verified; set ssh_host_key, or HOST_KEYS to strict")
        login = parts.Login(
            tuple(self.ssh_pkeys), self._agent, self._pin, self._host_keys, self._proxied, self._command
        )
        make = functools.partial(SSHFactory, self._server, self._below, adapt=login)
        self._link = make(TCPAddress(*self._remote_binds[0]))
        try:
            # One attempt, which has a limit of its own.
            self._link.ready(None)
        except OSError as error:
            raise BaseSSHTunnelForwarderError(self._explained(error)) from error
        problems = []
        for remote, local in zip(self._remote_binds, self._local_binds, strict=True):
            try:
                self._listen(remote, local, make(TCPAddress(*remote)))
            except (OSError, ValueError) as error:
                problems.append(f"{address_to_str(local)} to {address_to_str(remote)}: {error}")
                self.logger.error("%s", problems[-1])
        for forward in self._server_list:
            if self.skip_tunnel_checkup:
                self.tunnel_is_up[forward.local_address] = True
            else:
                self._check_tunnel(forward)
        self.is_alive = any(self.tunnel_is_up.values())
        if not self.is_alive:
            problems += [f"{address_to_str(each.remote_address)} is down" for each in self._server_list]
            raise HandlerSSHTunnelForwarderError(f"no tunnel could be opened: {'; '.join(problems)}")

    def _explained(self, error: OSError) -> str:
        """Log why there is no connection; return the text of the exception."""
        if "cannot resolve" in str(error):
            self.logger.error("Could not resolve IP address for %s, aborting!", self.ssh_host)
        elif isinstance(error, AuthenticationError):
            self.logger.error("Could not open connection to gateway")
        advice = ""
        if isinstance(error, HostKeyError) and self._pin is None:
            advice = "; in relay.compat.sshtunnel accept_new is host_keys='accept-new', and hostkey is ssh_host_key"
        return f"no SSH connection: {error}{advice}"

    def _listen(self, remote: tuple[str, int], local: Any, dialer: SSHFactory) -> None:
        """Open one tunnel."""
        receive = listen_unix(local) if isinstance(local, str) else listen_tcp(local[0] or "0.0.0.0", local[1])  # noqa: S104 - asked for
        address = receive.getsockname()
        is_traced = self.logger.isEnabledFor(TRACE_LEVEL)
        try:
            tunnel = Tunnel(
                receive,
                Upgrade(dialer, explain=functools.partial(_logged, self.logger, address, remote)),
                -1 if self._threaded else 1,
                None,
                connect_timeout=TUNNEL_TIMEOUT,
                on_end=functools.partial(_traced, self.logger, remote) if is_traced else None,
                name=f"{address_to_str(address)} to {address_to_str(remote)}",
            )
        except BaseException:
            receive.close()
            raise
        forward = _Forward(remote, address, tunnel, dialer, self.daemon_forward_servers)
        self._server_list.append(forward)
        self.tunnel_is_up[address] = False
        if not forward.daemon_threads:
            threading.Thread(target=tunnel.join, name=f"open until the end of {tunnel.name}", daemon=False).start()
        self.logger.info("Opening tunnel: %s", tunnel.name)

    def stop(self, force: bool = False) -> None:
        """Stop listening, end the connections, and close the SSH connection.

        :param force: whether to reset the open connections although :attr:`daemon_forward_servers` is false, with which
            this otherwise waits, without a limit, until they have ended.
        """
        self._stop_transport(force)
        self._drop(force)

    def _drop(self, force: bool) -> None:
        self._end(force)
        self._server_list = []
        self.tunnel_is_up = {}

    def _stop_transport(self, force: bool = False) -> None:
        try:
            self._check_is_started()
        except BaseSSHTunnelForwarderError as error:
            self.logger.warning("%s", error)
        self._end(force)

    def _end(self, force: bool) -> None:
        self.is_alive = False
        for forward in self._server_list:
            forward.tunnel.close(0.0 if force or forward.daemon_threads else _FOREVER)
            self.logger.info("Tunnel: %s released", forward.tunnel.name)
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def close(self) -> None:
        """Do what :meth:`stop` does."""
        self.stop()

    def restart(self) -> None:
        """Stop, and start again.

        :raises BaseSSHTunnelForwarderError: as :meth:`start` does.
        """
        self.stop()
        self.start()

    def _raise(
        self, exception: type[BaseSSHTunnelForwarderError], reason: str, cause: BaseException | None = None
    ) -> None:
        if self._raise_fwd_exc:
            raise exception(reason) from cause
        self.logger.error("%r", exception(reason))

    # -- state --------------------------------------------------------------------------------------------------------

    def check_tunnels(self) -> None:
        """Connect to each target, and store in ``tunnel_is_up`` whether that works: ``{local address: bool}``."""
        for forward in self._server_list:
            self._check_tunnel(forward)

    def local_is_up(self, target: Bind) -> bool:
        """Return whether the target of a tunnel can be reached; :meth:`check_tunnels` replaces this.

        :param target: the address at which it listens; for one without a tunnel this returns ``True``.
        """
        try:
            check_address(target)
        except ValueError:
            self.logger.warning(
                'Target must be a tuple (IP, port), where IP is a string (i.e. "192.168.0.1") and port is an integer '
                "(i.e. 40000). Alternatively target can be a valid UNIX domain socket."
            )
            return False
        self.check_tunnels()
        return self.tunnel_is_up.get(target, True)

    def _check_tunnel(self, forward: _Forward) -> None:
        is_up = self._link is not None and _can_connect(forward.dialer)
        self.tunnel_is_up[forward.local_address] = is_up
        self.logger.debug("Tunnel to %s is %s", forward.remote_address, "UP" if is_up else "DOWN")

    @property
    def is_active(self) -> bool:
        """``True`` if the SSH connection is up, and not while relay reconnects."""
        return self._link is not None and self._link.state == "up"

    def _check_is_started(self) -> None:
        if not self.is_alive:
            raise BaseSSHTunnelForwarderError("Server is not started. Please .start() first!")

    def _only(self, name: str, plural: str) -> _Forward:
        self._check_is_started()
        if len(self._server_list) != 1:
            raise BaseSSHTunnelForwarderError(f"{name}: there is more than one tunnel; use {plural}")
        return self._server_list[0]

    @property
    def local_bind_port(self) -> int:
        """The port at which the only tunnel listens.

        :raises BaseSSHTunnelForwarderError: if the forwarder is not started, or has several tunnels.
        """
        return int(self._only("local_bind_port", "local_bind_ports").local_address[1])

    @property
    def local_bind_host(self) -> str:
        """The host at which the only tunnel listens.

        :raises BaseSSHTunnelForwarderError: as for :attr:`local_bind_port`.
        """
        return str(self._only("local_bind_host", "local_bind_hosts").local_address[0])

    @property
    def local_bind_address(self) -> Any:
        """The address at which the only tunnel listens: ``(host, port)``, or the path of a Unix socket.

        :raises BaseSSHTunnelForwarderError: as for :attr:`local_bind_port`.
        """
        return self._only("local_bind_address", "local_bind_addresses").local_address

    @property
    def local_bind_ports(self) -> list[int]:
        """The ports of all tunnels that listen at one.

        :raises BaseSSHTunnelForwarderError: if the forwarder is not started.
        """
        return [address[1] for address in self.local_bind_addresses if isinstance(address, tuple)]

    @property
    def local_bind_hosts(self) -> list[str]:
        """The hosts of all tunnels that listen at one.

        :raises BaseSSHTunnelForwarderError: if the forwarder is not started.
        """
        return [address[0] for address in self.local_bind_addresses if isinstance(address, tuple)]

    @property
    def local_bind_addresses(self) -> list[Any]:
        """The addresses at which the tunnels listen, in the order of their targets.

        :raises BaseSSHTunnelForwarderError: if the forwarder is not started.
        """
        self._check_is_started()
        return [forward.local_address for forward in self._server_list]

    @property
    def tunnel_bindings(self) -> dict[tuple[str, int], Any]:
        """The address at which relay listens for each target whose tunnel is up."""
        up = (forward for forward in self._server_list if self.tunnel_is_up.get(forward.local_address))
        return {forward.remote_address: forward.local_address for forward in up}

    def __str__(self) -> str:
        keys = ", ".join(key.get_name() for key in self.ssh_pkeys)
        ways = [*(["password"] if self.ssh_password else []), *([f"keys ({keys})"] if keys else [])]
        lines = {
            "ssh gateway": f"{self.ssh_host}:{self.ssh_port}",
            "proxy": "no" if self.ssh_proxy is None else getattr(self.ssh_proxy, "cmd", self.ssh_proxy),
            "username": self.ssh_username,
            "authentication": ", ".join([*ways, *(["agent"] if self._agent else [])]),
            "hostkey": self._pin.fingerprint if self._pin is not None else self._host_keys,
            "status": "started" if self.is_alive else "not started",
            "keepalive": f"every {self.set_keepalive} s" if self.set_keepalive else "none",
            "local binds": self._local_binds,
            "remote binds": self._remote_binds,
        }
        return "\n".join([f"{type(self).__name__} object", *(f"{name}: {value}" for name, value in lines.items())])

    def __repr__(self) -> str:
        return str(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(force=True)

    def __del__(self) -> None:
        # When the interpreter exits, the threads that a close waits for do not run any more.
        if getattr(self, "is_alive", False) and not sys.is_finalizing():
            self.logger.warning("a forwarder that was not stopped is not used any more, and is stopped; call .stop()")
            self.stop(force=True)


def open_tunnel(*args: Any, **kwargs: Any) -> SSHTunnelForwarder:
    """Return a forwarder that is not started yet; use it with ``with``.

    :param args: as for :class:`SSHTunnelForwarder`.
    :param kwargs: as for :class:`SSHTunnelForwarder`, and ``debug_level``, the level of the log;
        ``skip_tunnel_checkup``, whether ``start()`` does not try the targets (the default); and ``block_on_close``,
        which has no effect.
    :raises ValueError: and all others as for :class:`SSHTunnelForwarder`.
    """
    level = kwargs.pop("debug_level", None)
    if kwargs.get("logger") is None:
        kwargs["logger"] = _own_logger(level)
    skips = kwargs.pop("skip_tunnel_checkup", True)
    if kwargs.pop("block_on_close", None):
        warnings.warn("block_on_close has no effect; use .stop(force=True)", DeprecationWarning, stacklevel=2)
    forwarder = SSHTunnelForwarder(*args, **kwargs)
    forwarder.skip_tunnel_checkup = skips
    return forwarder


def _own_logger(level: int | str | None = None) -> logging.Logger:
    return create_logger(None, level, capture_warnings=False)


def _binds(kind: str, one: Any, several: Any) -> list[Any]:
    """Return the addresses of two arguments, of which one at most may be given."""
    if one and several:
        raise ValueError(f"{kind}_bind_address: {kind}_bind_addresses is given, too; give one of them")
    if kind == "remote" and not one and not several:
        raise ValueError("remote_bind_address: it is missing; give the target as (host, port)")
    found = [one] if one else list(several or ())
    if kind == "local":
        found = [(*each, 0) if isinstance(each, tuple) and len(each) == 1 else each for each in found]
    check_addresses(found, is_remote=kind == "remote")
    return found


def _configured(host: Any, file: str | None, logger: logging.Logger) -> dict[str, Any] | None:
    """Return what an SSH configuration says of a host; ``None`` if there is none."""
    if not file:
        logger.info("Skipping loading of ssh configuration file")
        return None
    import paramiko

    try:
        with open(os.path.expanduser(file)) as lines:
            config = paramiko.SSHConfig.from_file(lines)
        return dict(config.lookup(host)) if isinstance(host, str) else {}
    except OSError:
        logger.warning("Could not read SSH configuration file: %s", file)
        return None
    except (paramiko.SSHException, ImportError, UnicodeError):
        return {}  # what paramiko cannot read is for `ssh -G`, which relay asks at the connect


def _can_connect(dialer: Dialer) -> bool:
    try:
        dialer(deadline=None if TUNNEL_TIMEOUT is None else time.monotonic() + TUNNEL_TIMEOUT).close()
    except OSError:
        return False
    return True


def _logged(logger: logging.Logger, local: Any, remote: Any, error: OSError) -> OSError:
    logger.error("from %s to %s: %s", address_to_str(local), address_to_str(remote), error)
    return error


def _traced(logger: logging.Logger, remote: Any, record: ConnectionRecord) -> None:
    text = "a connection from %s had %d bytes to send to %s, got %d, and ended: %s"
    logger.log(TRACE_LEVEL, text, record.peer, record.received, remote, record.sent, record.reason)
