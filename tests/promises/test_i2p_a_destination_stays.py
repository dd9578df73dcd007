"""A server's destination is the same after a restart, by the name of its session or by the file of its keys."""

import shutil

import pytest
from helpers import exchange

import relay
from relay.transports.i2p.key_file import path_of_session


@pytest.fixture(autouse=True)
def data_home(monkeypatch, times, tmp_path):
    """A directory for the user's data; and no test waits until a router has forgotten the last session of a key."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    times(remembered=(0.0, 0.0))


def dest_of(world, **options):
    with world.serve(9, **options) as server:
        return server.dest


def ready_name(world, name):
    """The name of a session, which is made at once."""
    keys = world.server_keys()
    if keys is not None:
        shutil.copy(keys, path_of_session(name))
    return name


def test_with_the_same_name(i2p_world):
    name = ready_name(i2p_world, "a site")
    dest = dest_of(i2p_world, session=name)
    assert dest_of(i2p_world, session=name) == dest
    assert path_of_session(name).exists()


def test_with_the_same_file(i2p_world, tmp_path):
    keys = i2p_world.server_keys() or tmp_path / "keys.dat"
    dest = dest_of(i2p_world, keys=keys)
    assert dest_of(i2p_world, keys=str(keys)) == dest
    assert dest_of(i2p_world, keys=keys, session="whatever its name is") == dest


def test_a_client_with_keys_can_be_followed(i2p_world, over_i2p, tmp_path):
    keys = i2p_world.client_keys() or tmp_path / "keys.dat"
    rig = over_i2p(i2p_world, reach={"keys": keys})
    exchange(*rig.connect())
    assert rig.server.connections()[0].peer == rig.tunnel.dest
    dest = rig.tunnel.dest
    rig.tunnel.close()
    with i2p_world.reach(rig.server.dest, keys=keys) as again:
        assert again.dest == dest


def test_names_do_not_share_a_destination(i2p_double):
    names = ("one", "One", "one ", "../one", "öne")
    assert len({dest_of(i2p_double, session=name) for name in names}) == len(names)


def test_without_a_name_it_is_new(i2p_double, tmp_path):
    assert dest_of(i2p_double, keys=None) != dest_of(i2p_double, keys=None)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damage", [b"", b"x" * 100, b"damaged" * 100])
def test_a_damaged_file_is_an_error_and_stays_as_it_is(i2p_double, tmp_path, damage):
    keys = tmp_path / "keys.dat"
    keys.touch(0o600)
    keys.write_bytes(damage)
    with pytest.raises(relay.SAMError, match="keys.dat"):
        i2p_double.serve(9, keys=keys)
    assert keys.read_bytes() == damage


def test_two_at_a_time_are_refused_by_name(i2p_double, tmp_path):
    keys = tmp_path / "keys.dat"
    with i2p_double.serve(9, keys=keys):
        with pytest.raises(relay.SAMError, match="keys.dat"):
            i2p_double.serve(9, keys=keys)
    dest_of(i2p_double, keys=keys)
