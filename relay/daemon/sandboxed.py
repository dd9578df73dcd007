"""The sandbox of a command: applied before its first thread starts, and asked before a reload changes anything."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from ..addresses.i2p import I2PListen
from ..addresses.parse import parse_listen
from ..addresses.values import UnixAddress
from ..errors import AddressError
from ..process import end_spawner
from ..transports.ssh.confinement import confine
from .endpoint_plan import EndpointPlan, LogPlan
from .plan import Plan
from .runtime import default_path
from .sandbox import Access, Rules, Sandbox, SandboxError, apply, merged
from .sandbox_rules import NotConfinableError, TunnelRules, file_rules, system_rules

logger = logging.getLogger("relay.cli")

_ON = "on"
_NONE = "none"
_END = 5.0  # seconds for threads that have done their work to end


def sandboxed(mode: str | None, plans: Sequence[Plan], endpoints: EndpointPlan, log: LogPlan) -> Sandbox | None:
    """Restrict this process to what its tunnels need, and log that, or why not.

    The main thread must be the only one: the caller has stopped the log's.

    :param mode: ``auto``, or ``on``, with which relay does not run without the sandbox.
    :param plans: the tunnels.
    :param endpoints: where relay listens for operators, and the file of the tunnels.
    :param log: the access log.
    :returns: the sandbox; ``None`` if it is off.
    :raises ValueError: if it is to be on and cannot be.
    """
    try:
        if any(plan.in_workers is not None for plan in plans):
            raise NotConfinableError("workers are new programs, which it would forbid")
        tunnels = TunnelRules()
        found = [system_rules(), _command_rules(endpoints, log)]
        found += [rules for plan in plans for rules in tunnels.of(plan)]
        if any(isinstance(plan.routes.where, I2PListen) for plan in plans):
            from ..transports.i2p.peer_uid import remember_kernel

            remember_kernel()
        end_spawner()
        # Landlock holds for the thread that calls it and for those that it starts later. A thread that is left over
        # from the start would keep all rights.
        _join()
        sandbox = apply(merged(found))
        confine()
    except (NotConfinableError, SandboxError) as error:
        if mode == _ON:
            problem = f"sandbox: cannot be applied: {error}; change that, or set sandbox to auto or off"
            raise ValueError(problem) from error
        logger.info("sandbox: off: %s", error)
        return None
    logger.info("sandbox: on: %s", sandbox)
    return sandbox


def _join() -> None:
    """Wait for threads that have read the configuration; a thread that goes on is found by the sandbox."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(_END)


def _command_rules(endpoints: EndpointPlan, log: LogPlan) -> Rules:
    """Return the rules for the file of the tunnels, the sockets of operators, the access log and the state."""
    control = endpoints.control or (default_path(endpoints.config) if endpoints.config else None)
    status = None
    if endpoints.status is not None:
        with suppress(AddressError):  # who opens it reports that
            status = parse_listen(endpoints.status)
    return file_rules(
        reads=filter(None, [endpoints.config, endpoints.token_file]),
        writes=[
            *([control] if control not in (None, _NONE) else []),
            *([status.path] if isinstance(status, UnixAddress) else []),
            *(path for path in (log.path, log.state) if path not in (None, _NONE)),
        ],
    )


def forbidden(sandbox: Sandbox, plans: Iterable[Plan], endpoints: EndpointPlan, log: LogPlan) -> list[str]:
    """Return why tunnels, sockets of operators or the log are impossible in the sandbox, one line each."""
    tunnels = TunnelRules()
    needs: list[tuple[str, Callable[[], Rules]]] = [
        ("control, status, log_file and state", functools.partial(_command_rules, endpoints, log))
    ]
    needs += [(plan.name, functools.partial(_rules_of, tunnels, plan)) for plan in plans]
    lines = []
    for name, rules in needs:
        try:
            problems = sandbox.problems(rules())
        except NotConfinableError as error:
            lines.append(f"{name}: the sandbox does not let relay do that: {error}; restart relay")
        else:
            if problems:
                lines.append(f"{name}: the sandbox does not let relay {', '.join(problems)}; restart relay")
    return lines


def _rules_of(tunnels: TunnelRules, plan: Plan) -> Rules:
    return merged(tunnels.of(plan))


def unreadable(sandbox: Sandbox, path: str) -> str:
    """Return why the sandbox does not let relay read a file, in one line; empty if it does."""
    if sandbox.allows(path, Access.READ):
        return ""
    return f"{path}: it was replaced, and the sandbox does not let relay read the new file; restart relay"
