"""The text of the unit: what systemd starts, and the sandbox around it.

Source: systemd.unit(5), systemd.service(5), systemd.exec(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

RELOADS = 253  # the first systemd with Type=notify-reload
REPORTS_STORE = 254  # the first one that sets FDSTORE
STORES = 512  # listening sockets that systemd keeps over a restart
FILES = 65536  # descriptors: a connection needs two, a tunnel three
TASKS = 16384  # threads: a tunnel has one, and a second one while it opens or drains; the default may be 4,915

_DESCRIPTION = "Description=relay, the tunnels of "
_SPECIAL = re.compile(r'[\s"\'\\;]')


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The parts of the sandbox that depend on the tunnels: plain data.

    :param writes: directories outside of those that systemd makes, in which relay writes.
    :param needs_home: whether it reads files in a home directory.
    :param needs_tmp: whether it shares ``/tmp`` with other programs.
    :param needs_low_port: whether it listens at a port below 1024.
    :param starts_programs: whether it starts other programs.
    :param binds: directories of relay itself that a private ``/tmp`` would hide.
    :param groups: the numbers of the groups that it gives to Unix sockets.
    :param shares_runtime: whether other users connect to a Unix socket in the directory of its control socket.
    """

    writes: tuple[str, ...] = ()
    needs_home: bool = False
    needs_tmp: bool = False
    needs_low_port: bool = False
    starts_programs: bool = False
    binds: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    shares_runtime: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit before it is written.

    :param command: the words that start relay, without those of ``relay up``.
    :param config: the absolute path of the file of tunnels.
    :param user: the user who runs it; empty for one that systemd makes; ``None`` for the owner of a user manager.
    :param home: the home directory of that user, which is ``%h`` in the unit of a user manager.
    :param version: of systemd.
    :param sandbox: the parts of the sandbox that depend on the tunnels.
    """

    command: tuple[str, ...]
    config: str
    user: str | None
    home: str
    version: int
    sandbox: Sandbox

    @property
    def is_users(self) -> bool:
        """True for a user manager, ``systemctl --user``."""
        return self.user is None


def text_of(unit: Unit) -> str:
    """Return the text of a unit."""
    return "\n".join([*_head(unit), "", *_service(unit), "", *_hardening(unit), "", *_install(unit), ""])


def config_of(text: str, home: str) -> str | None:
    """Return the file of tunnels in the text of a unit; ``None`` if relay has not written it.

    :param home: the home directory of the user, for ``%h``.
    """
    found = re.search(rf"^{_DESCRIPTION}(.*)$", text, re.MULTILINE)
    return re.sub("%(.)", lambda name: home if name[1] == "h" else name[1], found[1]) if found else None


def _head(unit: Unit) -> Iterator[str]:
    yield "[Unit]"
    yield f"{_DESCRIPTION}{_path(unit, unit.config)}"
    yield "Documentation=man:relay-up(1)"
    if not unit.is_users:
        yield "Wants=network-online.target"
        yield "After=network-online.target"
    # No limit of starts: a relay whose network is down for long must still come back by itself.
    yield "StartLimitIntervalSec=0"


def _service(unit: Unit) -> Iterator[str]:
    yield "[Service]"
    if unit.version >= RELOADS:
        # systemctl reload then returns only after the reload; with the older form it returns at once.
        yield "Type=notify-reload"
    else:
        yield "Type=notify"
        yield "ExecReload=kill -HUP $MAINPID"
    yield "ExecStart=" + " ".join(_word(unit, word).replace("$", "$$") for word in (*unit.command, "up", unit.config))
    yield "Restart=on-failure"
    yield "RestartSec=5"
    yield "# A wrong configuration stays wrong after a restart."
    yield "RestartPreventExitStatus=2"
    yield "# SIGTERM is for relay itself: ssh and the other programs serve open connections until the drain ends."
    yield "KillMode=mixed"
    yield "TimeoutStartSec=300"
    yield "WatchdogSec=30"
    yield "# A program that hangs accepts no client any more, and its memory, with its keys, is not written to a disk."
    yield "WatchdogSignal=SIGKILL"
    yield "LimitCORE=0"
    yield f"FileDescriptorStoreMax={STORES}"
    # relay learns from this variable that systemd keeps descriptors for it; older versions do not set it.
    if unit.version < REPORTS_STORE:
        yield f"Environment=FDSTORE={STORES}"
    yield f"LimitNOFILE={FILES}"
    yield f"TasksMax={TASKS}"
    yield "UMask=0077"
    yield "RuntimeDirectory=relay"
    yield f"RuntimeDirectoryMode={'0711' if unit.sandbox.shares_runtime else '0700'}"
    if unit.is_users:
        yield "RuntimeDirectoryPreserve=yes"  # other relays of the user have their control sockets there
        return
    yield "StateDirectory=relay"
    yield "StateDirectoryMode=0700"
    # The keys of destinations are in its directory relay, which is the StateDirectory; a dynamic user has no home.
    yield "Environment=XDG_DATA_HOME=%S"
    yield f"User={unit.user}" if unit.user else "DynamicUser=yes"
    if unit.sandbox.groups:
        yield f"SupplementaryGroups={' '.join(unit.sandbox.groups)}"


def _hardening(unit: Unit) -> Iterator[str]:
    box = unit.sandbox
    yield "# The sandbox."
    capability = "CAP_NET_BIND_SERVICE" if box.needs_low_port and not unit.is_users else ""
    yield f"CapabilityBoundingSet={capability}"
    yield f"AmbientCapabilities={capability}"
    yield from (
        "NoNewPrivileges=yes",
        "KeyringMode=private",
        "LockPersonality=yes",
        "PrivateDevices=yes",
        "PrivateMounts=yes",
        f"PrivateTmp={_yes(not box.needs_tmp)}",
        # In a user namespace of its own a process has neither the capability nor the other groups outside of it.
        f"PrivateUsers={_yes(not capability and not box.groups)}",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        f"ProtectHome={'read-only' if box.needs_home else 'yes'}",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "ProtectSystem=strict",
        "RemoveIPC=yes",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
        "SystemCallErrorNumber=EPERM",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
        "SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    )
    if box.groups:
        yield "# For the groups of Unix sockets; a user may give a file only groups of their own."
        yield "SystemCallFilter=@chown"
    if box.starts_programs:
        yield "# Relaxed for the programs that relay starts: writable code, all of /proc, system calls, netlink."
        yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"
    else:
        yield "SystemCallFilter=~@resources"
        yield "MemoryDenyWriteExecute=yes"
        yield "ProcSubset=pid"
        yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
    if box.binds:
        yield f"BindReadOnlyPaths={' '.join(_word(unit, path) for path in box.binds)}"
    if box.writes:
        yield f"ReadWritePaths={' '.join(_word(unit, path) for path in box.writes)}"


def _install(unit: Unit) -> Iterable[str]:
    return "[Install]", f"WantedBy={'default.target' if unit.is_users else 'multi-user.target'}"


def _path(unit: Unit, path: str) -> str:
    """Return a path with specifiers: ``%h`` for the home of a user manager."""
    escaped = path.replace("%", "%%")
    home = unit.home.replace("%", "%%").rstrip("/")
    return f"%h{escaped[len(home) :]}" if unit.is_users and home and escaped.startswith(f"{home}/") else escaped


def _word(unit: Unit, text: str) -> str:
    """Return a word of a command line or a list, quoted if it needs that."""
    word = _path(unit, text)
    if not _SPECIAL.search(word):
        return word
    return '"{}"'.format(word.replace("\\", "\\\\").replace('"', '\\"'))


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
