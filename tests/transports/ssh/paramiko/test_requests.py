"""Requests of a server are refused, and its answers read."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from relay.transports.ssh.paramiko.messages import ASK, DENIED
from relay.transports.ssh.paramiko.requests import Requests

IGNORED = struct.pack(">BI", 2, 0)  # SSH_MSG_IGNORE; RFC 4253, section 11.2


@pytest.fixture
def sent():
    return []


@pytest.fixture
def server(sent):
    """Says what a server asks for: ``server(is_prompt)(name, wants_answer)``."""

    def make(is_prompt):
        handlers = {}
        transport = SimpleNamespace(handle=handlers.__setitem__, wire=SimpleNamespace(is_prompt=is_prompt))
        Requests(transport, SimpleNamespace(send=sent.append, ended=None))

        def ask(name, wants_answer):
            handlers[ASK](memoryview(struct.pack(">I", len(name)) + name + bytes([wants_answer])))

        return ask

    return make


@pytest.mark.parametrize("is_prompt", [True, False])
def test_what_wants_an_answer_is_refused(server, sent, is_prompt):
    server(is_prompt)(b"tcpip-forward", True)
    assert sent == [bytes([DENIED])]


def test_behind_another_server_the_first_word_is_acknowledged_by_one_of_ours(server, sent):
    """Else the answer to the first channel comes 40 ms late."""
    ask = server(False)
    ask(b"hostkeys-00@openssh.com", False)
    assert sent == [IGNORED]
    ask(b"hostkeys-00@openssh.com", False)  # a server that says it without end gets nothing more
    assert sent == [IGNORED]


def test_over_tcp_the_system_acknowledges_it(server, sent):
    server(True)(b"hostkeys-00@openssh.com", False)
    assert sent == []
