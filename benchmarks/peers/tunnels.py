"""Files of many tunnels, for the programs that read one, and what makes each of them read its file again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..machine import LOOPBACK, UnavailableError, program, relay_command

TO_A_NETWORK = 250
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def host_of(number: int) -> str:
    """The address that one tunnel listens at; all of them listen at one port."""
    return f"127.1.{number // TO_A_NETWORK}.{number % TO_A_NETWORK + 1}" if number else LOOPBACK


@dataclass(frozen=True)
class File:
    """The file of one program.

    :param name: of the file.
    :param text: makes it: of the port that all tunnels listen at, and the port of the target of each.
    :param command: makes the argument list, of its path.
    :param reload: the signal that makes the program read it again.
    """

    name: str
    text: Callable[[int, Sequence[int]], str]
    command: Callable[[Path], list[str]]
    reload: signal.Signals


def _relay(port: int, targets: Sequence[int]) -> str:
    return "".join(
        f'[tunnels.t{number}]\nlisten = "{host_of(number)}:{port}"\ntarget = "{LOOPBACK}:{target}"\n'
        for number, target in enumerate(targets)
    )


def _haproxy(port: int, targets: Sequence[int]) -> str:
    head = """global
    nbthread 1
    maxconn 1000
defaults
    mode tcp
    timeout connect 30s
    timeout client 1h
    timeout server 1h
"""
    return head + "".join(
        f"listen t{number}\n    bind {host_of(number)}:{port}\n    server target {LOOPBACK}:{target}\n"
        for number, target in enumerate(targets)
    )


def _nginx(port: int, targets: Sequence[int]) -> str:
    servers = "".join(
        f"    server {{ listen {host_of(number)}:{port}; proxy_pass {LOOPBACK}:{target}; }}\n"
        for number, target in enumerate(targets)
    )
    most = len(targets) + 1000
    return f"""load_module {MODULE};
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
worker_rlimit_nofile {most};
events {{ worker_connections {most}; }}
stream {{
{servers}}}
"""


def _start_nginx(path: Path) -> list[str]:
    if not MODULE.exists():
        raise UnavailableError("nginx's stream module is not installed")
    return [program("nginx"), "-p", str(path.parent), "-c", str(path), "-e", "stderr"]


FILES = {
    "relay": File("relay.toml", _relay, lambda path: [relay_command(), "up", str(path)], signal.SIGHUP),
    "haproxy": File(
        "haproxy.cfg", _haproxy, lambda path: [program("haproxy"), "-W", "-db", "-f", str(path)], signal.SIGUSR2
    ),
    "nginx": File("nginx.conf", _nginx, _start_nginx, signal.SIGHUP),
}
