"""A target that the server cannot reach, or may not: the client is reset, and the record and the error say why."""

import pytest
from helpers import echo, ended, fate_of_client, refusing

import relay


def fate_and_reason(url, target):
    with relay.Tunnel(relay.listen(":0"), relay.target(target, via=[url])) as tunnel:
        return fate_of_client(tunnel.address, b"anybody there?"), ended(tunnel)


def test_a_port_where_nobody_listens(far_end, caplog):
    with refusing() as (host, port):
        assert fate_and_reason(far_end.url, f"{host}:{port}") == ("reset", ["refused"])
        assert f"{host}:{port}" in caplog.text
        assert "(client 127.0.0.1:" in caplog.text, "the log says which client was reset, and why"
        with pytest.raises(relay.ConnectError) as failed:
            relay.connect(f"{host}:{port}", via=[far_end.url])
    assert failed.value.reason == "refused"
    assert f"{host}:{port}" in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("target", ["no-such-host.invalid:80", "unix:///nowhere/socket"])
def test_a_name_and_a_path_that_do_not_exist(far_end, target):
    fate, [reason] = fate_and_reason(far_end.url, target)
    assert fate == "reset"
    assert reason in ("refused", "unreachable")
    with pytest.raises(relay.ConnectError) as failed:
        relay.connect(target, via=[far_end.url])
    assert failed.value.reason == reason


def test_it_is_told_apart_from_an_answer_that_is_empty(far_end, serve):
    """A target that takes the connection and says nothing is an end of file, and no refusal."""
    server = serve(lambda connection: None)
    assert fate_and_reason(far_end.url, "{}:{}".format(*server.address)) == ("end of file", ["done"])


def test_refusals_do_not_disturb_other_streams(far_end, over_ssh):
    rig = over_ssh(far_end.url)
    client, far = rig.connect()
    with (
        refusing() as (host, port),
        relay.Tunnel(relay.listen(":0"), relay.target(f"{host}:{port}", via=[far_end.url])) as tunnel,
    ):
        for _ in range(20):
            assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel, 20) == ["refused"] * 20
    client.sendall(b"still here")
    assert far.recv(20) == b"still here"
    assert far_end.logins == 1


def test_a_target_that_comes_up_later_is_reached(far_end, serve):
    with refusing() as address:
        with relay.Tunnel(relay.listen(":0"), relay.target("{}:{}".format(*address), via=[far_end.url])) as tunnel:
            assert fate_of_client(tunnel.address) == "reset"
    server = serve(echo)
    with relay.connect("{}:{}".format(*server.address), via=[far_end.url]) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
