"""relay as systemd sees it, by the protocols alone: a notify socket and passed sockets of the test."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys

import pytest
from command_rig import run
from group_rig import letter
from helpers import WAIT, closed, receive_exactly
from warm_relay import RELAY

# Passes descriptors from 3 on, as systemd does: the process that reads LISTEN_PID is the one that has the number.
STARTER = """
import os, sys
count, *argv = sys.argv[1:]
if int(count):
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}
os.execv(argv[0], argv)
"""


class Manager:
    """A service manager: takes notifications, keeps sockets and starts relay with them."""

    def __init__(self, path):
        self.address = str(path)
        self.kept = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._processes = []

    def start(self, *words, sockets=None, **environment):
        """Start a command with sockets by their names."""
        passed = [(name, one) for name, of_name in (sockets or {}).items() for one in of_name]
        names = {"LISTEN_FDNAMES": ":".join(name for name, _ in passed)} if passed else {}
        given = {"NOTIFY_SOCKET": self.address, "FDSTORE": "8", **names, **environment}
        # The numbers from 3 on are free in the child only after the exec; dup2 there keeps them in order.
        program = [sys.executable, "-c", STARTER, str(len(passed)), RELAY, *words]
        numbers = [one.fileno() for _, one in passed]

        def put_in_order():
            high = [os.dup2(number, 200 + place) for place, number in enumerate(numbers)]
            for place, number in enumerate(high):
                os.dup2(number, 3 + place)

        process = subprocess.Popen(
            program,
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=range(3, 3 + len(passed)),
            preexec_fn=put_in_order,
        )
        self._processes.append(process)
        return process

    def hear(self):
        """The next notification, with which sockets were kept or closed."""
        ready, _, _ = select.select([self._socket], [], [], WAIT)
        assert ready, "no notification came"
        data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
        found = dict(line.split("=", 1) for line in data.decode().splitlines())
        if "FDSTORE" in found:
            self.kept.setdefault(found["FDNAME"], []).extend(socket.socket(fileno=each) for each in descriptors)
        else:
            for each in descriptors:
                os.close(each)  # of a barrier
        if "FDSTOREREMOVE" in found:
            for one in self.kept.pop(found["FDNAME"], ()):
                one.close()
        return found

    def wait_for(self, key):
        """The notification with a key, and those before it."""
        heard = [self.hear()]
        while key not in heard[-1]:
            heard.append(self.hear())
        return heard

    def close(self):
        for process in self._processes:
            process.kill()
            process.communicate()
        self._socket.close()
        for sockets in self.kept.values():
            for one in sockets:
                one.close()


@pytest.fixture
def manager(tmp_path):
    yield from closed(Manager(tmp_path / "notify"))


@pytest.fixture
def target(serve):
    return "{}:{}".format(*serve(letter(b"a")).address)


def tunnel(name, listen, target, *more):
    return "\n".join([f"[tunnels.{name}]", f'listen = "{listen}"', f'target = "{target}"', *more, ""])


def first_byte(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(WAIT)
        client.connect(address)
        return receive_exactly(client, 1)


def test_a_client_between_two_relays_is_served_by_the_second(manager, target, reserved, tmp_path):
    path = tmp_path / "relay.toml"
    stays, leaves = tunnel("stays", f"127.0.0.1:{reserved}", target), tunnel("leaves", ":0", target)
    path.write_text(stays + leaves)
    first = manager.start("up", str(path))
    assert manager.wait_for("READY")[-1]["STATUS"] == "2 of 2 tunnels listen"
    while len(manager.kept) < 2:
        manager.hear()
    assert first_byte(("127.0.0.1", reserved)) == b"a"

    # Notifications of a reload; the socket of a tunnel that is gone is removed.
    path.write_text(stays)
    first.send_signal(signal.SIGHUP)
    assert int(manager.wait_for("RELOADING")[-1]["MONOTONIC_USEC"]) > 0
    manager.wait_for("READY")
    while manager.kept.keys() != {"relay-listen-stays"}:
        manager.hear()
    first.terminate()
    assert manager.wait_for("STOPPING")[-1]["STATUS"].startswith("closing")  # the first client may be live yet
    assert 0 < int(manager.wait_for("EXTEND_TIMEOUT_USEC")[-1]["EXTEND_TIMEOUT_USEC"]) <= 30_000_000
    assert first.wait(WAIT) == 0

    with socket.create_connection(("127.0.0.1", reserved), WAIT) as waiting:
        second = manager.start("up", str(path), sockets=manager.kept)
        assert receive_exactly(waiting, 1) == b"a"
    manager.wait_for("READY")
    assert manager.kept.keys() == {"relay-listen-stays"}

    # The address moves: the old socket goes, and its port with it.
    path.write_text(tunnel("stays", ":0", target))
    second.send_signal(signal.SIGHUP)
    heard = manager.wait_for("FDSTORE")
    assert "FDSTOREREMOVE" in {key for each in heard for key in each}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", reserved), WAIT)


def test_an_upgrade_makes_the_new_process_the_main_one(manager, target, tmp_path):
    """It has the sockets of socket units, and systemd keeps its own, once; only a child of the service can do that."""
    path, control = tmp_path / "relay.toml", str(tmp_path / "c.sock")
    path.write_text(f'control = "{control}"\n' + tunnel("own", ":0", target) + tunnel("unit", "systemd:web", target))
    with socket.create_server(("127.0.0.1", 0)) as web:
        first = manager.start("up", str(path), sockets={"web": [web]}, WATCHDOG_USEC="60000000")
        manager.wait_for("FDSTORE")
        stranger = run("up", str(path), "--upgrade")
        assert stranger.returncode == 1
        assert "systemd runs it; use relay ctl upgrade" in stranger.stderr
        ctl = subprocess.Popen([RELAY, "ctl", "upgrade", "--control", control], stdout=subprocess.PIPE)
        heard = manager.wait_for("MAINPID")
        main = os.pidfd_open(int(heard[-1]["MAINPID"]))
        try:
            assert manager.kept == {}
            heard += manager.wait_for("READY")
            assert heard[-1]["STATUS"] == "2 of 2 tunnels listen"
            while manager.kept.keys() != {"relay-listen-own"}:
                heard.append(manager.hear())
            assert ctl.wait(WAIT) == first.wait(WAIT) == 0
            assert {"WATCHDOG": "1"} in heard + manager.wait_for("WATCHDOG")
            assert not any("STOPPING" in each for each in heard)
            ((kept,),) = manager.kept.values()
            assert first_byte(web.getsockname()) == first_byte(kept.getsockname()) == b"a"
            signal.pidfd_send_signal(main, signal.SIGTERM)
            manager.wait_for("STOPPING")
            assert select.select([main], [], [], WAIT)[0]
        finally:
            signal.pidfd_send_signal(main, signal.SIGKILL)
            os.close(main)
            ctl.communicate()


def test_ready_comes_when_the_required_tunnels_listen_and_never_before(manager, target, tmp_path):
    waiting = "ssh://nobody@127.0.0.1:1?listen=:0&hostkey=SHA256:" + "A" * 43
    path = tmp_path / "relay.toml"
    path.write_text(tunnel("a", ":0", target) + tunnel("b", waiting, target, "required = true"))
    relay = manager.start("up", str(path), WATCHDOG_USEC="100000")
    heard = []
    while heard[-2:] != [{"WATCHDOG": "1"}] * 2 or {"STATUS": "1 of 2 tunnels listen"} not in heard:
        heard.append(manager.hear())
    assert not any("READY" in each for each in heard)
    path.write_text(tunnel("a", ":0", target, "required = true"))
    relay.send_signal(signal.SIGHUP)
    assert manager.wait_for("READY")[-1]["STATUS"] == "1 of 1 tunnels listen"


def test_each_command_takes_a_socket_of_systemd(manager, target, tmp_path):
    path = tmp_path / "relay.toml"
    path.write_text(tunnel("t", "systemd:web", target) + tunnel("u", "systemd:file", target))
    with contextlib.ExitStack() as stack:
        web = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        file = stack.enter_context(socket.socket(socket.AF_UNIX))
        file.bind(str(tmp_path / "s"))
        file.listen()
        sockets = {"web": [web], "file": [file]}
        up = manager.start("up", str(path), sockets=sockets)
        assert manager.wait_for("READY")[-1]["STATUS"] == "2 of 2 tunnels listen"
        assert first_byte(web.getsockname()) == first_byte(str(tmp_path / "s")) == b"a"
        up.terminate()
        assert up.wait(WAIT) == 0 and manager.kept == {}  # the sockets are systemd's already
        assert (tmp_path / "s").exists()

        forward = manager.start("forward", "systemd:file", target, sockets=sockets)
        assert first_byte(str(tmp_path / "s")) == b"a"
        forward.terminate()
        assert forward.wait(WAIT) == 0

        manager.start("socks", "systemd:web", sockets=sockets)
        with socket.create_connection(web.getsockname(), WAIT) as client:
            client.sendall(b"\5\1\0")
            assert receive_exactly(client, 2) == b"\5\0"


def test_the_variables_are_checked_and_no_child_gets_them(manager, target, tmp_path):
    missing = manager.start("forward", "systemd:web", target)
    line = "relay: systemd:web: systemd has passed no socket of this name (none); set FileDescriptorName=web in the "
    assert missing.communicate(timeout=WAIT)[1] == line + "socket unit, and start the socket\n"
    assert missing.returncode == 2

    with socket.create_server(("127.0.0.1", 0)) as web:
        malformed = manager.start("forward", "systemd:web", target, sockets={"a": [web], "b:c": [web]})
        line = "relay: LISTEN_FDNAMES: it has 3 names for 2 descriptors; only systemd sets this variable, unset it "
        assert malformed.communicate(timeout=WAIT)[1] == line + "elsewhere\n"
        assert malformed.returncode == 2

        names = "NOTIFY_SOCKET|WATCHDOG_USEC|FDSTORE|LISTEN_"
        manager.start(
            "forward", "systemd:web", f"exec:sh -c 'env | grep -cE \"^({names})\"; cat'", sockets={"web": [web]}
        )
        with socket.create_connection(web.getsockname(), WAIT) as client:
            assert receive_exactly(client, 2) == b"0\n"


def test_check_needs_no_systemd(tmp_path, target):
    path = tmp_path / "relay.toml"
    path.write_text(tunnel("t", "systemd:web", target))
    done = subprocess.run([RELAY, "check", str(path)], capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout == f"t: listens on systemd:web → {target}\n"
