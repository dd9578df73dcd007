"""Parse addresses such as ``tls://db.internal:5432?ca=db.pem`` to values of :mod:`relay.addresses`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .address_parser import KNOWN, AddressParser
from .hop_parser import HopParser, ServerParser, SSHParser, read_command, read_hops, read_proxy_listen
from .hops import Command, Hop, Listen, Proxy, Route
from .i2p import I2PListen, I2PTarget
from .i2p_parser import read_i2p_listen, read_i2p_target
from .options import changed_options, options_of
from .ssh import LISTEN, SSHListen, SSHServer
from .values import SystemdListen, Target, TCPAddress, TLSListen, TLSTarget, UnixAddress, UnixListen, is_i2p

_SYSTEMD = re.compile(r"systemd:(?![0-9]*$|//)(.*)", re.IGNORECASE)
_SYSTEMD_NAME = re.compile(r"[!-9;-~]{1,255}")  # sd_listen_fds_with_names(3): no colon
_I2P = re.compile(r"i2p:?(\?.*)?", re.IGNORECASE)


def parse_target(text: str, before: Hop | None = None) -> Target | I2PTarget | Command:
    """Parse the address of a target.

    :param text: ``host:port``, ``port`` (of 127.0.0.1), ``tcp://host:port``, ``unix:///path``,
        ``tls://host:port?servername=…&ca=…&cert=…&key=…&groups=…``, ``exec:command`` or
        ``i2p://NAME[:port]?sam=…&session=…&keys=…&in_depth=…&``
        ``out_depth=…&user=…&password_file=…&password_env=…&inbound.quantity=…`` (any ``i2cp.``, ``inbound.`` and
        ``outbound.`` option); IPv6 in brackets. ``NAME`` ends in ``.i2p``, and then ``i2p://`` may be left out, or is a
        destination in base64. ``sam`` is ``host:port`` or ``tls://host:port?ca=…``, an ``&`` in it written ``%26``.
    :param before: the hop that leads to it; a name in ``.i2p`` after a proxy or a command is resolved there.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Target(text, "target", before).read()


def parse_listen(text: str) -> Listen:
    """Parse an address to listen on; without a host, it is on the loopback.

    :param text: ``:port``, ``port``, ``host:port``, ``tcp://host:port``, ``unix:///path?mode=…&group=…``,
        ``systemd:NAME``, ``tls://host:port?cert=…&key=…&client_ca=…&alpn=…&groups=…``,
        ``ssh://[user@]host[:port]?listen=…`` with ``HOST:PORT``, ``PORT`` or ``/PATH`` of the server (default:
        ``127.0.0.1:0``) and the parameters of :func:`parse_hop`,
        ``socks5://[user@]host:port?password_file=…&password_env=…`` or ``http://…`` for clients that name their targets
        themselves, or ``i2p:`` (``i2p`` and ``i2p://`` are the same) with the parameters of an ``i2p://`` target and
        ``accept=accept`` or ``accept=forward``, ``allow=…`` and ``deny=…``, which may be repeated; IPv6 in brackets,
        port 0 for any that is free.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Listen(text, "listen address").read()


def parse_elsewhere(text: str, what: str) -> SSHListen | I2PListen:
    """Parse an address to listen on that is not on this machine.

    :param text: ``ssh://[user@]host[:port]?listen=…`` or ``i2p:``, as in :func:`parse_listen`.
    :param what: its role, for errors.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Elsewhere(text, what).read()


def parse_hop(text: str, given: Mapping[str, Any] | None = None) -> Hop:
    """Parse the address of a hop.

    :param text: one of

        - ``ssh://[user@]host[:port]?backend=…&keyfile=…&passphrase_file=…&passphrase_env=…&password_file=…&``
          ``password_env=…&known_hosts=…&config=…&hostkey=SHA256:…&accept_new=yes&keepalive=15&compress=yes``;
          ``keepalive`` may be ``none``. ``ssh://user:password@host``, ``password=`` and ``passphrase=`` hold a secret
          as text, percent-encoded;
        - ``i2p:``, or ``i2p:?sam=…`` with the parameters of an ``i2p://`` target;
        - ``socks5://[user@]host:port?password_file=…&password_env=…`` and ``http://[user@]host:port?…``;
        - ``exec:command %h %p``, words quoted as in a shell.

        IPv6 in brackets. A ``+`` is a plus sign.
    :param given: further options of the hop: values by name.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return HopParser(text, "hop", given=given).read()


def parse_hops(via: Sequence[str], target: str | None = None, named: Mapping[str, Hop] | None = None) -> Route:
    """Parse a chain of hops; an error names the number of the hop.

    :param via: the hops, the nearest first.
    :param target: the address after them, for errors.
    :param named: hops that ``via`` may name, instead of their addresses.
    :raises AddressError: if one cannot be understood, or cannot be where it is.
    :raises TypeError: if ``via`` is not a list of ``str``.
    """
    return read_hops(via, target, named or {})


def parse_ssh_server(text: str) -> SSHServer:
    """Parse the name of an SSH server.

    :param text: ``[user@]host[:port]``, an alias of the user's SSH configuration, or an ``ssh://`` URL, as in
        :func:`parse_hop`.
    :returns: the server as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return ServerParser(text, "server").read()


class _Target(AddressParser):
    schemes = ("tcp", "tls", "unix", "i2p", "exec")
    forms = (
        "allowed are host:port, port, tcp://host:port, unix:///path, tls://host:port, i2p://name.i2p and exec:command"
    )
    takes_i2p = True

    def __init__(self, text: str, what: str, before: Hop | None) -> None:
        super().__init__(text, what)
        self._takes_names = isinstance(before, (Proxy, Command))

    def unknown(self, scheme: str) -> NoReturn:
        if scheme in HopParser.schemes:
            use = "it leads to one: give it as --via {0}://host (via=[…] in Python), and as the target what is behind"
            self.fail(f"{scheme}:// is a hop, not a target", use.format(scheme))
        super().unknown(scheme)

    def read(self) -> Target | I2PTarget | Command:
        scheme, rest = self.split()
        if not scheme and rest.isascii() and rest.isdigit():
            return TCPAddress("127.0.0.1", self.port(rest))
        if scheme == "unix":
            return UnixAddress(self.path(rest))
        if scheme == "exec":
            return self.command(rest)
        is_name = scheme in ("", "tcp") and is_i2p(rest.partition("?")[0].partition(":")[0])
        if scheme == "i2p" or (is_name and not self._takes_names):
            return read_i2p_target(self, rest)
        host, port, query = self.place(scheme, rest)
        if scheme != "tls":
            return TCPAddress(host, port, **self.options("tcp://", query, options_of(TCPAddress)))
        given = self.options("tls://", query, options_of(TLSTarget))
        if "servername" in given:
            given["servername"] = self.host(given["servername"])
        if "key" in given and "cert" not in given:
            self.fail("key= without cert=", "a client certificate is cert=FILE, and key=FILE if its key is elsewhere")
        return TLSTarget(host, port, **given)

    def command(self, text: str) -> Command:
        """Parse a program, which is the target itself and gets no host or port."""
        command = read_command(self, text)
        if command.is_hop:
            self.fail("%h and %p have no meaning in a target", "a percent sign is written %%; as a hop it has both")
        return command


class _Listen(SSHParser):
    schemes: tuple[str, ...] = ("tcp", "tls", "unix", "ssh", "i2p", "socks5", "http", "https", "systemd")
    forms = (
        "allowed are :port, host:port, unix:///path, tls://host:port, ssh://user@host?listen=host:port, i2p:, "
        "socks5://host:port, http://host:port, https://host:port and systemd:NAME"
    )
    i2p_names = "relay listens only on destinations of its own; use i2p: for that"
    least_port = 0

    def plain(self) -> tuple[str, str]:
        if "systemd" in self.schemes and (found := _SYSTEMD.fullmatch(self.text)):
            return "systemd", found[1]
        found = _I2P.fullmatch(self.text) if "i2p" in self.schemes else None
        return super().plain() if found is None else ("i2p", found[1] or "")

    def without_host(self, port: str) -> str:
        return "127.0.0.1"

    def read(self) -> Listen:
        if self.text.isascii() and self.text.isdigit():
            return TCPAddress("127.0.0.1", self.port(self.text))
        scheme, rest = self.split()
        if scheme == "unix":
            path, _, query = rest.partition("?")
            return UnixListen(self.path(path), **self.options("unix://", query, options_of(UnixListen)))
        if scheme == "systemd":
            return self.inherited(rest)
        if scheme == "ssh":
            return self.reverse(rest)
        if scheme == "i2p":
            return read_i2p_listen(self, rest)
        if scheme in ("socks5", "http", "https"):
            return read_proxy_listen(self, scheme, rest)
        host, port, query = self.place(scheme, rest)
        if scheme != "tls":
            return TCPAddress(host, port, **self.options("tcp://", query, options_of(TCPAddress)))
        given = self.options("tls://", query, options_of(TLSListen))
        if "cert" not in given:
            self.fail(
                "no certificate", "a TLS listener needs tls://host:port?cert=FILE, and key=FILE if it is elsewhere"
            )
        return TLSListen(host, port, **given)

    def inherited(self, name: str) -> SystemdListen:
        """Parse the name of a socket that systemd opens."""
        if self.text.lower().startswith("systemd://") or not _SYSTEMD_NAME.fullmatch(name):
            self.fail(
                "not a name of a socket",
                "systemd:NAME has the FileDescriptorName of a socket unit, up to 255 characters",
            )
        return SystemdListen(name)

    def reverse(self, rest: str) -> SSHListen:
        server, given = self.ssh_url(rest, {"listen": LISTEN})
        if not given:
            return SSHListen(server)
        return SSHListen(server, _Place(given["listen"], "listen=", hidden=self.hidden).on_server())


class _Elsewhere(_Listen):
    """An address to listen on that is not on this machine."""

    example = "ssh://server"
    schemes = ("ssh", "i2p")
    forms = (
        "allowed are i2p: and ssh://[user@]host[:port], with ?listen=HOST:PORT or ?listen=/PATH for where it listens"
    )

    def unknown(self, scheme: str) -> NoReturn:
        if scheme in KNOWN:
            self.fail(f"{scheme}:// is on this machine, where relay forward listens", self.forms)
        super().unknown(scheme)

    def read(self) -> SSHListen | I2PListen:
        scheme, rest = self.split()
        if not scheme:
            self.fail("it has no scheme", self.forms)
        return self.reverse(rest) if scheme == "ssh" else read_i2p_listen(self, rest)


class _Place(_Listen):
    """The address on which an SSH server listens."""

    schemes = ("tcp", "unix")
    forms = "allowed are host:port, port, /path and unix:///path"

    def on_server(self) -> TCPAddress | UnixAddress:
        """Read the address; it cannot have the options that need this machine."""
        if self.text.startswith("/"):
            return UnixAddress(self.socket_path(self.text))
        place = self.read()
        if isinstance(place, UnixListen):
            if changed_options(place):
                self.fail("mode= and group= are for sockets of this machine", "the server chooses those of its own")
            return UnixAddress(place.path)
        assert isinstance(place, TCPAddress)
        if place.mptcp:
            self.fail("mptcp= is for connections of this machine", "the server listens there over plain TCP")
        return place
