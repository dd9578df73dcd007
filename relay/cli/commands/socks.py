"""``relay socks``: a proxy whose clients name their targets, such as a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ...daemon.options import Options
from ...daemon.plan import make_proxy_plan
from ...daemon.signals import Signals
from ...eventloop import reserve
from ...transports.dynamic import Rule, parse_rule
from ..addresses import read_hops, read_listen, without_secrets
from ..i2p_options import read_bridges, sam
from ..options import GroupedCommand, options_about, via, with_options
from ..output import failures_reported, logged_to_stderr
from ..run import relay_one

EXAMPLES = """Examples:

relay socks 1080 (whatever a client asks 127.0.0.1:1080 for; names in .i2p by the I2P router on this machine)

relay socks 1080 --via ssh://me@bastion (the same from the bastion, which looks names up: ssh -D)

relay socks 1080 --rule '*.corp.example=ssh://me@bastion' --rule '10.0.0.0/8=ssh://me@bastion' --rule '*=direct'

relay socks 1080 --rule '*.i2p=i2p:' --rule '*=socks5://127.0.0.1:9050' (I2P by its router, the rest by a proxy)

relay socks http://127.0.0.1:3128 --rule '*:443=direct' (an HTTP proxy for https:// only)

relay socks 1080 --rule '10.0.0.0/8=refuse' --rule '*=direct' (nor to names that resolve into 10.0.0.0/8)

relay socks sni://0.0.0.0:443 --rule 'www.example.com=unix:///run/www.sock' --rule '*.example.com=ssh://me@bastion'

relay socks redirect://127.0.0.1:1081 --via ssh://me@bastion (what a firewall redirects; see relay help redirect)

relay socks 0.0.0.0:1080 --user guest --password-file FILE (every interface; a user and a password are required)

curl --proxy socks5h://127.0.0.1:1080 https://intranet.corp.example/ is a client (socks5:// looks names up itself).

relay help hops lists the parameters of hops, SSH servers and I2P routers.
A comma between two hops of a rule is followed by a scheme.
"""


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument(
    "listen",
    metavar="LISTEN",
    help="1080, :0, HOST:PORT, unix:///PATH or systemd:NAME for SOCKS; http://HOST:PORT, sni://HOST:PORT, "
    "redirect://HOST:PORT",
)
@via
@click.option(
    "--rule",
    metavar="PATTERN=ROUTE",
    multiple=True,
    help="*.NAME, a network such as 10.0.0.0/8, or *, each with :PORT if wanted; and direct, refuse or HOP,HOP, "
    "perhaps with tcp://HOST:PORT or unix:///PATH at the end, to lead there. The first that matches wins; what none is "
    "about goes over --via, else it is refused.",
)
@click.option("--user", metavar="NAME", help="Allow only this user, with a password.")
@click.option(
    "--password-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File with the password; must be owner-only (mode 0600).",
)
@click.option("--password-env", metavar="NAME", help="Environment variable with the password.")
@sam
@options_about("balancers")
@options_about("clients")
@with_options
def socks(
    listen: str,
    via: Sequence[str],
    rule: Sequence[str],
    user: str | None,
    password_file: Path | None,
    password_env: str | None,
    sam: Sequence[str],
    options: Options,
) -> None:
    """Run a SOCKS or HTTP proxy on LISTEN, until SIGINT, SIGTERM or SIGHUP.

    SOCKS5 and, without a password, SOCKS4 and 4a; with http:// the CONNECT of an HTTP proxy. relay binds to 127.0.0.1
    unless you give a host, and prints the address.

    relay retries until a server can be reached, at the start and after a loss. It exits only if a retry cannot help (a
    host key, a login, an address in use, a missing file).

    The last hop resolves names: that of --via, or of the rule that matches; without hops, this machine does. The I2P
    router on this machine, or the one given with --sam, resolves .i2p names unless a rule matches.

    With sni:// the clients speak TLS, and each gets the server that it names, at port 443, or the target of its rule;
    relay decrypts nothing. A server without a rule is refused. * also matches clients that name none, if it has a
    target.

    A rule that rejects a network also rejects names that resolve into it, if a later rule says direct for them.

    torsocks cannot resolve names here, because it uses a command of Tor's own: give it addresses, or use proxychains4.
    Chromium needs socks5:// for http:// addresses, because http:// here supports CONNECT only (status 405).
    """
    with (
        logged_to_stderr(options.log_format, verbose=options.verbose, debug=options.debug),
        failures_reported(debug=options.debug),
        Signals() as signals,
    ):
        reserve.keep()
        hops = read_hops(via, "")
        rules = [_rule(text) for text in rule]
        made = make_proxy_plan(
            read_listen(listen),
            options,
            name="socks",
            via=hops,
            rules=rules,
            user=user,
            password_file=str(password_file) if password_file else None,
            password_env=password_env,
            bridges=read_bridges(sam),
        )
        relay_one(made, signals, "listening on ")


def _rule(text: str) -> Rule:
    rule = parse_rule(text)
    for hop in rule.route or ():
        without_secrets(f"rule '{rule.text}=…', hop", str(hop), hop)
    return rule
