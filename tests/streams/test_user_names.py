"""Names of the users at Unix sockets."""

import pwd
import types

import pytest

from relay.streams import user_names
from relay.streams.identity import Identity
from relay.streams.user_names import look_up, named, unnamed_user

USERS = {0: "root", 1000: "al\nice", 4242: "1000", 4243: "٣"}


@pytest.fixture(autouse=True)
def users(monkeypatch):
    """No user is known, and those of the machine are others."""
    monkeypatch.setattr(user_names, "_names", {})
    monkeypatch.setattr(pwd, "getpwuid", lambda number: types.SimpleNamespace(pw_name=USERS[number]))


def local(user):
    return Identity("unix", user, user=user, process=1)


@pytest.mark.parametrize(
    ("number", "name"), [(0, "root"), (1000, "al\\nice"), (7, "7"), (4242, "4242"), (4243, "4243")]
)
def test_a_user_has_its_name_once_it_was_looked_up(number, name):
    client = local(str(number))
    assert unnamed_user(client) == number
    assert named(client) == client
    look_up(number)
    assert named(client) == local(name)
    assert unnamed_user(client) is unnamed_user(named(client)) is None


@pytest.mark.parametrize(
    "client", [None, Identity("tcp", "h", "h", 1), Identity("unix", "0", user="0"), local("root"), local(None)]
)
def test_other_clients_have_nothing_to_look_up(client):
    look_up(0)
    del user_names._names[0]
    assert unnamed_user(client) is None
    assert client is None or named(client) is client


def test_few_users_are_kept(monkeypatch):
    monkeypatch.setattr(user_names, "_MOST", 2)
    for number in range(5):
        look_up(number)
    assert list(user_names._names) == [3, 4]
