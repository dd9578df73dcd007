"""``relay help``: the help of a command, and topics that several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import click

from ...addresses.hops import Proxy
from ...addresses.i2p import I2PListen, I2PRouter
from ...addresses.options import FLAG, Option, options_of, written
from ...addresses.ssh import LISTEN, SSHServer
from ...addresses.tor import TorListen, TorProxy
from ...addresses.values import TCPAddress, TLSListen, TLSTarget, UnixListen
from ..output import failures_reported, print_line
from . import COMMANDS

_AS_LISTEN = "as LISTEN or --on: "

HOPS = """Hops (--via), SSH servers and I2P routers as LISTEN, TARGET or --on

  ssh://[USER@]HOST[:PORT]   an SSH server, or an alias of your configuration
  i2p:                       the I2P router on this machine
  socks5://[USER@]HOST:PORT  a SOCKS5 proxy
  http://[USER@]HOST:PORT    an HTTP proxy (CONNECT)
  https://[USER@]HOST[:PORT] an HTTP proxy over TLS (parameters: relay help tls)
  tor:                       the tor on this machine; it knows names in .onion
  wss://[USER@]HOST/PATH     relay socks in WebSockets (see: relay help tls)
  resume:ADDRESS             a relay resume-server at tls://, wss://, i2p:// or
                             unix://; streams outlive a lost connection
  exec:COMMAND %h %p         a program, like a ProxyCommand
  port:PROGRAM {{port}}        a program that opens a port ({{path}}: a socket)

Parameters follow a question mark: ssh://me@bastion?keyfile=FILE&keepalive=5

SSH. What no parameter says, your SSH configuration and agent do.

{ssh}

Proxies, as hops and as LISTEN of relay socks

{proxy}

Tor

{tor}

Tor as LISTEN or --on

{onion}

I2P

{i2p}
  inbound.quantity=5         any option of the router

TCP and Unix sockets as LISTEN or TARGET: tcp://HOST:PORT?mptcp=yes

{tcp}
{unix}
"""

TLS = """TLS and WebSockets at LISTEN and TARGET

  tls://HOST:PORT            as TARGET: relay verifies the certificate
  tls://HOST:PORT?cert=FILE  as LISTEN: clients speak TLS to relay
  wss://HOST/PATH            as TARGET: a WebSocket over TLS; ws:// has none
  wss://HOST:PORT/PATH?…     as LISTEN: with cert=; ws:// is for the loopback
  https://HOST[:PORT]        as hop and LISTEN of relay socks: the same files

Parameters follow a question mark: tls://db:5432?ca=db.pem&servername=db
All files are PEM. relay loads a certificate again when its file changes.

As TARGET. Without ca the authorities of the system count.

{target}

As LISTEN

{listen}

WebSockets as TARGET, beside those of TLS but groups and mptcp

{ws_target}

WebSockets as LISTEN, beside those of TLS but alpn and mptcp

{ws_listen}
"""


def _lines(options: Mapping[str, Option]) -> str:
    """The parameters of an address and their meaning, one in each line."""
    found: list[str] = []
    for name, option in options.items():
        if not option.is_secret:
            usual = option.usual or ("" if option.kind is FLAG or not option.default else written(option.default))
            found.append(f"  {f'{name}={option.placeholder}':25}  {option.help}{usual and f' [{usual}]'}")
    return "\n".join(found)


def hops() -> str:
    """The help on hops, made from the options of the addresses."""
    ssh = _lines({**options_of(SSHServer), "listen": LISTEN})
    onion = {name: replace(one, help=one.help.removeprefix(_AS_LISTEN)) for name, one in options_of(TorListen).items()}
    return HOPS.format(
        ssh=ssh,
        proxy=_lines(options_of(Proxy)),
        tor=_lines(options_of(TorProxy)),
        onion=_lines(onion),
        i2p=_lines({**options_of(I2PRouter), **options_of(I2PListen)}),
        tcp=_lines(options_of(TCPAddress)),
        unix=_lines({name: replace(one, help=f"unix: {one.help}") for name, one in options_of(UnixListen).items()}),
    )


def tls() -> str:
    """The help on TLS, made from the options of the addresses."""
    from ...addresses.websocket import WSListen, WSTarget

    return TLS.format(
        target=_lines(options_of(TLSTarget)),
        listen=_lines(options_of(TLSListen)),
        ws_target=_lines(options_of(WSTarget)),
        ws_listen=_lines(options_of(WSListen)),
    )


EXIT_STATUS = """Exit statuses of relay

  0  done, or ended by SIGINT, SIGTERM or SIGHUP
  1  a failure at run time: an address in use, a login that was rejected,
     a server that cannot be reached (with --fail-fast, and in relay pipe)
  2  you have to change something first: the command line, a file that is
     missing or wrong, an environment variable that is not set; nothing was
     opened. relay up: all tunnels, or a required one, failed like this

relay ctl: 1 if the relay that runs does not answer, or has not done it, also
because of its file; 2 also if no relay is there.

relay pipe ends by the signal that ended it. relay run has the status of its
program, or 128 and the number of the signal that ended it. Every failure is
one line on standard error; --debug adds a traceback.
"""

REDIRECT = """redirect://HOST:PORT as LISTEN of relay socks, on Linux

A firewall of this machine redirects connections to relay, which leads each to
where it was going, over the hops of the rules. relay changes no firewall.

For what the programs of this machine send to 10.0.0.0/8, with relay as the
user relay at redirect://127.0.0.1:1081, two lines for nft -f FILE, in a table:

table inet relay {
  chain out {
    type nat hook output priority -100;
    ip daddr 10.0.0.0/8 meta l4proto tcp meta skuid != relay redirect to :1081
  }
}

skuid leaves out what relay itself sends: it would come back to relay. On a
gateway, for what other machines send, the hook is prerouting, skuid is left
out, and relay listens at an address of the inner interface, or 0.0.0.0. IPv6
needs ip6 daddr, and a listener at [::1] or [::].

A connection that was not redirected is reset, with the reason denied.

  nft delete table inet relay    ends it
"""

TOPICS = {"hops": hops(), "tls": tls(), "redirect": REDIRECT, "exit-status": EXIT_STATUS}


@click.command
@click.argument(
    "words", metavar="[COMMAND | TOPIC]", nargs=-1, help=f"A command of relay, or one of: {', '.join(TOPICS)}."
)
@click.pass_context
def help(context: click.Context, words: Sequence[str]) -> None:  # noqa: A001  (each command has the name of its function)
    """Show the help of relay, of COMMAND, or of a TOPIC."""
    if len(words) == 1 and words[0] in TOPICS:
        print_line(TOPICS[words[0]].rstrip())
        return
    if len(words) == 1 and words[0] not in COMMANDS and not words[0].startswith("-"):
        raise click.exceptions.NoSuchCommand(words[0], possibilities=[*COMMANDS, *TOPICS], ctx=context.parent)
    with failures_reported(debug=False):
        root = context.find_root().command
        root([*words, "--help"], standalone_mode=False, prog_name="relay")
