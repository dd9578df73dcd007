"""``relay help``: the help of a command, and topics that several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from ...addresses.i2p import I2PListen, I2PRouter
from ...addresses.options import FLAG, Option, options_of, written
from ...addresses.ssh import LISTEN, SSHServer
from ...addresses.values import TLSListen, TLSTarget
from ..output import failures_reported, print_line

HOPS = """Hops (--via), SSH servers and I2P routers as LISTEN, TARGET or --on

  ssh://[USER@]HOST[:PORT]   an SSH server, or an alias of your configuration
  i2p:                       the I2P router on this machine
  socks5://[USER@]HOST:PORT  a SOCKS5 proxy
  http://[USER@]HOST:PORT    an HTTP proxy (CONNECT)
  https://[USER@]HOST[:PORT] an HTTP proxy over TLS (parameters: relay help tls)
  exec:COMMAND %h %p         a program, like a ProxyCommand

Parameters follow a question mark: ssh://me@bastion?keyfile=FILE&keepalive=5

SSH. What no parameter says, your SSH configuration and agent do.

{ssh}

I2P

{i2p}
  inbound.quantity=5         any option of the router
"""

TLS = """TLS at LISTEN and TARGET

  tls://HOST:PORT            as TARGET: relay verifies the certificate
  tls://HOST:PORT?cert=FILE  as LISTEN: clients speak TLS to relay

Parameters follow a question mark: tls://db:5432?ca=db.pem&servername=db
All files are PEM. relay loads a certificate again when its file changes.

As TARGET. Without ca the authorities of the system count.

{target}

As LISTEN

{listen}
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
    return HOPS.format(ssh=ssh, i2p=_lines({**options_of(I2PRouter), **options_of(I2PListen)}))


def tls() -> str:
    """The help on TLS, made from the options of the addresses."""
    return TLS.format(target=_lines(options_of(TLSTarget)), listen=_lines(options_of(TLSListen)))


EXIT_STATUS = """Exit statuses of relay

  0  done, or ended by SIGINT, SIGTERM or SIGHUP
  1  a failure at run time: an address in use, a login that was rejected,
     a server that cannot be reached (with --fail-fast, and in relay pipe)
  2  you have to change something first: the command line, a file that is
     missing or wrong, an environment variable that is not set; nothing was
     opened. relay up: all tunnels, or a required one, failed like this

relay ctl: 1 if the relay that runs does not answer, or has not done it, also
because of its file; 2 also if no relay is there.

relay pipe ends by the signal that ended it. Every failure is one line on
standard error; --debug adds a traceback.
"""

TOPICS = {"hops": hops(), "tls": tls(), "exit-status": EXIT_STATUS}


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
    with failures_reported(debug=False):
        root = context.find_root().command
        root([*words, "--help"], standalone_mode=False, prog_name="relay")
