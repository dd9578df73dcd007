"""``relay.unix``: connects to Unix sockets."""

from __future__ import annotations

import socket

import pytest
from helpers import WAIT, echo, receive_all, send_and_end

import relay


def test_it_connects(serve, tmp_path):
    server = serve(echo, str(tmp_path / "socket"))
    for path in (tmp_path / "socket", str(tmp_path / "socket")):
        with relay.unix(path)() as stream:
            stream.socket.settimeout(WAIT)
            send_and_end(stream.socket, b"hello")
            assert receive_all(stream.socket) == b"hello"
    assert server.address == str(tmp_path / "socket")


def test_a_relative_path_is_taken_from_the_directory_at_the_call(serve, tmp_path, monkeypatch):
    serve(echo, str(tmp_path / "socket"))
    monkeypatch.chdir(tmp_path)
    factory = relay.unix("socket")
    monkeypatch.chdir("/")
    factory().close()
    assert factory.target == f"unix://{tmp_path}/socket"


def test_a_missing_path_is_unreachable(tmp_path):
    with pytest.raises(relay.ConnectError, match=f"^unix://{tmp_path}/none: .*No such file") as failure:
        relay.unix(tmp_path / "none")()
    assert failure.value.reason == "unreachable"


def test_a_path_where_nobody_listens_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    with pytest.raises(relay.ConnectError, match="connection refused") as failure:
        relay.unix(tmp_path / "socket")()
    assert failure.value.reason == "refused"


@pytest.mark.parametrize("path", ["", "a\nb", "/" + "x" * 120])
def test_a_bad_value_is_a_value_error_at_once(path):
    with pytest.raises(ValueError, match="^path: "):
        relay.unix(path)


@pytest.mark.parametrize("path", [None, 7, b"/run/x"])
def test_a_bad_type_is_a_type_error_at_once(path):
    with pytest.raises(TypeError, match="^path: "):
        relay.unix(path)
