"""``relay check``: the tunnels of a file or of a command line, and every problem in it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...addresses.hops import owner_of_keys
from ...addresses.parse import parse_elsewhere, parse_listen
from ...addresses.printable import printable
from ...daemon.failures import configuration_read
from ...daemon.options import Options
from ...extras import missing
from ..options import debug
from ..output import failures_reported, print_line, print_notice
from . import command as load_command

if TYPE_CHECKING:
    from ...addresses.hops import Listen
    from ...config import Config, Entry
    from ...daemon.plan import Plan
    from ...daemon.preflight import Preflight

EXAMPLES = """Examples:

relay check (the file that relay up would take)

relay check --print tunnels.toml (all that holds, the defaults in each tunnel)

relay check -- forward 5432 db:5432 --via ssh://me@bastion (a command line)

relay check --print -- forward 5432 db:5432 --via ssh://me@bastion (the same as a file for relay up)

relay check --diff (what a reload of the relay that runs would change)

relay check --schema > relay.schema.json (for editors; the first line of a file is #:schema relay.schema.json)
"""

LINES = ("forward", "expose", "socks")  # the commands that are tunnels


@click.command(epilog=EXAMPLES)
@click.argument(
    "words",
    metavar="[FILE | -- COMMAND …]",
    nargs=-1,
    help="A relay.toml, or a relay command without the word relay.",
)
@click.option(
    "--print",
    "as_file",
    is_flag=True,
    help="Print the effective settings as a relay.toml; resolve no names and open no keys.",
)
@click.option(
    "--diff",
    is_flag=True,
    help="Print what a reload would change in the relay up that runs FILE, by default the only one; change nothing.",
)
@click.option("--schema", is_flag=True, help="Print the JSON schema of relay.toml, for editors.")
@debug
def check(words: Sequence[str], as_file: bool, diff: bool, schema: bool, debug: bool) -> None:
    """Check FILE, or a command line: read all of it, resolve names, open keys and certificates, and connect to nothing.

    Prints the address of each tunnel, one line each; or every problem, one line each, with status 2 if you have to
    change something, and 1 if only host names cannot be resolved, or access rules can never match. Secrets are never
    printed.
    """
    with failures_reported(debug=debug):
        from ... import config as files

        if schema:
            print_line(json.dumps(files.schema(), indent=2, ensure_ascii=False))
            return
        if diff:
            return _print_verdicts(words)
        if words and words[0] in LINES:
            config, left_out = _of_line(words[0], words[1:])
            if as_file and left_out:
                print_notice(f"relay: {', '.join(left_out)}: a file has no such key; give it to relay up")
        elif words and len(words) > 1:
            raise ValueError(f"{words[1]}: expected one file, or one of {', '.join(LINES)} after --")
        else:
            with configuration_read():
                config = files.read(words[0] if words else files.find())
        # Relative paths in a file begin at its folder, as in relay up, which changes to it as well.
        with contextlib.chdir(config.folder):
            _tell(config, as_file=as_file)


def _print_verdicts(words: Sequence[str]) -> None:
    """Print the verdict on each tunnel, if the running relay reloaded its file now.

    :raises ValueError: if there is no such relay, or the file has a problem.
    :raises OSError: if a tunnel cannot be opened, or there is no answer.
    """
    from ...daemon.runtime import default_path
    from ..running import connected

    if len(words) > 1 or (words and words[0] in LINES):
        raise ValueError("--diff: expected one file; the one that a running relay up has")
    path = _control_of(words[0], default_path) if words else None
    with connected(path) as client:
        answer = client.request("POST", "/reload", dry_run="true")
    for each in answer["keys"]:
        print_line(printable(f"key {each['key']}: {each['remedy'] or each['effect']}"))
    for each in answer["verdicts"]:
        detail = f" ({each['detail']})" if each["detail"] else ""
        print_line(printable(f"{each['name']}: {each['verdict']}{detail}"))


def _control_of(file: str, default_path: Callable[[str], str | None]) -> str:
    """Return the path of the control socket of the relay that runs a file."""
    from ... import config as files

    with configuration_read():
        config = files.read(file)
    given = config.file.control
    if given not in (None, "none"):
        return os.path.join(config.folder, str(given))
    path = default_path(file)
    if given == "none" or path is None:
        raise ValueError(f"--diff: a relay that runs {file} has no control socket; set control in the file")
    return path


def _tell(config: Config, *, as_file: bool) -> None:
    from ...config import LIMITS, as_toml
    from ...daemon.plan_from_file import check_problems, plans_of
    from ...daemon.preflight import Preflight
    from ...daemon.rule_notices import RuleNotice, rule_notices

    plans = plans_of(config, Options())
    if as_file:
        check_problems(config)
        settled = [(plan.table, {name: getattr(plan.options, name) for name in LIMITS}) for plan in plans]
        text = as_toml(config.file, config.hops, settled).rstrip()
        print_line(text)
        if re.search(r'"exec:.* …"', text):
            print_notice("relay: exec: its words are left out (…), as they may hold a secret; write them into the file")
        return
    # One for all tunnels: a name, a key or a certificate that many of them have is looked at once.
    preflight = Preflight()
    lines = [_line(config, preflight, plan.table, plan) for plan in plans]
    for line in filter(None, lines):
        print_line(line)
    known: dict[RuleNotice, None] = {}  # each once: tunnels may have the lists of the defaults
    for line, plan in zip(lines, plans, strict=True):
        if line:  # else its lists may be wrong
            known |= dict.fromkeys(rule_notices(config, plan.table, plan))
    for notice in known:
        if notice.is_warning:
            config.problems.add(notice.path, notice.text, is_config_error=False)
        else:
            print_notice(f"relay: {config.problems.notice(notice.path, notice.text)}")
    _check_top(config)
    check_problems(config)


def _check_top(config: Config) -> None:
    """Check the keys at the top of the file that relay up opens; note their problems."""
    from ...daemon.plan_from_file import collect_problems

    file = config.file
    if file.sandbox == "on" and (problem := missing("sandbox")) is not None:
        config.problems.add(("sandbox",), problem)
    if file.control is not None and file.control != "none":
        from ...daemon.sockets import check_control

        with collect_problems(config, "control"):
            check_control(file.control)
            if os.path.isdir(file.control):
                raise ValueError(f"control socket {file.control}: it is a directory; name a socket in it")
            parent = os.path.dirname(os.path.dirname(os.path.abspath(file.control)))
            if not os.path.isdir(parent):  # relay makes the last directory itself
                raise ValueError(f"control socket {file.control}: no directory {parent}; make it")
    if file.status not in (None, "none"):
        from ...daemon.sockets import check_status

        with collect_problems(config, "status"):
            check_status(str(file.status), is_public=bool(file.status_public), token_file=file.status_token_file)
    for key, what, path in (("log_file", "log file", file.log_file), ("state", "state file", file.state)):
        if path not in (None, "none"):
            with collect_problems(config, key):
                _check_file(what, path)


def _check_file(what: str, path: str) -> None:
    """Check that relay can have a file at a path.

    :raises ValueError: if the path is empty or a directory, or there is no directory for it.
    """
    if not path:
        raise ValueError(f"{what}: the path is empty; name a file, or leave the key out")
    full = os.path.abspath(os.path.expanduser(path))
    folder = os.path.dirname(full)
    if os.path.isdir(full):
        raise ValueError(f"{what} {path}: it is a directory; name a file")
    if not os.path.isdir(folder):
        raise ValueError(f"{what} {path}: no directory {folder}; make it")


def _line(config: Config, preflight: Preflight, entry: Entry, plan: Plan) -> str:
    """Describe a tunnel; return an empty text if it has a problem, which is noted."""
    from ...daemon.plan_from_file import add_problem
    from ...daemon.routed_targets import targets_of

    address = preflight.check(
        plan.routes, plan.make_send, functools.partial(add_problem, config, ("tunnels", entry.name))
    )
    target = "anywhere" if entry.is_proxy else targets_of(plan.routes.out)
    return "" if address is None else f"{entry.name}: listens on {plan.title(address, target)}"


def _of_line(command: str, words: Sequence[str]) -> tuple[Config, list[str]]:
    """Convert a command line to a file with one tunnel, of the command's name.

    :returns: the file, and the options of the line for which a file has no key.
    :raises click.ClickException: if the command rejects it.
    """
    from ...config import of_command_line
    from ...config.models import File, Tunnel

    # click parses and checks the words as for the command itself; the command is not called.
    with load_command(command).make_context(command, [*words]) as context:
        given = {name: _plain(value) for name, value in context.params.items() if value not in (None, (), [])}
        options = {
            str(one.name): max(one.opts, key=len)
            for one in context.command.params
            if context.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE
        }
    listen: Listen | None = None
    if command == "expose":
        listen = parse_elsewhere(given["on"], "--on")
        given |= {"listen": given.pop("on"), "listen_via": given.pop("via", None)}
    if command == "socks":
        given["target"] = "anywhere"
    if command == "forward":
        listen = parse_listen(given["listen"])
        if others := given.pop("others", None):
            given["target"] = [given["target"], *others]
        if (owner := owner_of_keys(listen)) is not None:  # it is expose that keeps destinations
            given["transient"] = not (owner.keys or owner.session)
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    top = {name: said[name] for name in File.model_fields if name in said}
    tunnel = {name: said[name] for name in Tunnel.model_fields if name in said and name not in top}
    known = {*Tunnel.model_fields, *File.model_fields, "others", "on", "resume"}  # the last one has changed the hops
    left_out = [option for name, option in options.items() if name not in known]
    return of_command_line(command, tunnel, top, listen), left_out


def _plain(value: Any) -> Any:
    """Convert a parameter of a command to a value of TOML."""
    from ...access.limit import Limit

    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Limit):
        return value.as_table()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
