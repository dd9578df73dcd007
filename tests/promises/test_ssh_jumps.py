"""Through one server to the next, each with its own key and its own line in its own known_hosts."""

import pytest
from helpers import BLOCK, WAIT, Thread, ended, ending, exchange, receive_all, send_and_end, sha256_of, wait_until
from sshd import FarEnd, make_key

import relay


@pytest.fixture
def two(backend, make_sshd):
    return [FarEnd("sshd", backend, make_sshd()) for _ in range(2)]


def test_two_servers(two, over_ssh):
    rig = over_ssh([one.url for one in two])
    client, far = rig.connect()
    exchange(client, far)
    sending = Thread(send_and_end, client, BLOCK * 8)
    assert receive_all(far) == BLOCK * 8
    send_and_end(far, b"thanks")
    assert receive_all(client) == b"thanks"
    sending.result()
    for _ in range(10):
        exchange(*rig.connect())
    assert [one.logins for one in two] == [1, 1]


@pytest.mark.parametrize("last", ["paramiko", "openssh"])
def test_one_of_each_kind_of_server(backend, last, sshd, ssh_server, over_ssh):
    """The embedded server in front, OpenSSH's behind it, with every pair of backends."""
    hops = [FarEnd("embedded", backend, ssh_server), FarEnd("sshd", last, sshd)]
    exchange(*over_ssh([one.url for one in hops]).connect())


def test_proxy_jump_of_the_configuration(backend, make_sshd, over_ssh, tmp_path):
    near, far = make_sshd(), make_sshd()
    config = tmp_path / "config"
    blocks = [
        f"Host {name}\n HostName 127.0.0.1\n Port {one.port}\n User {one.user}\n"
        f" IdentityFile {one.keyfile}\n UserKnownHostsFile {one.known_hosts}\n"
        for name, one in (("near", near), ("far", far))
    ]
    config.write_text("".join([*blocks, "Host far\n ProxyJump near\n"]))
    rig = over_ssh(f"ssh://far?backend={backend}&config={config}")
    exchange(*rig.connect())
    assert [near.logins, far.logins] == [1, 1]


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_says_at_which_hop(two, bad, tmp_path):
    (tmp_path / "hosts").write_text("")
    urls = [one.url for one in two]
    urls[bad] = two[bad].address(known_hosts=tmp_path / "hosts")
    with pytest.raises(relay.HostKeyError) as failed:
        relay.connect("127.0.0.1:9", via=urls)
    assert f"hop {bad + 1} of 2" in str(failed.value)
    assert str(two[bad].rig.port) in str(failed.value)
    assert two[1].logins == 0


def test_a_wrong_key_at_the_second(two, tmp_path):
    make_key(tmp_path / "key")
    with pytest.raises(relay.AuthenticationError) as failed:
        relay.connect("127.0.0.1:9", via=[two[0].url, two[1].address(keyfile=tmp_path / "key")])
    assert "hop 2 of 2" in str(failed.value)


def test_a_second_server_that_is_not_there(two):
    two[1].down()
    with pytest.raises(relay.ConnectError) as failed:
        relay.connect("127.0.0.1:9", via=[one.url for one in two], timeout=WAIT)
    assert failed.value.reason == "refused"
    assert "hop 2 of 2" in str(failed.value)


@pytest.mark.parametrize("lost", [0, 1])
def test_either_is_lost_and_comes_back(two, lost, over_ssh):
    rig = over_ssh([one.url for one in two])
    client, far = rig.connect()
    exchange(client, far)
    two[lost].down()
    assert ending(client) == "reset"
    assert ended(rig.tunnel) == ["carrier_lost"]
    rig.wait_for_loss()
    two[lost].up()
    exchange(*rig.connect())


def test_a_listener_behind_a_hop(two, echo_server):
    near, far = two
    with relay.Tunnel(relay.ssh_listen(far.url, via=[near.url]), echo_server.factory()) as tunnel:
        with relay.connect("{}:{}".format(*tunnel.address)) as client:
            client.settimeout(WAIT)
            sending = Thread(send_and_end, client, BLOCK)
            assert sha256_of(client)
            sending.result()
    wait_until(lambda: not near.rig.sessions())
