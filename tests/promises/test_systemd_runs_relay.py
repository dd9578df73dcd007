"""A real systemd runs the unit of ``relay service``, with its sandbox: from the installation to the end.

It is process 1 of namespaces of its own, so that it needs nothing of the machine's and changes nothing there.
"""

import os
import pwd
import re
import signal
import socket
import sys

import pytest
from group_rig import letter
from helpers import WAIT, wait_until
from real_systemd import FOLDER, PARTS, SYSTEMD, UNITS, Systemd, Unavailable

RELAY = f"{sys.prefix}/bin/relay"
FILE = f"{FOLDER}/relay.toml"


@pytest.fixture(scope="module")
def systemd():
    try:
        made = Systemd()
    except Unavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def targets(serve):
    """Two services: each sends its letter to a client."""
    return ["{}:{}".format(*serve(letter(each)).address) for each in (b"a", b"b")]


def tunnel(name, listen, target):
    return f'[tunnels.{name}]\nlisten = "{listen}"\ntarget = "{target}"\nrequired = true\n'


def answer(port):
    """The first byte that a client of a port gets; none if it is refused."""
    try:
        with socket.create_connection(("127.0.0.1", port), WAIT) as client:
            return client.recv(1)
    except ConnectionRefusedError:
        return b""


def states(systemd, pid):
    """The states of all threads of a process."""
    return {path.read_text().rpartition(")")[2].split()[0] for path in systemd.path(f"/proc/{pid}/task").glob("*/stat")}


def test_install_start_reload_watchdog_restart_stop(systemd, targets, reserved):
    """The life of a service; each step begins where the one before has ended."""
    path = systemd.path(FILE)
    text = tunnel("db", f"127.0.0.1:{reserved}", targets[0]) + tunnel("sum", ":0", "exec:wc -c")
    path.write_text(text)

    # The installation: all of the sandbox, and the two commands that relay prints.
    said = systemd.run(RELAY, "service", "install", "--system", "--config", FILE).splitlines()
    assert said[0] == f"wrote {UNITS}/relay.service; now run:"
    systemd.path(f"{UNITS}/relay.service.d").mkdir()
    for command in said[1:]:
        systemd.run(*command.split())

    # The start has ended, so relay was ready.
    assert systemd.show("relay", "StatusText") == "2 of 2 tunnels listen"
    assert systemd.show("relay", "SubState") == "running"
    assert answer(reserved) == b"a"
    ((port,),) = [re.findall(r"sum: listening on 127.0.0.1:(\d+)", systemd.log())]
    with socket.create_connection(("127.0.0.1", int(port)), WAIT) as client:
        client.sendall(b"12345")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).strip() == b"5"  # a program runs in the sandbox
    before = systemd.show("relay", "MainPID")
    status = systemd.path(f"/proc/{before}/status").read_text()
    assert int(re.search(r"Uid:\s(\d+)", status)[1]) > 1000 and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status

    # A reload ends when relay has reloaded, and so does one that fails.
    path.write_text(tunnel("db", f"127.0.0.1:{reserved}", targets[1]))
    systemd.run("systemctl", "reload", "relay")
    systemd.wait_for("relay", StatusText="1 of 1 tunnels listen", SubState="running")
    assert answer(reserved) == b"b"
    path.write_text("nonsense")
    systemd.run("systemctl", "reload", "relay")
    systemd.wait_for("relay", StatusText="1 of 1 tunnels listen; the last reload failed", SubState="running")
    assert systemd.show("relay", "MainPID") == before and answer(reserved) == b"b"
    path.write_text(tunnel("db", f"127.0.0.1:{reserved}", targets[0]))

    # The watchdog: a program that hangs is started again, and its listener stays open meanwhile.
    change = systemd.path(f"{UNITS}/relay.service.d/test.conf")
    change.write_text("[Service]\nWatchdogSec=3\nRestartSec=100ms\n")
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "restart", "relay")
    hung = systemd.show("relay", "MainPID")
    systemd.run("kill", f"-{signal.SIGSTOP.value}", hung)
    wait_until(lambda: states(systemd, hung) == {"T"})
    with socket.create_connection(("127.0.0.1", reserved), WAIT) as client:  # waits in the backlog
        assert client.recv(1) == b"a", systemd.log()
    assert int(systemd.show("relay", "NRestarts")) >= 1

    # A restart: clients wait for the next relay; the drain of the old one lasts until its connections end.
    change.unlink()
    systemd.run("systemctl", "daemon-reload")
    systemd.wait_for("relay", SubState="running")
    systemd.wait_for("relay", NFileDescriptorStore="1")
    with socket.create_connection(("127.0.0.1", reserved), WAIT) as old:
        assert old.recv(1) == b"a"
        before = systemd.show("relay", "MainPID")
        systemd.run("systemctl", "restart", "--no-block", "relay")
        systemd.wait_for("relay", SubState="stop-sigterm")
        with socket.create_connection(("127.0.0.1", reserved), WAIT) as waiting:
            old.close()
            assert waiting.recv(1) == b"a"
        # The old relay may have served that client, too: systemd has this state before relay has the signal.
        wait_until(lambda: systemd.show("relay", "MainPID") not in (before, "0"))

    # The end: the program of an open connection serves it during the drain.
    systemd.wait_for("relay", SubState="running")
    path.write_text(tunnel("db", f"127.0.0.1:{reserved}", targets[0]) + tunnel("echo", ":0", "exec:cat"))
    systemd.run("systemctl", "reload", "relay")
    systemd.wait_for("relay", StatusText="2 of 2 tunnels listen", SubState="running")
    ((port,),) = [re.findall(r"echo: listening on 127.0.0.1:(\d+)", systemd.log())]
    with socket.create_connection(("127.0.0.1", int(port)), WAIT) as client:
        client.sendall(b"1")
        assert client.recv(1) == b"1"  # the program runs
        systemd.run("systemctl", "stop", "--no-block", "relay")
        systemd.wait_for("relay", SubState="stop-sigterm")  # and all signals are sent
        client.sendall(b"2")
        assert client.recv(1) == b"2", systemd.log()
    systemd.wait_for("relay", SubState="dead")
    assert systemd.show("relay", "Result") == "success"
    wait_until(lambda: answer(reserved) == b"")
    assert not os.path.exists("/var/lib/private/relay")  # nothing of it is on the machine

    # The removal: nothing is left but the file, and without --purge the keys and the state.
    systemd.run("systemctl", "start", "relay")
    assert answer(reserved) == b"a"
    systemd.path("/var/lib/private/relay/key").write_text("")
    said = systemd.run(RELAY, "service", "uninstall", "--system").splitlines()
    assert said[:2] == ["stopped and disabled relay.service", f"removed {UNITS}/relay.service"]
    assert said[2] == "kept keys and state; to remove them: rm -r /var/lib/relay /var/lib/private/relay"
    assert answer(reserved) == b"" and systemd.show("relay", "LoadState") == "not-found"
    systemd.run(RELAY, "service", "install", "--system", "--config", FILE)
    systemd.run("systemctl", "daemon-reload")
    systemd.run(RELAY, "service", "uninstall", "--system", "--purge")
    assert not systemd.path("/var/lib/private/relay").exists() and systemd.path(FILE).exists()
    assert not [*systemd.path(UNITS).glob("*/relay.service")], "no link of the enabled unit"


def test_a_socket_unit_starts_it(systemd, targets, reserved):
    """The tunnel listens at a socket of systemd, which starts relay with the first client."""
    systemd.path(f"{FOLDER}/activated.toml").write_text(tunnel("db", "systemd:db", targets[0]))
    unit = f"[Service]\nType=notify\nDynamicUser=yes\nExecStart={RELAY} up {FOLDER}/activated.toml\n"
    unit += f"BindReadOnlyPaths={' '.join(PARTS)}\n"  # DynamicUser= hides what is in /tmp
    systemd.path(f"{UNITS}/activated.service").write_text(unit)
    listen = f"[Socket]\nListenStream=127.0.0.1:{reserved}\nFileDescriptorName=db\n"
    systemd.path(f"{UNITS}/activated.socket").write_text(listen)
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "start", "activated.socket")
    assert systemd.show("activated", "SubState") == "dead"
    assert answer(reserved) == b"a"
    systemd.wait_for("activated", SubState="running")
    systemd.run("systemctl", "stop", "activated.socket", "activated.service")


CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1).decode())"


def test_a_program_of_another_user_connects_to_a_socket_of_its_group(systemd, targets):
    """The unit lets relay give its socket the group, and lets the members of the group into the directory."""
    path, place = f"{FOLDER}/shared.toml", "/run/relay/shared.sock"
    systemd.path(path).write_text(tunnel("db", f"unix://{place}?mode=0660&group=daemon", targets[0]))
    systemd.run(RELAY, "service", "install", "--system", "--config", path, "--force")
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "start", "relay")
    nobody = ["setpriv", f"--reuid={pwd.getpwnam('nobody').pw_uid}", "--clear-groups"]
    client = [sys.executable, "-I", "-c", CONNECT, place]
    assert systemd.run(*nobody, "--regid=daemon", *client) == "a\n", systemd.log()
    assert systemd.run(*nobody, "--regid=nogroup", *client, check=False) == ""
    systemd.run("systemctl", "stop", "relay")


def test_the_service_manager_of_a_user_runs_it_too(systemd, targets, reserved):
    """The same sandbox in a user namespace, with the control socket where relay ctl looks for it."""
    user = pwd.getpwnam("daemon")
    home, runtime = f"{FOLDER}/home", f"/run/user/{user.pw_uid}"
    systemd.run("mkdir", "--parents", home, runtime, "/run/systemd/unit-root")
    systemd.path(f"{home}/relay.toml").write_text(tunnel("db", f"127.0.0.1:{reserved}", targets[0]))
    systemd.run("chown", "--recursive", user.pw_name, home, runtime)
    manager = ["[Service]", "Type=notify", f"User={user.pw_name}", "Delegate=yes", "KillMode=mixed"]
    manager += [f"Environment=HOME={home} XDG_RUNTIME_DIR={runtime}", f"ExecStart={SYSTEMD} --user --unit=basic.target"]
    systemd.path(f"{UNITS}/manager.service").write_text("\n".join([*manager, ""]))
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "start", "manager")

    def as_user(*argv):
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        return systemd.run(*become, "env", f"HOME={home}", f"XDG_RUNTIME_DIR={runtime}", *argv)

    said = as_user(RELAY, "service", "install", "--user", "--config", f"{home}/relay.toml").splitlines()
    assert said[0] == f"wrote {home}/.config/systemd/user/relay.service; now run:"
    for command in said[1:]:
        as_user(*command.split())
    assert answer(reserved) == b"a"
    as_user("systemctl", "--user", "reload", "relay")
    assert "db      listening" in as_user(RELAY, "ctl", "list")
    as_user("systemctl", "--user", "stop", "relay")
    assert answer(reserved) == b""
    systemd.run("systemctl", "stop", "manager")
