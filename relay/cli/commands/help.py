"""``relay help``: the help of a command, how it looks, and what several commands have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from ..output import failures_reported, say

__all__ = ["TOPICS", "help"]

HOPS = """Hops (--via), SSH servers and I2P routers as LISTEN, TARGET or --on

  ssh://[USER@]HOST[:PORT]   an SSH server, or an alias of your configuration
  i2p:                       the I2P router on this machine
  socks5://[USER@]HOST:PORT  a SOCKS5 proxy
  http://[USER@]HOST:PORT    an HTTP proxy (CONNECT)
  exec:COMMAND %h %p         a program, like a ProxyCommand

Parameters follow a question mark: ssh://me@bastion?keyfile=FILE&keepalive=5

SSH. What no parameter says, your SSH configuration and agent do.

  keyfile=FILE               the private key that is offered
  identities_only=no         offer the other keys after it, too
  passphrase_file=FILE       where the passphrase of the key is
  passphrase_env=NAME        the same, an environment variable
  password_file=FILE         where the password is
  password_env=NAME          the same, an environment variable
  known_hosts=FILE           host keys, instead of your own file
  hostkey=SHA256:…           the fingerprint that the host key must have
  accept_new=yes             trust and store the key of an unknown server
  config=FILE                an SSH configuration, instead of your own
  keepalive=SECONDS          check the connection this often, or none [15]
  compress=yes|no            compress
  backend=paramiko|openssh   which implementation of SSH
  listen=HOST:PORT           as LISTEN or --on: where the server listens

I2P

  sam=HOST:PORT              the SAM bridge of the router [127.0.0.1:7656]
  session=NAME               the name of the session
  keys=FILE                  the private key of the destination
  in_depth=HOPS              length of the tunnels in, 0 to 7 [3]
  out_depth=HOPS             length of the tunnels out, 0 to 7 [3]
  user=NAME                  the login at the bridge, with one of
  password_file=FILE         these two
  password_env=NAME
  inbound.quantity=2         any option of the router
  accept=accept|forward      as LISTEN or --on: how streams come in
  allow=DESTINATION          as LISTEN or --on: only these may connect
  deny=DESTINATION           as LISTEN or --on: these may not
"""

EXIT_STATUS = """Exit statuses of relay

  0  done, or ended by SIGINT, SIGTERM or SIGHUP
  1  a failure at run time: an address in use, a login that was rejected,
     a server that cannot be reached (with --fail-fast, and in relay pipe)
  2  you have to change something first: the command line, a file that is
     missing or wrong, an environment variable that is not set; nothing was
     opened. relay up: all tunnels, or a required one, failed like this

relay pipe ends by the signal that ended it. Every failure is one line on
standard error; --debug adds a traceback.
"""

TOPICS = {"hops": HOPS, "exit-status": EXIT_STATUS}


def help(  # noqa: A001  (each command has the name of its function)
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND | TOPIC", help=f"A command of relay, or one of: {', '.join(TOPICS)}."),
    ] = None,
) -> None:
    """Show the help of relay, of COMMAND, or of a TOPIC."""
    if words and len(words) == 1 and words[0] in TOPICS:
        say(TOPICS[words[0]].rstrip())
        return
    with failures_reported(debug=False):
        root = context.find_root().command
        root([*(words or []), "--help"], standalone_mode=False, prog_name="relay")
