"""``relay ctl``: show and control a running relay through its control socket."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any

import click

from ..output import failures_reported, print_line, show_help
from ..running import connected, names_of_tunnels, tunnel_names

EXAMPLES = """Examples:

relay ctl status (the process, and how many tunnels listen)

relay ctl list (each tunnel, its state and its figures)

relay ctl connections db (the open connections of the tunnel db)

relay ctl bans --clear 192.0.2.7 (this address may connect again)

relay ctl reload --dry-run (what a reload would change)

relay ctl upgrade (after relay was installed anew: no client is refused)

relay ctl pause db (clients wait until relay ctl resume db)

relay ctl log-level debug (until it is set again)

curl --unix-socket PATH http://localhost/tunnels (the same protocol: HTTP with JSON)
"""

LEVELS = ("debug", "info", "warning", "error")

_LONG = 300.0  # seconds for a reload: it waits for the one before it, and for servers at which tunnels are to listen


def _given_before(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """Return the control socket that stands after the command, or else before it."""
    return context.parent.params.get("control") if value is None and context.parent is not None else value


_CONTROL = "The control socket of the relay [the only one that runs]."
control = click.option("--control", metavar="PATH", callback=_given_before, help=_CONTROL)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
tunnel = click.argument("name", metavar="TUNNEL", help="The name of a tunnel", shell_complete=names_of_tunnels)


class _Commands(click.Group):
    """A group whose list of commands has the first clause of each help text; Click would cut the sentence."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of the commands."""
        with formatter.section("Commands"):
            texts = {name: str(self.commands[name].help).partition("\n\n")[0] for name in self.list_commands(ctx)}
            formatter.write_dl([(name, re.split(r"[,;:.]( |$)", text)[0]) for name, text in texts.items()])


@click.group(cls=_Commands, invoke_without_command=True, subcommand_metavar="COMMAND [ARGS]...", epilog=EXAMPLES)
@click.option("--control", metavar="PATH", help=f"{_CONTROL[:-1]}; it may follow COMMAND, too.")
@click.pass_context
def ctl(context: click.Context, control: str | None) -> None:
    """Show and control a running relay.

    It finds the control socket of relay up by itself; with several running, name one with --control. Exit status: 0
    done, 1 the relay does not answer, or has not done it (it rejects its file, is ending, is being upgraded), 2
    something that you must change first: the command line, or no relay is there.
    """
    if context.invoked_subcommand is None:
        show_help(context)


def subcommand(function: Callable[..., None]) -> click.Command:
    """Make a subcommand of a function, with ``--control`` and one line for a failure."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        path = arguments.pop("control")
        with failures_reported(debug=False), connected(path, rejection_is_failure=True) as client:
            function(client, **arguments)

    return ctl.command(function.__name__.removesuffix("_").replace("_", "-"))(control(run))


@as_json
def status(client: Any, as_json: bool) -> None:
    """Show the process, its file, and how many tunnels listen."""
    instance = client.get("/instance")
    tunnels = client.get("/tunnels")["tunnels"]
    from ..ctl_tables import listening, status_lines

    if as_json:
        return _print_json({**instance, "tunnels": {"total": len(tunnels), "listening": listening(tunnels)}})

    for line in status_lines(instance, tunnels):
        print_line(line)


def live(client: Any) -> None:
    """Exit with status 0 if the loop of each tunnel turns, as /livez does: for a liveness probe."""
    client.get("/livez")


def ready(client: Any) -> None:
    """Exit with status 0 if the required tunnels serve clients, as /readyz does: for a readiness probe."""
    client.get("/readyz")


@ctl.command("list")
@click.option("--names", is_flag=True, help="Print only the names, of all relays that run.")
@as_json
@control
def list_(names: bool, as_json: bool, control: str | None) -> None:
    """List the tunnels: state, addresses, figures and problems."""
    if names:
        for name in tunnel_names(control):
            print_line(name)
        return
    with failures_reported(debug=False), connected(control) as client:
        answer = client.get("/tunnels")
        if as_json:
            return _print_json(answer)
        from ..ctl_tables import print_tunnels

        print_tunnels(answer["tunnels"])


@click.argument(
    "name", metavar="[TUNNEL]", required=False, help="Only those of this tunnel", shell_complete=names_of_tunnels
)
@click.option("--recent", is_flag=True, help="Show the last ones that ended, with their reasons, instead.")
@as_json
def connections(client: Any, name: str | None, recent: bool, as_json: bool) -> None:
    """List the open connections, with the IDs for relay ctl kill, and the warm streams of each tunnel."""
    query = {} if name is None else {"tunnel": name}
    answer = client.get("/connections/recent" if recent else "/connections", **query)
    if as_json:
        return _print_json(answer)
    from ..ctl_tables import print_connections, print_warm

    print_connections(answer["connections"], ended=recent)
    if not recent:
        print_warm([tunnel for tunnel in client.get("/tunnels")["tunnels"] if name in (None, tunnel["name"])])


@as_json
def carriers(client: Any, as_json: bool) -> None:
    """List the SSH connections and I2P sessions that streams share, those of workers included."""
    answer = client.get("/carriers")
    if as_json:
        return _print_json(answer)
    from ..ctl_tables import print_carriers

    print_carriers(answer["carriers"])


clear = click.option(
    "--clear", metavar="KEY", help="Forget those of this key, or of an address in it, instead of listing them."
)
of_tunnel = click.argument(
    "name", metavar="[TUNNEL]", required=False, help="Only those of this tunnel", shell_complete=names_of_tunnels
)


@of_tunnel
@clear
@as_json
def bans(client: Any, name: str | None, clear: str | None, as_json: bool) -> None:
    """List the bans of clients, and the limits that have banned them.

    A key stands for the clients that count together: an address, a network, an identity, or * for all of a tunnel.
    """
    _ledger(client, "bans", name, clear, as_json)


@of_tunnel
@clear
@as_json
def quotas(client: Any, name: str | None, clear: str | None, as_json: bool) -> None:
    """List how much clients have used of their quotas."""
    _ledger(client, "quotas", name, clear, as_json)


def _ledger(client: Any, kind: str, name: str | None, clear: str | None, as_json: bool) -> None:
    query = {} if name is None else {"tunnel": name}
    if clear is not None:
        client.request("DELETE", f"/{kind}", key=clear, **query)
        return
    answer = client.get(f"/{kind}", **query)
    if as_json:
        return _print_json(answer)
    from .. import ctl_tables

    getattr(ctl_tables, f"print_{kind}")(answer[kind])


def _act(client: Any, name: str, action: str, as_json: bool, **query: str) -> None:
    """Do something with a tunnel; print the tunnel then if requested."""
    client.request("POST", "/tunnels", name, action, **query)
    if as_json:
        _print_json(client.get("/tunnels", name))


@tunnel
@as_json
def pause(client: Any, name: str, as_json: bool) -> None:
    """Accept no client at TUNNEL until relay ctl resume.

    Clients wait. Open connections stay.
    """
    _act(client, name, "pause", as_json)


@tunnel
@as_json
def resume(client: Any, name: str, as_json: bool) -> None:
    """Accept clients at TUNNEL again."""
    _act(client, name, "resume", as_json)


@tunnel
@as_json
def drain(client: Any, name: str, as_json: bool) -> None:
    """Close the listener of TUNNEL; open connections may finish. A reload or an upgrade opens it again."""
    _act(client, name, "drain", as_json)


target = click.argument("target", metavar="TARGET", help="One of its targets, as relay ctl list prints it")


@tunnel
@target
@as_json
def disable(client: Any, name: str, target: str, as_json: bool) -> None:
    """Give one of several targets of TUNNEL no new connections; open ones stay."""
    _act(client, name, "disable", as_json, target=target)


@tunnel
@target
@as_json
def enable(client: Any, name: str, target: str, as_json: bool) -> None:
    """Give a target of TUNNEL connections again, as soon as relay can connect to it."""
    _act(client, name, "enable", as_json, target=target)


@click.argument("id", metavar="ID", help="The ID of a connection, from relay ctl connections")
@as_json
def kill(client: Any, id: str, as_json: bool) -> None:  # noqa: A002  (the name of the argument)
    """Reset one open connection."""
    client.request("DELETE", "/connections", id)
    if as_json:
        _print_json({"id": id})


@click.option("--dry-run", is_flag=True, help="Change nothing; only print what would change.")
@as_json
def reload(client: Any, dry_run: bool, as_json: bool) -> None:
    """Read relay.toml again and apply its changes.

    Prints a line for each tunnel that changes. On an error nothing changes (status 1).
    """
    client.set_timeout(_LONG)
    answer = client.request("POST", "/reload", dry_run="true" if dry_run else "false")
    if as_json:
        return _print_json(answer)
    from ..ctl_tables import verdict_lines

    for line in verdict_lines(answer["verdicts"], answer["keys"]):
        print_line(line)


@as_json
def upgrade(client: Any, as_json: bool) -> None:
    """Replace the relay by its program as it is installed now, without a gap.

    The relay starts its own command line again. The new process checks the file and takes the listening sockets over.
    The old one then accepts no client, and ends when its open connections have finished (drain). If the new process
    does not become ready, nothing changes (status 1).
    """
    client.set_timeout(_LONG)
    before = client.get("/instance")
    after = client.request("POST", "/upgrade")
    if as_json:
        return _print_json(after)
    print_line(f"process {after['pid']} (relay {after['version']}) has replaced process {before['pid']}")


def reopen(client: Any) -> None:
    """Open the log files again, after logrotate has renamed them."""
    client.request("POST", "/reopen")


@click.argument("level", metavar="LEVEL", type=click.Choice(LEVELS), help="debug, info, warning or error")
def log_level(client: Any, level: str) -> None:
    """Log from LEVEL on, until it is set again or relay restarts.

    With warning, the log has also what relay itself does, such as reloads.
    """
    client.request("PUT", "/log-level", body={"level": level})


@as_json
def stop(client: Any, as_json: bool) -> None:
    """End the relay as SIGTERM does: open connections may finish. A second time ends it at once."""
    pid = client.get("/instance")["pid"] if as_json else None
    client.request("POST", "/stop")
    if as_json:
        _print_json({"pid": pid})


def _print_json(answer: Any) -> None:
    print_line(json.dumps(answer, indent=2))


for _function in (
    status, live, ready, connections, carriers, bans, quotas, pause, resume, drain, disable, enable, kill, reload,
    upgrade, reopen, log_level, stop,
):  # fmt: skip
    subcommand(_function)
