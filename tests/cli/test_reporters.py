"""``relay.cli.reporters``: what is said of the tunnel of a command line; its group runs on a thread of the test."""

import logging
import signal
import threading
from contextlib import contextmanager

import pytest
from group_rig import _Signals
from helpers import WAIT, receive_all, wait_until

from relay.addresses.parse import parse_listen, parse_target
from relay.cli import reporters
from relay.cli.reporters import OneTunnel
from relay.daemon.group import Group
from relay.daemon.member import Member
from relay.daemon.options import Options
from relay.daemon.plan import make_plan


@contextmanager
def relaying(listen, target, title=""):
    """Relay on a thread; return the group and what is said of it."""
    plan = make_plan(parse_listen(listen), parse_target(target), Options(), name="tunnel")
    reporter = OneTunnel(title, watch=False, where=plan.routes.where)
    with _Signals() as signals:
        group = Group([Member(plan)], signals, reporter)
        thread = threading.Thread(target=group.run)
        thread.start()
        try:
            yield group, reporter
        finally:
            if thread.is_alive() and not group.is_ending:
                group.stop()
            thread.join(WAIT)
            assert not thread.is_alive()


def test_it_prints_its_title_and_its_address_without_a_name(echo_server, capsys, caplog):
    caplog.set_level(logging.INFO, "relay.cli")
    target = "{}:{}".format(*echo_server.address)
    with relaying(":0", target, "listening on ") as (group, reporter):
        wait_until(lambda: group.members[0].has_opened)
        (opened,) = group.members
        with opened.make_send() as stream:
            stream.socket.settimeout(WAIT)
            stream.socket.sendall(b"hello")
            stream.socket.shutdown(1)
            assert receive_all(stream.socket) == b"hello"
    assert reporter.error is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"listening on 127.0.0.1:{opened.relay.address[1]} → {target}"
    assert caplog.messages == ["SIGTERM: closing", "0 connections, 0 B received, 0 B sent, 0 failed"]


def test_its_failure_ends_the_group_without_a_line(listener, capsys, caplog):
    caplog.set_level(logging.INFO, "relay.cli")
    with relaying("{}:{}".format(*listener.getsockname()), "127.0.0.1:1") as (group, reporter):
        wait_until(lambda: group.is_ending)
    assert "Address already in use" in str(reporter.error)
    assert (*capsys.readouterr(), caplog.messages) == ("", "", [])


def test_a_signal_before_it_is_open_has_a_line_of_its_own(caplog):
    caplog.set_level(logging.INFO, "relay.cli")
    OneTunnel("", watch=False, where=None).on_end(signal.SIGTERM.name, "closing")
    assert caplog.messages == ["SIGTERM: closing before there was an answer"]


@pytest.mark.parametrize(("listen", "count"), [("i2p:", 1), (":0", 0)])
def test_only_a_destination_that_takes_its_time_is_explained_and_only_once(monkeypatch, caplog, listen, count):
    caplog.set_level(logging.INFO, "relay.cli")
    monkeypatch.setattr(reporters, "SLOW", 0.0)
    reporter = OneTunnel("", watch=False, where=parse_listen(listen))
    for _ in range(3):
        reporter.on_turn()
    assert sum("may take a minute" in line for line in caplog.messages) == count


def test_nothing_is_explained_once_the_log_says_what_it_waits_for(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "relay.cli")
    monkeypatch.setattr(reporters, "SLOW", 0.0)
    reporter = OneTunnel("", watch=False, where=parse_listen("i2p:"))
    reporter.on_postponed("tunnel", "the router is away; trying again", is_first=True)
    reporter.on_turn()
    assert reporter.timeout() is None
    assert caplog.messages == []
