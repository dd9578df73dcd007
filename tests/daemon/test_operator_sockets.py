"""The sockets of operators: the lines of the log that the status page shows."""

import contextlib
import errno
import logging
import os
import queue
import stat
import threading
import types

import pytest
from helpers import WAIT, makes

from relay.cli.run import load_server
from relay.daemon.operator_sockets import NONE, OperatorSockets
from relay.daemon.options import EndpointPlan
from relay.daemon.recent_log import RecentLog
from relay.daemon.status import ReloadStatus

OFF = EndpointPlan(control=NONE, status=NONE)
ON = OFF._replace(status="127.0.0.1:0")


class Waiter:
    def watch(self, descriptor, call):
        pass

    def forget(self, descriptor):
        pass


@pytest.fixture
def make():
    yield from makes(lambda plan: OperatorSockets(None, Waiter(), lambda name: None, plan, load_server))
    assert not kept()


def kept():
    return [handler for handler in logging.getLogger("relay").handlers if isinstance(handler, RecentLog)]


def test_without_a_status_server_no_line_is_kept(make):
    make(OFF)
    assert not kept()


def test_with_one_lines_are_kept_until_it_is_closed(make, caplog):
    caplog.set_level(logging.INFO, "relay")
    sockets = make(ON)
    assert len(kept()) == 1
    logging.getLogger("relay").warning("hear")
    assert [line.message for line in sockets._lines()][-1] == "hear"
    sockets.close()
    assert not kept()


def test_a_reload_that_adds_or_removes_the_server_does_the_same_with_the_lines(make):
    sockets = make(OFF)
    sockets.prepare(ON).commit()
    assert len(kept()) == 1
    sockets.prepare(ON._replace(status="localhost:0")).commit()
    assert len(kept()) == 1
    sockets.prepare(OFF).commit()
    assert not kept()
    assert sockets._lines() == ()


@pytest.mark.parametrize("words", ["{port}", "localhost:{port}", "127.0.0.1:{port}"])
def test_a_reload_that_says_the_same_status_address_in_other_words_keeps_it(make, words):
    sockets = make(ON)
    endpoint = sockets._status.endpoint
    port = endpoint.socket.getsockname()[1]
    sockets.prepare(OFF._replace(status=words.format(port=port))).commit()
    assert sockets._status.endpoint is endpoint
    assert endpoint.socket.fileno() >= 0


def test_a_reload_that_says_the_same_path_in_other_words_keeps_the_sockets(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sockets = make(EndpointPlan(control="c.sock", status=f"unix://{tmp_path}/s.sock"))
    before = sockets._control, sockets._status
    sockets.prepare(EndpointPlan(control=f"{tmp_path}/c.sock", status=f"unix://{tmp_path}/./s.sock")).commit()
    assert (sockets._control, sockets._status) == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.sock", "s.sock"]


def test_a_reload_changes_the_rights_of_the_status_socket(make, tmp_path):
    path = tmp_path / "s.sock"
    sockets = make(OFF._replace(status=f"unix://{path}"))
    endpoint = sockets._status.endpoint
    sockets.prepare(OFF._replace(status=f"unix://{path}?mode=0660&group={os.getgid()}")).commit()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    sockets.prepare(OFF._replace(status=f"unix://{path}?mode=0666")).restore()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660, "the reload has failed"
    with pytest.raises(ValueError, match="^status address '.*': group: this machine has no group no-such-group"):
        sockets.prepare(OFF._replace(status=f"unix://{path}?group=no-such-group"))
    sockets.prepare(OFF._replace(status=f"unix://{path}")).commit()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sockets._status.endpoint is endpoint


def test_a_status_socket_that_may_not_have_its_group_keeps_its_rights(make, tmp_path, monkeypatch):
    path = tmp_path / "s.sock"
    sockets = make(OFF._replace(status=f"unix://{path}?mode=0606"))

    def chown(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(PermissionError, match="only its members may give it the group '4711'$"):
        sockets.prepare(OFF._replace(status=f"unix://{path}?mode=0660&group=4711"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o606


def test_a_status_socket_that_is_gone_stops_no_reload(make, tmp_path):
    path = tmp_path / "s.sock"
    sockets = make(OFF._replace(status=f"unix://{path}"))
    path.unlink()
    sockets.prepare(OFF._replace(status=f"unix://{path}?mode=0660")).commit()
    path.touch(0o600)
    sockets.prepare(OFF._replace(status=f"unix://{path}?mode=0666")).commit()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it is another file"


def test_two_servers_that_begin_at_once_show_the_control_socket_of_a_reload(tmp_path, monkeypatch):
    both, shown = threading.Barrier(2), queue.SimpleQueue()
    monkeypatch.setattr("relay.daemon.instance.version", lambda _: both.wait(WAIT))
    workers = types.SimpleNamespace(workers=list)
    group = types.SimpleNamespace(reload_figures=ReloadStatus(), started=0.0, is_ending=False, processes=workers)
    plan = EndpointPlan(control=str(tmp_path / "c.sock"), status="127.0.0.1:0")

    def serve(instance, endpoints, stop):
        shown.put(instance)

    with contextlib.closing(OperatorSockets(group, Waiter(), lambda _: None, plan, lambda: serve)) as sockets:
        sockets.start()
        instances = [shown.get(timeout=WAIT) for _ in range(2)]
        monkeypatch.undo()
        sockets.prepare(plan._replace(control=NONE)).commit()
        assert [each.status().control for each in instances] == ["", ""]
