"""``drain_spread``: the connections that are left at the end of a drain do not all end in one moment.

The drain takes 1,000 s and is spread over all of it: the oldest connection ends at once, the others are left for
minutes.
"""

import re
import select
import signal
import socket

import pytest
from command_rig import commands, run
from helpers import WAIT, ending, exchange

SPREAD = ("drain = 1000", "drain_spread = 1000", 'on_reload = "drain"')


def toml(target, *more, workers=1):
    return "\n".join([f"workers = {workers}", "[tunnels.a]", 'listen = ":0"', f'target = "{target}"', *more, ""])


@pytest.fixture
def up(tmp_path, echo_server):
    """Runs a file with a tunnel, with four clients; the command, its control socket and the clients."""
    path, control = tmp_path / "relay.toml", str(tmp_path / "c.sock")
    clients = []

    def start(*more, workers=1):
        path.write_text(toml("{}:{}".format(*echo_server.address), *more, workers=workers))
        made = make(str(path), "--control", control, command="up")
        port = int(re.search(r"listening on 127\.0\.0\.1:(\d+) ", made.process.stdout.readline())[1])
        for _ in range(4):
            clients.append(socket.create_connection(("127.0.0.1", port), WAIT))
            assert echoes(clients[-1])
        return made, control, clients

    with commands() as make:
        yield start
    for client in clients:
        client.close()


def echoes(client):
    try:
        exchange(client, client)
    except (ConnectionResetError, BrokenPipeError):
        return False
    return True


def first_to_end(clients):
    """Return the first of the clients whose connection ends, which is a reset."""
    [ended, *_] = select.select(clients, [], [], WAIT)[0]
    assert ending(ended) == "reset"
    return clients.index(ended)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_oldest_connection_of_each_worker_ends_first(up, workers):
    made, _, clients = up(*SPREAD, workers=workers)
    made.process.send_signal(signal.SIGTERM)
    ended = first_to_end(clients)
    assert ended == 0 or workers > 1
    made.hear("closing")
    assert 4 - workers <= sum(map(echoes, clients)) <= 3
    made.process.send_signal(signal.SIGTERM)
    assert made.wait()[0] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_log_counts_all_that_a_drain_has_reset(up, workers):
    made, *_ = up("drain = 0.1", "drain_spread = 0.1", workers=workers)
    made.process.send_signal(signal.SIGTERM)
    assert made.hear("drain over").endswith("drain over: 4 connections reset; raise drain to give them longer\n")
    assert made.wait()[0] == 0


@pytest.mark.parametrize("way", ["ctl drain", "reload"])
def test_a_drain_of_one_tunnel_is_spread_too(up, way, tmp_path):
    made, control, clients = up(*SPREAD)
    if way == "reload":
        (tmp_path / "relay.toml").write_text('[tunnels.b]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n')
    words = ("reload",) if way == "reload" else ("drain", "a")
    assert run("ctl", *words, "--control", control).returncode == 0
    assert first_to_end(clients) == 0
    assert list(map(echoes, clients)) == [False, True, True, True]
    made.process.send_signal(signal.SIGTERM)
    made.hear("closing")
    made.process.send_signal(signal.SIGTERM)
    assert made.wait()[0] == 0
