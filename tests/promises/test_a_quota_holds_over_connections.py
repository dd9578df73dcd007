"""A quota counts both directions of all connections of a client, and ends the one that uses it up."""

import contextlib
import socket

from helpers import BLOCK, WAIT, Thread, ended, fate_of_client, receive_exactly, receive_rest

import relay

QUOTA = [{"quota": "3MB/month", "name": "fair"}]


def test_the_last_byte_of_the_quota_arrives_and_no_more(serve):
    def send(connection):
        for _ in range(100):
            connection.sendall(BLOCK)

    with relay.Tunnel(relay.listen(":0"), serve(send).factory(), timeout=None, limit=QUOTA) as tunnel:
        # The reset of a busy machine's tunnel may come before connect() has returned.
        with contextlib.suppress(ConnectionResetError), socket.create_connection(tunnel.address, WAIT) as client:
            assert len(receive_rest(client)) <= 3_000_000
        assert ended(tunnel) == ["quota"]
        (record,) = tunnel.recent()
        assert (record.sent, record.by, record.rule) == (3_000_000, "relay", "limit fair")
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel, 2) == ["quota", "denied"]
        assert tunnel.metrics().ended["quota"] == 1 and tunnel.metrics().denied["limit fair"] == 2


def test_both_directions_and_several_connections_count_together(echo_server, caplog):
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), timeout=None, limit=QUOTA) as tunnel:
        for _ in range(2):
            with socket.create_connection(tunnel.address, WAIT) as client:
                sender = Thread(client.sendall, BLOCK[:700_000])
                assert receive_exactly(client, 700_000) == BLOCK[:700_000]
                sender.result()
            ended(tunnel)
        assert sum(record.received + record.sent for record in tunnel.recent()) == 2_800_000
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(BLOCK[:150_000])
            receive_rest(client)
        assert ended(tunnel)[-1] == "quota"
        assert sum(record.received + record.sent for record in tunnel.recent()) == 3_000_000
    lines = [record.getMessage() for record in caplog.records if "quota of" in record.getMessage()]
    assert lines == [
        f"{tunnel.name}: {part} of the quota of 127.0.0.1 is used (limit fair)" for part in ("80 %", "all")
    ]


def test_clients_of_another_kind_have_quotas_by_their_identity(echo_server, tmp_path):
    receive = relay.listen(f"unix://{tmp_path}/s")
    limit = [{"per": "identity", "quota": "100kB/day"}]
    with relay.Tunnel(receive, echo_server.factory(), timeout=None, limit=limit) as tunnel:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT)
            client.connect(f"{tmp_path}/s")
            client.sendall(BLOCK[:60_000])
            receive_rest(client)
        assert ended(tunnel) == ["quota"]
