"""Parse addresses such as ``tls://db.internal:5432?ca=db.pem`` to values of :mod:`relay.addresses`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from .address_parser import KNOWN, AddressParser, make
from .hop_parser import HopParser, ServerParser, SSHParser, TargetParser, read_hops, read_proxy_listen
from .hops import Command, Hop, Listen, ProxyProtocol, Route
from .i2p import I2PListen, I2PTarget
from .i2p_parser import read_i2p_listen
from .options import changed_options, options_of
from .resume import ResumeListen
from .ssh import LISTEN, SSHListen, SSHServer
from .values import SystemdListen, Target, TCPAddress, TLSListen, UnixAddress, UnixListen

if TYPE_CHECKING:  # a program without Tor does not load it
    from .tor import TorListen

_SYSTEMD = re.compile(r"systemd:(?![0-9]*$|//)(.*)", re.IGNORECASE)
_SYSTEMD_NAME = re.compile(r"[!-9;-~]{1,255}")  # sd_listen_fds_with_names(3): no colon
_WITHOUT_HOST = re.compile(r"(i2p|tor):?(\?.*)?", re.IGNORECASE)


def parse_target(text: str, before: Hop | None = None) -> Target | I2PTarget | Command:
    """Parse the address of a target.

    :param text: ``host:port``, ``port`` (of 127.0.0.1), ``tcp://host:port``, ``unix:///path``,
        ``tls://host:port?servername=…&ca=…&cert=…&key=…&groups=…``, ``ws://host[:port]/path?header_file=…&subprotocol=…``,
        ``wss://…`` (the same with the parameters of ``tls://`` but ``groups``), ``exec:command``,
        ``port:program {port}`` or ``i2p://NAME[:port]?sam=…&session=…&keys=…&in_depth=…&``
        ``out_depth=…&user=…&password_file=…&password_env=…&inbound.quantity=…`` (any ``i2cp.``, ``inbound.`` and
        ``outbound.`` option); IPv6 in brackets. ``NAME`` ends in ``.i2p``, and then ``i2p://`` may be left out, or is a
        destination in base64. ``sam`` is ``host:port`` or ``tls://host:port?ca=…``, an ``&`` in it written ``%26``.
    :param before: the hop that leads to it; a name in ``.i2p`` after a proxy or a command is resolved there.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return TargetParser(text, "target", before).read()


def parse_listen(text: str) -> Listen:
    """Parse an address to listen on; without a host, it is on the loopback.

    :param text: ``:port``, ``port``, ``host:port``, ``tcp://host:port``, ``unix:///path?mode=…&group=…``,
        ``systemd:NAME``, ``tls://host:port?cert=…&key=…&client_ca=…&alpn=…&groups=…``,
        ``ws://host:port/path?origin=…&hosts=…&subprotocol=…&trusted_proxies=…``, ``wss://…?cert=…&key=…&client_ca=…``,
        ``ssh://[user@]host[:port]?listen=…`` with ``HOST:PORT``, ``PORT`` or ``/PATH`` of the server (default:
        ``127.0.0.1:0``) and the parameters of :func:`parse_hop`,
        ``socks5://[user@]host:port?password_file=…&password_env=…`` or ``http://…`` for clients that name their targets
        themselves, ``sni://host:port`` or ``redirect://host:port`` for those that do not know of relay, or ``i2p:``
        (``i2p`` and ``i2p://`` are the same) with the parameters of an ``i2p://`` target and
        ``accept=accept`` or ``accept=forward``, ``allow=…`` and ``deny=…``, which may be repeated, or ``tor:`` with
        ``control=…``, ``port=…``, ``session=…``, ``keys=…`` and a password, or ``resume:ADDRESS`` for a resume server
        at ``unix://``, ``i2p:``, or ``tls://`` or ``wss://`` with ``client_ca=…``; IPv6 in brackets, port 0 for any
        that is free.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Listen(text, "listen address").read()


def parse_elsewhere(text: str, what: str) -> SSHListen | I2PListen | TorListen:
    """Parse an address to listen on that is not on this machine.

    :param text: ``ssh://[user@]host[:port]?listen=…``, ``i2p:`` or ``tor:``, as in :func:`parse_listen`.
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
        - ``tor:``, or ``tor:?socks=host:port``;
        - ``ws://[user@]host[:port]/path?…`` and ``wss://…``, with the parameters of such a target and a password;
        - ``exec:command %h %p``, and ``port:program {port}``, words quoted as in a shell;
        - ``resume:ADDRESS``, a ``relay resume-server`` at a target address: ``tls://`` or ``wss://`` with ``cert=…``,
          ``i2p://``, ``unix://``, ``exec:`` or ``port:``.

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


class _Listen(SSHParser):
    schemes: tuple[str, ...] = (
        "tcp",
        "tls",
        "unix",
        "ssh",
        "i2p",
        "tor",
        *get_args(ProxyProtocol),
        "systemd",
        "resume",
    )
    forms = (
        "allowed are :port, host:port, unix:///path, tls://host:port, wss://host:port/path, "
        "ssh://user@host?listen=host:port, i2p:, tor:, socks5://host:port, http://host:port, https://host:port, "
        "sni://host:port, redirect://host:port, resume:ADDRESS and "
        "systemd:NAME"
    )
    i2p_names = "relay listens only on destinations of its own; use i2p: for that"
    least_port = 0

    def plain(self) -> tuple[str, str]:
        if "systemd" in self.schemes and (found := _SYSTEMD.fullmatch(self.text)):
            return "systemd", found[1]
        if (found := _WITHOUT_HOST.fullmatch(self.text)) and (scheme := found[1].lower()) in self.schemes:
            return scheme, found[2] or ""
        return super().plain()

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
        if scheme == "resume":
            inner = _Listen(rest, self.what)
            return make(inner, ResumeListen, place=inner.read())
        if scheme == "ssh":
            return self.reverse(rest)
        if scheme == "i2p":
            return read_i2p_listen(self, rest)
        if scheme in ("ws", "wss"):
            from .websocket import read_ws_listen

            return read_ws_listen(self, scheme, rest)
        if scheme == "tor":
            return _read_tor(self, rest)
        if scheme in get_args(ProxyProtocol):
            return read_proxy_listen(self, scheme, rest)  # type: ignore[arg-type]
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


def _read_tor(parser: AddressParser, rest: str) -> TorListen:
    from .tor import read_tor_listen

    return read_tor_listen(parser, rest)


class _Elsewhere(_Listen):
    """An address to listen on that is not on this machine."""

    example = "ssh://server"
    schemes = ("ssh", "i2p", "tor")
    forms = (
        "allowed are i2p:, tor: and ssh://[user@]host[:port], with ?listen=HOST:PORT or ?listen=/PATH for where it "
        "listens"
    )

    def unknown(self, scheme: str) -> NoReturn:
        if scheme in KNOWN:
            self.fail(f"{scheme}:// is on this machine, where relay forward listens", self.forms)
        super().unknown(scheme)

    def read(self) -> SSHListen | I2PListen | TorListen:
        scheme, rest = self.split()
        if not scheme:
            self.fail("it has no scheme", self.forms)
        if scheme == "tor":
            return _read_tor(self, rest)
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
