"""relay is replaced by another process under load: no client is refused or reset, and open connections go on.

For a long proof, ``RELAY_UPGRADES=100`` upgrades that often.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_rig import run
from group_rig import letter, repeats
from helpers import PROMPT, WAIT, makes, receive_all, receive_exactly, send_and_end, wait_until
from sshd import make_key
from upgrade_rig import Clients, Upgraded, ends
from warm_relay import RELAY

import relay
from relay.access.store import Store
from relay.addresses.destinations import PrivateKey
from relay.daemon.change.upgrade_channel import PeerEndedError, UpgradeChannel, UpgradeError
from relay.testing import SAMBridge
from relay.transports.i2p.key_file import write

UPGRADES = int(os.environ.get("RELAY_UPGRADES", "3"))


@pytest.fixture
def up(tmp_path):
    """Starts the tunnels of a text."""
    yield from makes(lambda text, **options: Upgraded(tmp_path, text, **options))


def reply(address):
    """Return what a client gets back from an echo server; nothing if it is rejected."""
    try:
        with socket.create_connection(address, WAIT) as client:
            send_and_end(client, b"x")
            return receive_all(client)
    except OSError:  # a reset may come before the shutdown
        return b""


def tunnel(name, listen, target, *more):
    return "\n".join([f"[tunnels.{name}]", f'listen = "{listen}"', 'target = "{}:{}"'.format(*target), *more, ""])


def test_upgrades_under_load_refuse_and_reset_nobody(up, serve, tmp_path, record_property):
    """Clients of a TCP socket connect all the time; one of each generation stays, also at a Unix socket."""
    path = tmp_path / "u.sock"
    target = serve(letter(b"a")).address
    running = up(
        "[defaults]\ndrain = 600\n" + tunnel("load", "127.0.0.1:0", target) + tunnel("unix", f"unix://{path}", target)
    )
    port = running.port("load")
    clients = Clients(port) if UPGRADES > 3 else Clients(port, programs=1, pause=0.002)
    began, open_ones = time.monotonic(), []
    try:
        for _ in range(UPGRADES):
            before = running.pids[-1]
            pair = [socket.create_connection(("127.0.0.1", port), WAIT), socket.socket(socket.AF_UNIX)]
            pair[1].connect(str(path))
            for client in pair:
                assert receive_exactly(client, 1) == b"a"
            open_ones.append((before, pair))
            running.upgrade()
            assert running.port("load") == port
            assert all(repeats(client) for _, found in open_ones for client in found)
            if len(open_ones) > 2:
                pid, oldest = open_ones.pop(0)
                with ends(pid):  # with the last of its connections
                    for client in oldest:
                        client.close()
    finally:
        served, failures, longest = clients.end()
        for _, pair in open_ones:
            for client in pair:
                client.close()
    seconds = time.monotonic() - began
    each = sum(running.times) / len(running.times)
    load = f"{served} clients, {served / seconds:.0f}/s, the longest {longest:.3f} s"
    record_property("measured", f"{UPGRADES} upgrades, {each:.2f} s each: {load}")
    assert failures == []
    assert served > UPGRADES
    assert path.is_socket()
    assert "Traceback" not in running.said()


def test_an_upgrade_of_plain_tunnels_imports_nothing_of_i2p(up, serve):
    running = up(tunnel("one", "127.0.0.1:0", serve(letter(b"a")).address), PYTHONPROFILEIMPORTTIME="1")
    running.upgrade()
    imported = set(re.findall(r"\b(relay\.transports\.\w+)", running.said()))
    assert "relay.transports.tcp" in imported
    assert "relay.transports.i2p" not in imported


def test_a_file_that_changes_is_upgraded_to(up, serve, tmp_path, reserved):
    """A tunnel that has gone is closed, a new one is opened, and relay up --upgrade does the same as relay ctl."""
    target = serve(letter(b"a")).address
    path = tmp_path / "u.sock"
    running = up(tunnel("kept", "127.0.0.1:0", target) + tunnel("gone", f"unix://{path}", target))
    port = running.port("kept")
    with socket.create_connection(("127.0.0.1", port), WAIT) as client:
        assert receive_exactly(client, 1) == b"a"
        running.write(
            tunnel("kept", "127.0.0.1:0", target, "workers = 2") + tunnel("new", f"127.0.0.1:{reserved}", target)
        )
        second = running.begin("--upgrade")
        try:
            wait_until(lambda: "taken over from process" in running.said())
            assert running.facts()["pid"] == second.pid
            assert running.port("kept") == port
            assert not path.exists()
            for number in (port, reserved):
                with socket.create_connection(("127.0.0.1", number), WAIT) as other:
                    assert receive_exactly(other, 1) == b"a"
            assert repeats(client)
            state = tmp_path / "state"
            running.write(f'workers = 3\nstate = "{state}"\n{running.file.read_text()}')
            remedy = "a reload does not change it; relay ctl upgrade does"
            assert running.ctl("reload").stdout == f"key state: {remedy}\nkey workers: {remedy}\n"
            running.upgrade()  # from workers to workers
            assert "3 workers run" in running.said()
            assert state.exists()
            with socket.create_connection(("127.0.0.1", port), WAIT) as other:
                assert receive_exactly(other, 1) == b"a"
            assert second.wait(WAIT) == 0
        finally:
            second.kill()
            second.wait(WAIT)
    assert running.first.wait(WAIT) == 0


def is_echoed_at(path):
    """Return whether the server of the letter answers at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        return receive_exactly(client, 1) == b"a"


def test_a_unix_socket_that_nobody_can_reach_is_opened_anew(up, serve, tmp_path):
    """Its file was removed, or replaced; one that another program has replaced is left to that."""
    target = serve(letter(b"a")).address
    paths = [tmp_path / f"{name}.sock" for name in ("kept", "removed", "replaced")]
    status = [tmp_path / "s1.sock", tmp_path / "s2.sock"]
    tunnels = "".join(tunnel(path.stem, f"unix://{path}", target) for path in paths)
    running = up(f'status = "unix://{status[0]}"\n{tunnels}')
    before = paths[0].stat().st_ino
    paths[1].unlink()
    paths[2].unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(paths[2]))
        other.listen()
        done = running.ctl("upgrade")
        assert done.returncode == 1
        assert f"replaced: unix://{paths[2]}: another program listens there" in done.stderr
    running.write(f'status = "unix://{status[1]}"\n{tunnels}')
    with ends(running.first.pid):
        running.upgrade()
        assert all(is_echoed_at(path) for path in paths)
        assert status[1].is_socket()
    assert not status[0].exists()  # no process listens there any more
    assert paths[0].stat().st_ino == before
    paths[0].unlink()  # this one was adopted
    status[1].unlink()
    running.upgrade()
    assert all(is_echoed_at(path) for path in paths)
    assert status[1].is_socket()
    with ends(running.pids[-1]):
        assert running.ctl("stop").returncode == 0
    assert not any(path.exists() for path in (*paths, *status))


def test_an_upgrade_that_fails_changes_nothing(up, serve, tmp_path):
    """The command says why, a line for each problem, and all clients are served as before."""
    target = serve(letter(b"a")).address
    program = tmp_path / "relay"
    works = f"#!{sys.executable}\nimport sys\nfrom relay.cli import main\nsys.exit(main())\n"
    program.write_text(works)
    program.chmod(0o755)
    text = tunnel("one", "127.0.0.1:0", target)
    running = up(text, program=program)
    port = running.port("one")
    taken, also_taken = ("{}:{}".format(*serve(letter(which)).address) for which in (b"b", b"c"))
    in_use = "Address already in use; another program listens there, and port 0 picks a free one"
    wider = text.replace("127.0.0.1:0", f"0.0.0.0:{port}")
    cases = [
        (text + "target = 1\n", works, "relay.toml:4: this is not TOML"),
        (text + tunnel("two", taken, ("127.0.0.1", 1)), works, f"two: {taken}: Address already in use"),
        (
            text + tunnel("two", taken, ("127.0.0.1", 1)) + tunnel("three", also_taken, target),
            works,
            f"two: {taken}: {in_use}\nrelay: three: {also_taken}: {in_use}",
        ),
        (
            text + "nconnect = 0\nwarm = -1\n",
            works,
            (
                "relay.toml:4: tunnels.one.nconnect: must be at least 1, got 0; use -1 for no limit\nrelay: "
                f"{running.file}:5: tunnels.one.warm: must be from 0 to 1024, got -1; use 0 for none"
            ),
        ),
        (
            wider,
            works,
            f"one: 0.0.0.0:{port}: the relay that runs listens at 127.0.0.1:{port}, which an upgrade does not",
        ),
        (text, "#!/bin/sh\nexit 7\n", "the new process ended with status 7 before it was ready"),
        (text, f"#!{sys.executable}\nimport os\nos.kill(os.getpid(), 9)\n", "the new process ended with status -9"),
    ]
    with socket.create_connection(("127.0.0.1", port), WAIT) as client:
        assert receive_exactly(client, 1) == b"a"
        for broken, code, why in cases:
            running.write(broken)
            program.write_text(code)
            done = running.ctl("upgrade")
            assert done.returncode == 1
            assert why in done.stderr and done.stderr.count("\n") == why.count("\n") + 1
            with socket.create_connection(("127.0.0.1", port), WAIT) as other:
                assert receive_exactly(other, 1) == b"a"
        logged = running.said()
        assert f"upgrade: two: {taken}: {in_use}\n" in logged
        assert f"upgrade: three: {also_taken}: {in_use}; nothing has changed\n" in logged
        program.unlink()
        why = f"cannot start {program}: No such file or directory"
        assert why in running.ctl("upgrade").stderr and f"upgrade: {why}; nothing has changed" in running.said()
        program.write_text(works)
        program.chmod(0o755)
        running.write(text)
        assert running.facts()["pid"] == running.first.pid
        running.upgrade()
        assert repeats(client)


def test_an_upgrade_ends_no_tunnel_whose_hop_works(up, serve, make_ssh_server):
    """The new process would be rejected; the old one has its connection. What fails in both stops no upgrade."""
    server = make_ssh_server()
    text = tunnel("one", "127.0.0.1:0", serve(letter(b"a")).address, f'via = ["{server.url}"]', "required = true")
    running = up(text)
    address = ("127.0.0.1", running.port("one"))

    def is_served():
        with contextlib.suppress(OSError), socket.create_connection(address, WAIT) as client:
            return client.recv(1) == b"a"

    def hops():
        return json.loads(running.ctl("list", "--json").stdout)["tunnels"][0]["hops"]

    assert is_served()
    key = Path(server.keyfile)
    right = key.read_bytes()
    make_key(key)
    done = running.ctl("upgrade")
    assert done.returncode == 1
    assert "one: ssh://" in done.stderr and "rejected" in done.stderr and done.stderr.count("\n") == 1
    assert running.facts()["pid"] == running.first.pid
    assert is_served()

    server.drop()
    wait_until(lambda: hops() == "failed")
    running.upgrade()
    assert hops() == "failed"
    key.write_bytes(right)
    running.upgrade()
    assert is_served()
    server.stop()
    running.upgrade()  # it can be reached again some day
    server.start()
    wait_until(is_served)


@pytest.mark.parametrize("number", [0, 1])
def test_one_of_several_ways_is_enough_for_an_upgrade(up, serve, make_ssh_server, number):
    """As it is for a start: the log has why another one is rejected, and clients get the one that works."""
    servers = [make_ssh_server(), make_ssh_server()]
    ways = ", ".join(f'["{server.url}"]' for server in servers)
    running = up(tunnel("one", "127.0.0.1:0", serve(letter(b"a")).address, f"via = [{ways}]", "required = true"))
    address = ("127.0.0.1", running.port("one"))
    make_key(Path(servers[number].keyfile))
    running.upgrade()
    with socket.create_connection(address, WAIT) as client:
        assert client.recv(1) == b"a"

    def rejected():
        key = str(servers[number].keyfile)
        return [line for line in running.said().splitlines() if " ERROR " in line and key in line]

    wait_until(rejected)
    assert len(rejected()) == 1


@contextlib.contextmanager
def successor(running, down=None):
    """A process that connects as a successor does, and what it is offered. ``down`` gets the tunnels without hops."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(running.control)
        channel = UpgradeChannel(connection, takes_sockets=True)
        channel.send({"upgrade": 1, "version": "9", "pid": 1})
        offers = []
        try:
            assert channel.receive("upgrade", WAIT)["pid"] == running.first.pid
            while (found := channel.receive_any(("socket", "down", "offered"), WAIT))[0] != "offered":
                if found[0] == "socket":
                    offers.append(channel.take_socket())
                else:
                    down.append(found[1])
            yield channel, offers
        finally:
            for one in offers:
                one.close()
            channel.close()


def is_rejected(connection):
    """Return whether the relay ends a hand-over, after what it offers."""
    with contextlib.closing(UpgradeChannel(connection, takes_sockets=True)) as channel, pytest.raises(UpgradeError):
        while channel.receive_any(("upgrade", "socket", "offered"), WAIT):
            pass
    return True


def test_a_successor_that_dies_or_lies_changes_nothing(up, echo_server):
    """Whatever it sends, and wherever it ends: the relay that runs goes on, and can be upgraded then."""
    limit = 'limit = [{name = "few", rate = "1/1h", ban = "10m"}]'
    running = up('state = "relay.state"\n' + tunnel("one", "127.0.0.1:0", echo_server.address, limit))
    address = ("127.0.0.1", running.port("one"))
    assert reply(address) == b"x"
    assert running.listed("bans") == []
    hostile = [
        b"{\n",
        b"{" + b"x" * (1 << 19),
        b'{"upgrade": 2}\n',
        b'{"upgrade": null}\n',
        b'{"upgrade": 1}\n{"ready": true}\n',
        b'{"upgrade": 1}\n{"prepared": [99]}\n',
        b'{"upgrade": 1}\n{"prepared": [true]}\n',
        b'{"upgrade": 1}\n{"prepared": {}}\n',
    ]
    for data in hostile:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(running.control)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            assert is_rejected(connection)
    with socket.socket(socket.AF_UNIX) as connection:  # it sends a socket, which only the other one may
        connection.connect(running.control)
        connection.sendall(b'{"upgrade": 1}\n')
        socket.send_fds(connection, [b"\n"], [connection.fileno()])
        assert is_rejected(connection)
    with successor(running) as (channel, offers):
        assert len(offers) == 2
        assert "another upgrade is under way; wait for its end" in running.ctl("upgrade").stderr
        for words in (("reload",), ("pause", "one"), ("resume", "one"), ("drain", "one"), ("disable", "one", "x")):
            assert "an upgrade is under way; try again after it" in running.ctl(*words).stderr
        channel.send({"prepared": [0, 1]})
        while channel.receive_any(("ledger", "go"), WAIT)[0] != "go":
            pass
        assert reply(address) == b""  # it is banned while no process has the file
    wait_until(lambda: running.ctl("reload").returncode == 0)
    assert [one["key"] for one in running.listed("bans")] == ["127.0.0.1"]
    running.upgrade()
    assert [one["key"] for one in running.listed("bans")] == ["127.0.0.1"]
    assert running.facts()["pid"] != running.first.pid


def test_a_successor_that_gives_up_while_the_old_process_is_held_up_gets_no_clients(up, serve):
    """Its last words come after "ready", which the old process reads late."""
    running = up(tunnel("one", "127.0.0.1:0", serve(letter(b"a")).address))
    port = running.port("one")
    for words in [[], [{"failed": "it took too long"}], [{"alone": True}]]:
        with successor(running) as (channel, _):
            channel.send({"prepared": [0, 1]})
            assert channel.receive("go", WAIT)
            running.first.send_signal(signal.SIGSTOP)
            os.waitpid(running.first.pid, os.WUNTRACED)
            for message in [{"ready": True}, *words]:
                channel.send(message)
        running.first.send_signal(signal.SIGCONT)
        if "alone" in str(words):  # that one has waited long enough, and goes on
            assert running.first.wait(WAIT) == 0
            break
        wait_until(lambda: running.ctl("reload").returncode == 0)
        with socket.create_connection(("127.0.0.1", port), WAIT) as client:
            assert receive_exactly(client, 1) == b"a"
    assert "upgrade: it took too long; nothing has changed" in running.said()


def test_an_old_process_that_is_stopped_by_a_signal_ends_the_upgrade_as_well(up, serve):
    """The new one is not left with the addresses of an old one that closes them."""
    text = "[defaults]\ndrain = 600\n" + tunnel("one", "127.0.0.1:0", serve(letter(b"a")).address)
    running = up(text)
    with (
        socket.create_connection(("127.0.0.1", running.port("one")), WAIT) as client,
        successor(running) as (channel, _),
    ):
        assert receive_exactly(client, 1) == b"a"
        channel.send({"prepared": [0, 1]})
        assert channel.receive("go", WAIT)
        running.first.send_signal(signal.SIGTERM)
        with pytest.raises(UpgradeError, match="relay is ending: SIGTERM"):
            channel.receive("nothing", WAIT)
        with pytest.raises(PeerEndedError):
            channel.receive("nothing", WAIT)
        with pytest.raises(UpgradeError):
            channel.send({"ready": True})
        assert repeats(client)
    assert running.first.wait(WAIT) == 0


def test_an_old_process_that_ends_after_the_new_one_has_gone_on_alone_leaves_it_the_files(up, serve, tmp_path):
    """It was stopped; a signal came before it went on."""
    path = tmp_path / "u.sock"
    running = up(tunnel("one", f"unix://{path}", serve(letter(b"a")).address))
    with successor(running) as (channel, _):
        channel.send({"prepared": [0, 1]})
        assert channel.receive("go", WAIT)
        running.first.send_signal(signal.SIGSTOP)
        os.waitpid(running.first.pid, os.WUNTRACED)
        channel.send({"ready": True})
        channel.send({"alone": True})
    running.first.send_signal(signal.SIGTERM)
    running.first.send_signal(signal.SIGCONT)
    assert running.first.wait(WAIT) == 0
    assert path.is_socket() and os.path.exists(running.control)


@contextlib.contextmanager
def new_process(folder, text, *offered, pid=None, down=()):
    """A real new process, and the channel of an old one that has offered it its control and other Unix sockets."""
    file, control = folder / "relay.toml", str(folder / "c.sock")
    file.write_text(text)
    file.chmod(0o600)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(control)
        listening.listen()
        listening.settimeout(WAIT)
        new = subprocess.Popen([RELAY, "up", str(file), "--upgrade", "--control", control], stdout=subprocess.PIPE)
        try:
            connection = listening.accept()[0]
            with contextlib.closing(UpgradeChannel(connection)) as channel:
                channel.receive("upgrade", WAIT)
                channel.send({"upgrade": 1, "pid": pid or os.getpid()})
                for one in (listening, *offered):
                    found = os.stat(one.getsockname())
                    facts = {"operators": one is listening, "file": [found.st_dev, found.st_ino]}
                    channel.send({"socket": facts}, one)
                for name in down:
                    channel.send({"down": name})
                channel.send({"offered": True})
                assert channel.receive("prepared", WAIT) == [*range(1 + len(offered))]
                yield new, channel, connection
        finally:
            new.kill()
            new.communicate(timeout=WAIT)


def test_a_new_process_that_is_stopped_leaves_the_clients_to_the_old_one_at_once(serve, tmp_path):
    """Not only when its own connections have finished, and with the state file."""
    port, state = tmp_path / "u.sock", tmp_path / "relay.state"
    text = f'state = "{state}"\n[defaults]\ndrain = 600\n'
    text += tunnel("one", f"unix://{port}", serve(letter(b"a")).address)
    with new_process(tmp_path, text) as (new, channel, _), socket.socket(socket.AF_UNIX) as client:
        channel.send({"go": True})
        assert channel.receive("ready", WAIT)
        client.connect(str(port))
        assert receive_exactly(client, 1) == b"a"  # also if the old one says nothing more, because it was stopped
        new.send_signal(signal.SIGTERM)
        with pytest.raises(UpgradeError, match="the new process is ending: SIGTERM"):
            channel.receive("nothing", WAIT)
        Store(str(state)).close()
        assert repeats(client)


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_new_process_that_ends_after_it_was_ready_leaves_files_to_the_old_one_and_its_clients_finish(
    serve, tmp_path, is_stopped
):
    """It gets a signal, or the old one says that it is ending."""
    path = tmp_path / "u.sock"
    text = "[defaults]\ndrain = 600\n" + tunnel("one", f"unix://{path}", serve(letter(b"a")).address)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(path))
        listening.listen()
        with new_process(tmp_path, text, listening) as (new, channel, _):
            channel.send({"go": True})
            assert channel.receive("ready", WAIT)
            client.connect(str(path))
            assert receive_exactly(client, 1) == b"a"
            if is_stopped:
                new.send_signal(signal.SIGTERM)
            else:
                channel.send({"failed": "relay is ending: SIGTERM"})
            with pytest.raises(UpgradeError):
                channel.receive("nothing", WAIT)
            assert repeats(client)
            client.close()
            assert new.wait(WAIT) == (0 if is_stopped else 1)
        assert path.is_socket()


def test_a_new_process_that_ends_before_it_is_ready_says_so_at_once(serve, tmp_path):
    text = tunnel("one", f"unix://{tmp_path}/u.sock", serve(letter(b"a")).address)
    with new_process(tmp_path, text) as (new, channel, _):
        new.send_signal(signal.SIGHUP)
        new.send_signal(signal.SIGTERM)
        with pytest.raises(UpgradeError, match="the new process was ended by SIGTERM before it was ready"):
            channel.receive("nothing", WAIT)
        assert new.wait(WAIT) == 1


def test_the_new_process_lets_no_client_in_before_it_has_taken_over(serve, tmp_path):
    """The old one waits no more, but is still alive. No client is lost, nor does the new one have the state file."""
    port, state = tmp_path / "u.sock", tmp_path / "relay.state"
    text = f'state = "{state}"\n' + tunnel("one", f"unix://{port}", serve(letter(b"a")).address)
    with new_process(tmp_path, text) as (new, channel, connection), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(port))
        connection.shutdown(socket.SHUT_RD)
        channel.send({"go": True})
        assert b"one: listening on" in new.stdout.readline()
        Store(str(state)).close()
        channel.send({"failed": "it took too long"})
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert new.wait(WAIT) == 1
        assert not port.exists()


def test_the_new_process_does_not_wait_for_a_hop_that_was_not_up(up, serve, tmp_path):
    """Nothing that has worked can be lost with it; clients may wait for the tunnels that have moved."""
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        hop = f'via = ["ssh://me@127.0.0.1:{hangs.getsockname()[1]}"]'
        text = tunnel("one", "127.0.0.1:0", serve(letter(b"a")).address, hop, "connect_timeout = 600")
        running = up(text)
        down = []
        with successor(running, down):
            assert down == ["one"]
        folder = tmp_path / "new"
        folder.mkdir()
        with new_process(folder, text, down=down) as (_, channel, _):
            channel.send({"go": True})
            assert channel.receive("ready", PROMPT)  # it would wait for 30 s


@pytest.mark.parametrize(
    ("has_said_go", "is_killed", "goes_on"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_the_new_process_goes_on_if_the_old_one_has_died(serve, tmp_path, has_said_go, is_killed, goes_on):
    """It has everything open, and the clients are left to it. One that lives and has said nothing may go on itself."""
    port = tmp_path / "u.sock"
    text = tunnel("one", f"unix://{port}", serve(letter(b"a")).address)
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as old,
        new_process(tmp_path, text, pid=old.pid) as (new, channel, _),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(port))
        if has_said_go:
            channel.send({"go": True})
        elif is_killed:
            old.kill()
        channel.close()
        if goes_on:
            assert receive_exactly(client, 1) == b"a"
            assert new.poll() is None
        else:
            assert new.wait(WAIT) == 1


@pytest.mark.parametrize("state", ['state = "relay.state"', ""], ids=["file", "memory"])
def test_bans_and_quotas_are_handed_over(up, echo_server, state):
    limit = 'limit = [{name = "few", rate = "1/1h", ban = "10m"}, {name = "much", per = "tunnel", quota = "1MB/month"}]'
    running = up(f"{state}\n" + tunnel("one", "127.0.0.1:0", echo_server.address, limit))
    address = ("127.0.0.1", running.port("one"))
    assert [reply(address), reply(address)] == [b"x", b""]
    kinds = {"bans": "until", "quotas": "used"}
    before = {kind: [round(one[key]) for one in running.listed(kind)] for kind, key in kinds.items()}
    assert before["bans"] and before["quotas"] == [2]
    for _ in range(2):
        running.upgrade()
        assert {kind: [round(one[key]) for one in running.listed(kind)] for kind, key in kinds.items()} == before
    assert "state file" not in running.said()


@pytest.mark.parametrize("workers", ["", "workers = 2"], ids=["one", "workers"])
def test_a_paused_tunnel_stays_paused_and_a_stopped_relay_ends(up, serve, workers):
    """Not even those clients get in that have waited all the time. A target that is disabled stays so as well."""
    target = serve(letter(b"a")).address
    places = '["127.0.0.1:1", "{}:{}"]'.format(*target)
    several = f'[tunnels.several]\nlisten = "127.0.0.1:0"\ntarget = {places}\n'
    running = up(tunnel("one", "127.0.0.1:0", target, workers) + several)
    port = running.port("one")
    assert running.ctl("pause", "one").returncode == 0
    assert running.ctl("disable", "several", "127.0.0.1:1").returncode == 0
    with socket.create_connection(("127.0.0.1", port), WAIT) as client:
        last = running.upgrade()
        assert "paused" in running.ctl("list").stdout
        assert "several: target 127.0.0.1:1, disabled for" in running.ctl("list").stdout
        assert json.loads(running.ctl("list", "--json").stdout)["tunnels"][0]["figures"]["accepted"] == 0
        assert running.ctl("resume", "one").returncode == 0
        assert receive_exactly(client, 1) == b"a"
    with ends(last):
        assert running.ctl("stop").returncode == 0
    assert not os.path.exists(running.control)


def test_without_a_relay_that_runs_there_is_nothing_to_upgrade(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text('[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "127.0.0.1:9"\n')
    file.chmod(0o600)
    for control, why in [(str(tmp_path / "c.sock"), "no relay listens there"), ("none", "there is no control socket")]:
        done = run("up", str(file), "--upgrade", "--control", control)
        assert done.returncode == 2
        assert why in done.stderr


def test_a_paused_listener_at_a_server_stays_paused_also_if_it_opens_late(up, serve, make_ssh_server, reserved):
    server = make_ssh_server()
    running = up(tunnel("one", f"{server.url}&listen=127.0.0.1:{reserved}", serve(letter(b"a")).address))

    def state():
        return json.loads(running.ctl("list", "--json").stdout)["tunnels"][0]["state"]

    assert running.ctl("pause", "one").returncode == 0
    server.stop()
    running.upgrade()
    assert state() == "waiting"
    server.start()
    wait_until(lambda: state() != "waiting")
    assert state() == "paused"
    assert running.ctl("resume", "one").returncode == 0
    with socket.create_connection(("127.0.0.1", reserved), WAIT) as client:
        assert receive_exactly(client, 1) == b"a"


@pytest.mark.parametrize("kind", ["ssh", "i2p"])
def test_a_listener_at_a_server_moves_with_a_short_gap(up, serve, tmp_path, kind, request, record_property):
    """The old process closes it last of all; an upgrade that fails after that opens it again.

    A session to a target whose keys only one process can have moves as well, and its clients wait.
    """
    with contextlib.ExitStack() as stack:
        out = ""
        if kind == "ssh":
            port = request.getfixturevalue("reserved")
            listen = f"{request.getfixturevalue('ssh_server').url}&listen=127.0.0.1:{port}"
            dial = stack.enter_context(relay.target(f"127.0.0.1:{port}"))
        else:
            router = stack.enter_context(SAMBridge())
            listen = f"i2p:?sam={router.sam}&keys={tmp_path}/key.dat"
            key = PrivateKey.generate()
            write(tmp_path / "key.dat", key)
            dial = stack.enter_context(relay.target(f"i2p://{key.b32}?sam={router.sam}"))
            target = f"i2p://{key.b32}?sam={router.sam}&keys={tmp_path}/out.dat"
            out = f'[tunnels.out]\nlisten = "127.0.0.1:0"\ntarget = "{target}"\nrequired = true\n'
        running = up(tunnel("one", listen, serve(letter(b"a")).address) + out)

        def is_served():
            with contextlib.suppress(OSError), contextlib.closing(dial(deadline=time.monotonic() + 5)) as made:
                made.socket.settimeout(5)  # a stream to a session that has just ended brings nothing
                return made.socket.recv(1) == b"a"

        assert is_served()
        if kind == "ssh":
            with successor(running) as (channel, _):
                channel.send({"prepared": []})
                while channel.receive_any(("ledger", "go"), WAIT)[0] != "go":
                    pass
                taken = []

                def is_taken():  # the server may close its listener a little later
                    with contextlib.suppress(OSError):
                        taken.append(socket.create_server(("127.0.0.1", port)))
                    return bool(taken)

                wait_until(is_taken)
            with taken[0]:  # a successor that ends closes it a little later
                wait_until(lambda: "one: cannot listen again" in running.said())
            wait_until(is_served)  # by the old one again
            assert running.facts()["pid"] == running.first.pid
        address = ("127.0.0.1", running.port("out")) if out else None
        if out:
            with socket.create_connection(address, WAIT) as client:
                assert receive_exactly(client, 1) == b"a"
        begin = time.monotonic()
        running.upgrade()
        wait_until(is_served)
        seconds = time.monotonic() - begin
        record_property("measured", f"upgrade of a listener at {kind.upper()}: served again after {seconds:.2f} s")
        assert running.first.wait(WAIT) == 0
        assert is_served()
        if out:
            with socket.create_connection(address, WAIT) as client:
                assert receive_exactly(client, 1) == b"a"
        assert "one: closing its listener, so that the next process can open it" in running.said()
