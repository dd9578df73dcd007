"""``relay.targets.group``: the order, fail-over, probes, and what clients see."""

import errno
import logging
import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, in_child, wait_until

import relay
from relay.access.proxy_header import build_local
from relay.addresses.parse import parse_hops, parse_target
from relay.api.urls import dialer_of_routes
from relay.engine import changes
from relay.errors import ConnectError, HostKeyError
from relay.eventloop import backoff
from relay.eventloop.background import IOThread
from relay.streams.dialer import Dialer
from relay.streams.promise import Promise
from relay.streams.source import Source
from relay.streams.stream import Stream
from relay.targets import group as target_group
from relay.targets import members as target_members
from relay.targets.group import ProbeOutcome, ProbeSchedule, Selection, TargetGroup


class Target(Dialer):
    """A target whose outcomes the test decides.

    :param name: of the target.
    """

    def __init__(self, name):
        super().__init__(name)
        self.outcome = "stream"  # or "hang", or an error
        self.dials = []  # (deadline, self_contained, wait_for_reconnect)
        self.given_up = 0
        self.pending = []
        self.far_ends = []
        self.closed = 0
        self.released = 0

    def dial(self, deadline, done, *, self_contained=False, wait_for_reconnect=True):
        self.dials.append((deadline, self_contained, wait_for_reconnect))
        if isinstance(self.outcome, Exception):
            done(self.outcome)
        elif self.outcome == "stream":
            done(self.stream())
        else:
            self.pending.append(done)
        return self._give_up

    def _give_up(self):
        self.given_up += 1

    def stream(self):
        near, far = socket.socketpair()
        self.far_ends.append(far)
        return Stream(near, target=self.target, on_close=self._release)

    def _release(self):
        self.released += 1

    def close(self):
        self.closed += 1


def refused(name):
    return ConnectError(f"{name}: connection refused", reason="refused")


@pytest.fixture
def targets(monkeypatch):
    monkeypatch.setattr(backoff, "jittered", lambda seconds: 0.01)
    monkeypatch.setattr(target_members, "_FIRST", 0.0)
    made = [Target(name) for name in "abc"]
    yield made
    # A probe that was about to begin when its group was closed has a stream, too.
    wait_until(lambda: "relay-io" not in [thread.name for thread in threading.enumerate()])
    for one in made:
        for far in one.far_ends:
            far.close()


@pytest.fixture
def group(request, targets):
    def make(selection=Selection.FIRST, probe=target_group.probe_by_connect):
        made = TargetGroup(targets, selection, probe=probe, name="web")
        request.addfinalizer(made.close)
        return made

    return make


def dialed(group, deadline=None, **options):
    """Dial; return the outcome, which must be there at once."""
    outcomes = []
    group.dial(deadline, outcomes.append, **options)
    (outcome,) = outcomes
    return outcome


def names(group, count):
    """Dial so often; return the names of the targets, whose streams stay open."""
    streams = [dialed(group) for _ in range(count)]
    return "".join(stream.target for stream in streams), streams


def close(streams):
    for stream in streams:
        stream.close()


def states(group):
    return [one.state for one in group.states()]


def test_the_first_one_gets_all_streams(group):
    made = group()
    found, streams = names(made, 3)
    assert found == "aaa"
    assert [one.active for one in made.states()] == [3, 0, 0]
    close(streams)
    assert [one.active for one in made.states()] == [0, 0, 0]
    assert made.target == "a, b, c"


def test_the_one_with_the_fewest_streams_gets_the_next(group, targets):
    made = group(Selection.SPREAD)
    found, streams = names(made, 5)
    assert found == "abcab"
    streams[1].close()
    streams[4].close()
    assert dialed_name(made, streams) == "b"
    close(streams)
    assert targets[1].released == 3


def dialed_name(group, streams):
    streams.append(dialed(group))
    return streams[-1].target


def test_a_target_that_was_slow_once_is_measured_again_as_long_as_streams_are_asked_for(group, targets, monkeypatch):
    monkeypatch.setattr(target_members, "_MEASURED", 0.01)

    def probe(dialer, deadline, done):
        if dialer is targets[0]:
            done(targets[0].stream())
        return lambda: None

    made = group(Selection.FASTEST, probe)
    for number, seconds in enumerate((5.0, 0.5, 0.6)):
        made._members.succeeded(number, seconds)
    chosen = []

    def is_next(target):
        with dialed(made) as stream:
            chosen.append(stream.target)
        return chosen[-1] == target

    wait_until(lambda: is_next("a"))
    assert chosen[0] == "b"
    wait_until(lambda: not IOThread.clients())  # no client has come for a while


def test_a_target_is_measured_before_it_gets_clients(group):
    made = group(Selection.FASTEST)
    made._members.succeeded(1, 5.0)
    with dialed(made) as stream:
        assert stream.target == "b"
    wait_until(lambda: all(one.latency is not None for one in made.states()))


def test_a_client_whose_target_fails_gets_the_next_one(group, targets, caplog):
    targets[0].outcome = refused("a")
    targets[1].outcome = "hang"
    made = group(probe=lambda dialer, deadline, done: lambda: None)
    answer = Promise()
    made.dial(time.monotonic() + 60, answer.put)
    (hung,) = targets[1].pending
    hung(refused("b"))
    with answer.get(time.monotonic() + WAIT, None) as stream:
        assert stream.target == "c"
    assert "web: target a is down: a: connection refused; it gets no clients until a probe passes" in caplog.text
    assert {one.problem for one in made.states()} == {"a: connection refused", "b: connection refused", ""}
    found, streams = names(made, 2)
    assert found == "cc"
    assert len(targets[0].dials) == 1
    close(streams)


def test_the_attempts_share_the_time(group, targets):
    targets[0].outcome = "hang"
    made = group()
    now = time.monotonic()
    give_up = made.dial(now + 9.0, lambda outcome: None)
    deadline, _, waits = targets[0].dials[0]
    assert 2.9 < deadline - now < 3.5
    assert not waits
    give_up()
    give_up = made.dial(None, lambda outcome: None)
    assert 9.9 < targets[0].dials[1][0] - now < 10.0 + WAIT
    give_up()
    assert targets[0].given_up == 2
    assert [one.active for one in made.states()] == [0, 0, 0]


def test_the_last_one_may_wait_for_its_carrier_and_has_all_the_time(group, targets):
    made = group()
    made.set_enabled("a", False)
    made.set_enabled("b", False)
    targets[2].outcome = "hang"
    give_up = made.dial(1e9, lambda outcome: None, self_contained=True)
    assert targets[2].dials == [(1e9, True, True)]
    give_up()


def test_no_target_is_up(group, targets):
    made = group(probe=lambda dialer, deadline, done: lambda: None)
    for target in targets[:2]:
        target.outcome = refused(target.target)
    made.set_enabled("c", False)
    assert dialed(made).reason == "refused"  # the error of the last attempt
    wait_until(lambda: states(made)[:2] == ["probing", "probing"])
    error = dialed(made)
    assert error.reason == "unreachable"
    assert str(error) == ("a, b, c: no target is up (a: connection refused; b: connection refused; c is disabled)")
    assert made.last_error == "a: connection refused; b: connection refused; c is disabled"
    assert len(targets[0].dials) == 1


def test_a_target_returns_after_a_probe(group, targets, caplog):
    made = group()
    targets[0].outcome = refused("a")
    dialed(made).close()
    wait_until(lambda: len(targets[0].dials) >= 3)  # probes fail
    assert made.states()[0].state in ("down", "probing")
    targets[0].outcome = "stream"
    wait_until(lambda: "web: target a is up again" in caplog.text)
    assert states(made)[0] == "up"
    found, streams = names(made, 1)
    assert found == "a"
    close(streams)
    wait_until(lambda: made not in IOThread.clients() and not IOThread.clients())


def test_one_probe_at_a_time_and_none_after_the_close(group, targets):
    probes = []
    made = group(probe=lambda dialer, deadline, done: probes.append((dialer, done)) or (lambda: probes.append("end")))
    targets[0].outcome = refused("a")
    dialed(made).close()
    wait_until(lambda: probes)
    dialer, done = probes[0]
    assert dialer is targets[0]
    wait_until(lambda: made._members.members[0].give_up is not None)
    made.close()
    assert probes[1:] == ["end"]
    done(targets[0].stream())  # too late: the stream is closed, and the target stays as it is
    assert states(made)[0] == "probing"
    assert targets[0].released == 1
    assert [target.closed for target in targets] == [1, 1, 1]
    targets[0].outcome = "stream"
    stream = dialed(made)  # the group is used again
    assert stream.target == "a"
    stream.close()


def test_a_probe_that_cannot_begin_is_one_that_failed(group, targets):
    def probe(dialer, deadline, done):
        raise OSError(errno.EMFILE, "too many open files")

    made = group(probe=probe)
    targets[0].outcome = refused("a")
    dialed(made).close()
    wait_until(lambda: made.states()[0].failures >= 3)
    assert states(made)[0] in ("down", "probing")


def test_what_this_machine_lacks_says_nothing_about_a_target(group, targets):
    made = group()
    error = OSError(errno.EMFILE, "too many open files")
    targets[0].outcome = error
    assert dialed(made) is error
    assert states(made) == ["up", "up", "up"]
    assert [one.active for one in made.states()] == [0, 0, 0]


def test_a_target_that_had_hardly_any_time_is_down_the_third_time_in_a_row(group, targets):
    made = group(probe=lambda dialer, deadline, done: lambda: None)
    for outcome in ("no", "no", "stream", "no", "no", "no"):
        assert states(made)[0] == "up"
        no_answer = ConnectError("a: no answer in time", reason="connect_timeout")
        targets[0].outcome = no_answer if outcome == "no" else "stream"
        with dialed(made, time.monotonic() + 60) as stream:
            assert stream.target == ("b" if outcome == "no" else "a")
    assert states(made)[0] in ("down", "probing")


def test_a_disabled_target_returns_after_a_probe(group, targets, caplog):
    made = group()
    made.set_enabled("a", False)
    found, streams = names(made, 1)
    assert found == "b"
    assert states(made) == ["disabled", "up", "up"]
    assert "web: target a is disabled" in caplog.text
    made.set_enabled("a", True)
    wait_until(lambda: states(made)[0] == "up")
    close(streams)
    with pytest.raises(KeyError):
        made.set_enabled("nobody", True)


def test_an_open_socket_is_not_counted_for_ever(group):
    made = group(Selection.SPREAD)
    sockets = [made.open_socket(time.monotonic() + WAIT) for _ in range(2)]
    assert [one.active for one in made.states()] == [0, 0, 0]
    for one in sockets:
        one.close()


def test_a_group_needs_a_target():
    with pytest.raises(ValueError, match="at least one"):
        TargetGroup([])


def test_attempts_of_many_threads(group, targets):
    made = group(Selection.SPREAD)

    def work():
        for _ in range(50):
            made(deadline=time.monotonic() + WAIT).close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.active for one in made.states()] == [0, 0, 0]


def test_a_port_that_lacks_for_one_target_leaves_the_next_one(group, targets):
    made = group()
    targets[0].outcome = OSError(errno.EADDRNOTAVAIL, "no port is left")
    stream = dialed(made)
    assert stream.target == "b"
    assert states(made) == ["up", "up", "up"]
    stream.close()


def test_a_stream_that_comes_while_it_is_given_up_is_counted_once(group, targets):
    made = group()
    targets[0].outcome = "hang"
    outcomes = []
    give_up = made.dial(None, outcomes.append)
    (done,) = targets[0].pending
    lock = made._members._lock

    class Racing:
        """The lock of the attempts: what takes it first is given up in between."""

        entered = 0

        def __enter__(self):
            Racing.entered += 1
            if Racing.entered == 1:
                give_up()

        def __exit__(self, *_):
            pass

    give_up.__self__._lock = Racing()
    done(targets[0].stream())
    assert outcomes == []
    assert targets[0].released == 1
    assert made._members._lock is lock
    assert [one.active for one in made.states()] == [0, 0, 0]


class Introduced(Target):
    """A target over TLS, as far as headers go."""

    introduces = True

    def introducing(self, header):
        made = Introduced(f"{self.target} {header.decode()}")
        made.far_ends = self.far_ends
        return made


def test_a_header_goes_below_the_sessions_of_those_targets_that_have_one(targets):
    plain, secured = targets[0], Introduced("s")
    assert not TargetGroup([plain]).introduces
    made = TargetGroup([secured, plain])
    assert made.introduces
    over = made.introducing(b"header")
    assert [dialer.target for dialer in over.alternatives] == ["s header", "a"]
    assert over.alternatives[1] is plain  # it has no session
    stream = dialed(over)
    assert [one.active for one in made.states()] == [1, 0]
    stream.close()
    secured.far_ends.pop().close()


def test_a_deadline_that_another_thread_has_replaced_begins_no_second_probe(group, targets, monkeypatch):
    monkeypatch.setattr(backoff, "jittered", lambda seconds: LONG)
    made = group()
    targets[0].outcome = refused("a")
    close(names(made, 1)[1])
    member = made._members.members[0]
    old = member.timer
    made.set_enabled("a", False)
    made.set_enabled("a", True)  # its probe fails, and the next one waits
    new, dials = member.timer, len(targets[0].dials)
    old._call(0.0)  # it was about to be called when it was stopped
    assert (member.timer, len(targets[0].dials)) == (new, dials) and new not in (old, None)
    new._call(0.0)
    assert len(targets[0].dials) == dials + 1


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_probe_of_each_target_says_that_it_is_relays_own(targets, version):
    """Of those with a session below it, of the others as the first bytes: the clients of the tunnel do the same."""
    plain, secured, header = targets[0], Introduced("s"), build_local(version)
    made = TargetGroup([secured, plain])
    sessions = []
    secured.introducing = lambda header: sessions.append(header) or secured
    listener = socket.create_server(("127.0.0.1", 0))
    with made, relay.Tunnel(listener, made, send_proxy=version) as tunnel:
        for name in ("s", "a"):
            made.set_enabled(name, False)
            made.set_enabled(name, True)
        assert states(made) == ["up", "up"]
        assert sessions == [header]
        far = plain.far_ends[0]
        far.settimeout(WAIT)
        assert far.recv(4096) == header
        limits = {"nconnect": 1, "timeout": None, "connect_timeout": None, "idle_timeout": None, "linger": None}
        changes.update(tunnel, **limits)  # without the option
        made.set_enabled("a", False)
        made.set_enabled("a", True)
        assert plain.far_ends[1].recv(4096) == b""
        changes.update(tunnel, send_proxy=version, **limits)
        other = TargetGroup([plain])
        changes.reroute(tunnel, other, drain=None)
        other.set_enabled("a", False)
        other.set_enabled("a", True)
        assert plain.far_ends[2].recv(4096) == header
    secured.far_ends.pop().close()


class Bound(Target):
    """A target that can be dialed from an address."""

    def bound(self, source):
        made = Bound(f"{self.target} from {source.host}")
        made.outcome, made.far_ends = self.outcome, self.far_ends
        return made


def test_probes_come_from_the_source_of_the_tunnel(group, targets):
    probed = []
    made = TargetGroup([Bound("a"), Bound("b")], probe=lambda dialer, *_: probed.append(dialer.target) or (lambda: 0))
    made.bound(Source(socket.AF_INET, "127.0.0.2"))  # that of one client
    made.set_enabled("b", False)
    made.set_enabled("b", True)
    made.always_bound(Source(socket.AF_INET, "127.0.0.3"))
    made.set_enabled("a", False)
    made.set_enabled("a", True)
    made.close()
    assert probed == ["b", "a from 127.0.0.3"]


def test_a_forked_child_tries_all_targets(group, targets):
    made = group(probe=lambda dialer, deadline, done: lambda: None)
    targets[0].outcome = refused("a")
    dialed(made).close()
    targets[0].outcome = "stream"
    with made._members._lock:
        assert in_child(lambda: dialed(made).target == "a" and states(made) == ["up"] * 3) == 0


class Answering(Target):
    """A target that sends something at once."""

    answer = b"220 ready\r\n"

    def stream(self):
        made = super().stream()
        self.far_ends[-1].sendall(self.answer)
        return made


@pytest.fixture
def answering(request, monkeypatch):
    """Two targets that answer, and their group."""
    monkeypatch.setattr(backoff, "jittered", lambda seconds: 0.01)
    monkeypatch.setattr(target_members, "_FIRST", 0.0)
    targets = [Answering(name) for name in "ab"]
    with TargetGroup(targets, name="web") as made:
        yield targets, made
    for far in [far for one in targets for far in one.far_ends]:
        far.close()


def schedule(probe="banner", interval=0.01, timeout=0.05, **more):
    return ProbeSchedule(probe, interval, timeout, **more)


LONG = 3600.0  # seconds


@pytest.mark.parametrize(
    ("probe", "bad", "good", "problem"),
    [
        ("banner", b"", b"220 ready\r\n", "no answer in time"),
        ("http://healthz", b"HTTP/1.1 503 no\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", "status 503"),
    ],
)
def test_a_target_that_fails_the_probe_gets_no_clients_until_it_passes(answering, caplog, probe, bad, good, problem):
    """Although it takes connections."""
    (first, second), made = answering
    first.answer, second.answer = bad, good
    made.probe_every(schedule(probe))
    wait_until(lambda: f"web: target a is down: {problem}; it gets no clients until a probe passes" in caplog.text)
    wait_until(lambda: made.probe_outcome().finished)
    assert made.probe_outcome().problem == ""  # one target is enough
    stream = dialed(made)
    assert stream.target == "b"
    stream.close()
    made._members.succeeded(0, 0.1)  # a connect for a client that began before
    assert states(made)[0] in ("down", "probing")
    first.answer = good
    wait_until(lambda: "web: target a is up again" in caplog.text)
    wait_until(lambda: states(made) == ["up", "up"])
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("kind", "events", "state", "outcome"),
    [
        ("connect", "x", "probing", "no answer"),  # whether it works is not known yet
        ("connect", "cxx", "up", None),  # a client has found that it works; no probe has
        ("connect", "oxx", "up", ""),
        ("connect", "oxxox", "up", ""),
        ("connect", "oxxx", "probing", "no answer"),
        ("connect", "or", "probing", "connection refused"),
        ("connect", "oxxcxx", "up", ""),  # a client's connect proves the same
        ("banner", "oxxcx", "probing", "no answer"),  # and here less
    ],
)
def test_one_lost_probe_moves_no_clients(targets, caplog, kind, events, state, outcome):
    """Each letter is a probe that passes (o), fails (x) or is refused (r), or a client's connect (c)."""
    caplog.set_level(logging.INFO, "relay")
    left, is_over = list(events), threading.Event()

    def probe(dialer, deadline, done):
        if left and left[0] == "c":
            made._members.succeeded(0, 0.1)
            del left[0]
        if not left:
            is_over.set()
            return lambda: None
        answer = left.pop(0)
        done(targets[0].stream() if answer == "o" else refused("a") if answer == "r" else ConnectError("no answer"))
        return lambda: None

    with TargetGroup(targets[:1], probe=probe, name="web") as made:
        made.probe_every(schedule(kind))
        assert is_over.wait(WAIT)
        assert states(made) == [state]
        found = made.probe_outcome()
        assert (found.problem if found.finished else None) == (f"a: {outcome}" if state != "up" else outcome)
        assert made.states()[0].failures == events.count("x") + events.count("r")
    assert ("web: target a: a probe failed: no answer; another one follows" in caplog.text) == ("x" in events[1:])
    assert ("target a is down" in caplog.text) == (state != "up")


def test_no_target_passes(answering):
    (first, second), made = answering
    first.answer = second.answer = b""
    assert made.probe_outcome() is None
    made.probe_every(schedule())
    assert made.probe_outcome() == ProbeOutcome(None)
    wait_until(lambda: made.probe_outcome().finished)
    assert made.probe_outcome().problem == "a: no answer in time; b: no answer in time"
    made.set_enabled("a", False)
    assert made.probe_outcome().problem == "a is disabled; b: no answer in time"
    second.answer = b"2"
    wait_until(lambda: not made.probe_outcome().problem)


def test_the_probes_of_targets_end_with_the_schedule(answering, monkeypatch):
    (first, _), made = answering
    wanted = [True]
    made.probe_every(schedule(is_wanted=lambda: wanted[0]))
    wait_until(lambda: len(first.dials) >= 3)
    wanted[0] = False
    wait_until(lambda: not IOThread.clients())
    assert made.probe_outcome() is None
    monkeypatch.setattr(target_members, "_SPREAD", 0.0)
    made.probe_every(schedule(interval=LONG))
    wait_until(lambda: all(one.timer is not None and one.outcome for one in made._members.members))
    before = [one.timer for one in made._members.members]
    made.probe_every(schedule(interval=LONG))  # the same one
    assert [one.timer for one in made._members.members] == before
    made.probe_every(None)
    wait_until(lambda: not IOThread.clients())


def test_a_target_that_hangs_stays_down_after_the_schedule(answering, caplog):
    """A connect would pass. If the group is used again, it counts as up until the next probe."""
    (first, _), made = answering
    first.answer = b""
    wanted = [True]
    made.probe_every(schedule(is_wanted=lambda: wanted[0]))
    wait_until(lambda: "target a is down" in caplog.text)
    wanted[0] = False
    wait_until(lambda: not IOThread.clients())
    assert states(made) in (["down", "up"], ["probing", "up"])
    assert "up again" not in caplog.text
    dialed(made).close()
    assert states(made) == ["up", "up"]


def test_the_outcome_of_a_group_counts_until_the_one_that_takes_its_place_has_one(answering, targets):
    _, old = answering
    old.probe_every(schedule())
    wait_until(lambda: old.probe_outcome().finished)
    for target in targets:
        target.outcome = "hang"
    with TargetGroup(targets, name="web") as made:
        made.take_over(old)
        old.close()
        earlier = made.probe_outcome()
        assert earlier.finished and not earlier.problem
        made.probe_every(schedule(interval=LONG, timeout=LONG))
        assert made.probe_outcome() == earlier
        wait_until(lambda: [len(target.pending) for target in targets] == [1, 1, 1])  # without a wait for the interval
        targets[0].pending.pop()(refused("a"))
        assert made.probe_outcome() == earlier
        for number in (1, 2):
            made._members.failed(number, refused("bc"[number - 1]))  # clients find out
        assert made.probe_outcome() == ProbeOutcome(None)
        with TargetGroup(targets[:1], name="web") as another:
            another.take_over(made)
            assert another.probe_outcome() == ProbeOutcome(None)
        made.close()
        assert made.probe_outcome() is None


def test_a_group_knows_what_the_one_before_it_knew(group, targets, monkeypatch):
    """Of a target with the same address and the same hops."""
    old, (a, b, c) = group(probe=lambda dialer, deadline, done: lambda: None), targets
    old._members.failed(0, refused("a"))
    old._members.succeeded(1, 0.25)
    old.set_enabled("c", False)
    old._members.members[0].health.since -= 2 * LONG
    elsewhere = Target("a")
    elsewhere.route = parse_hops(["socks5://h:1"])
    monkeypatch.setattr(backoff, "jittered", lambda seconds: LONG)
    with TargetGroup([Target("new"), b, elsewhere, c, a], name="web") as made:
        made.set_enabled("c", False)
        made.take_over(old)
        assert states(made) == ["up", "up", "up", "disabled", "down"]
        after = made.states()
        assert (after[4].problem, after[4].failures) == ("a: connection refused", 1)
        assert after[4].since > LONG
        assert after[1].latency == 0.25
        assert after[2].latency is None and after[2].failures == 0
        monkeypatch.setattr(backoff, "jittered", lambda seconds: 0.01)
        with TargetGroup([a], name="web") as another:
            another.take_over(made)
            assert another.states()[0].problem == "a: connection refused"
            wait_until(lambda: states(another) == ["up"])  # after a probe


def test_a_probe_of_a_target_that_is_up_ends_with_it(answering):
    """A client finds out first that it is down; the next probe is not that of the interval."""
    (first, _), made = answering
    first.outcome = "hang"
    made.probe_every(schedule(interval=LONG, timeout=LONG))
    wait_until(lambda: made._members.members[0].give_up is not None)
    made._members.failed(0, refused("a"))
    assert first.given_up == 1
    first.outcome = "stream"
    wait_until(lambda: states(made)[0] == "up")


def test_a_probe_that_this_machine_cannot_make_takes_no_target_out(answering):
    (first, _), made = answering
    first.outcome = OSError(errno.EMFILE, "too many open files")
    made.probe_every(schedule())
    wait_until(lambda: len(first.dials) >= 3)
    assert states(made) == ["up", "up"]
    assert made.states()[0].failures == 0


@pytest.mark.parametrize(
    ("ways", "names"),
    [
        ([((), 9), ((), 9), ((), 10)], ["127.0.0.1:9", "127.0.0.1:9 (2)", "127.0.0.1:10"]),
        (
            [((), 9), (["socks5://h:1"], 9), (["socks5://h:1"], 10), ((), 9)],
            ["127.0.0.1:9 directly", "127.0.0.1:9 via socks5://h:1", "127.0.0.1:10", "127.0.0.1:9 directly (2)"],
        ),
    ],
)
def test_only_a_target_that_is_there_twice_has_another_name_than_its_address(ways, names):
    with dialer_of_routes([(parse_hops(via), parse_target(f"127.0.0.1:{port}")) for via, port in ways]) as made:
        assert [one.target for one in made.states()] == names


def test_a_warm_stream_of_a_disabled_target_is_for_no_client(echo_server):
    other = socket.create_server(("127.0.0.1", 0))
    made = TargetGroup([relay.tcp(*other.getsockname()), relay.tcp(*echo_server.address)], name="echo")
    with other, relay.Tunnel(socket.create_server(("127.0.0.1", 0)), made, warm=2) as tunnel:

        def warm():
            figures = tunnel.metrics().warm
            return 0 if figures is None else figures.ready

        wait_until(lambda: warm() == 2)
        made.set_enabled(made.states()[0].target, False)
        for _ in range(3):
            with socket.create_connection(tunnel.address, WAIT) as client:
                client.sendall(b"ping")
                assert client.recv(4) == b"ping"
        wait_until(lambda: warm() == 2)
        assert made.states()[0].active == 0


@pytest.mark.parametrize(
    ("states", "state"),
    [(["failed", "backing off"], "backing off"), (["failed", "failed"], "failed"), (["closed", "up"], "up")],
)
def test_its_state_is_that_of_a_target_that_may_still_serve(states, state):
    assert TargetGroup([Stated(one) for one in states]).state == state


class Stated(Target):
    """A target whose hop has a state."""

    state, last_error = "", None

    def __init__(self, state, name="hop", last_error=None):
        super().__init__(name)
        self.state, self.last_error = state, last_error


@pytest.mark.parametrize("selection", Selection)
@pytest.mark.parametrize(
    ("state", "error", "first"),
    [
        ("backing off", "no answer in time", "b"),
        ("connecting", "no answer in time", "b"),
        ("failed", "another host key", "b"),
        ("connecting", None, "a"),  # nothing is known against it
        ("closed", None, "a"),
        ("up", "lost", "a"),  # and is up again
    ],
)
def test_a_way_that_is_known_to_be_down_is_tried_last(selection, state, error, first):
    ways = [Stated(state, "a", error), Stated("up", "b")]
    with TargetGroup(ways, selection) as made:
        with dialed(made) as stream:
            assert stream.target == first
        ways[1].state, ways[1].last_error = "backing off", "lost"
        with dialed(made) as stream:
            assert stream.target in ("a", "b")  # no other one is better
    for way in ways:
        close(way.far_ends)


class Ready(Target):
    """A target whose hop can be opened or not."""

    def ready(self, timeout=30.0):
        self.timeout = timeout
        if isinstance(self.outcome, threading.Event):
            assert self.outcome.wait(WAIT)
        if isinstance(self.outcome, Exception):
            raise self.outcome


def test_a_way_that_is_wrong_for_good_does_not_hide_one_that_may_come_back(caplog):
    wrong, away, works = Ready("wrong"), Ready("away"), Ready("works")
    wrong.outcome, away.outcome = HostKeyError("another key"), refused("away")
    for order in ([wrong, away], [away, wrong]):
        caplog.clear()
        with pytest.raises(ConnectError):
            TargetGroup(order).ready()
        assert [(one.levelname, "another key" in one.message) for one in caplog.records] == [("ERROR", True)]
    with pytest.raises(HostKeyError):
        TargetGroup([wrong]).ready()
    for is_logged in (False, True):  # by the carrier; else its clients would find that only when they need it
        caplog.clear()
        wrong.outcome.said = is_logged
        works.outcome = threading.Event()
        opened = Thread(TargetGroup([wrong, works]).ready)
        wait_until(lambda: [one.name for one in threading.enumerate()].count("relay-ready") == 1)
        works.outcome.set()
        opened.result()
        assert [one.levelname for one in caplog.records] == ["ERROR"] * (not is_logged)


def test_a_silent_way_delays_no_other_one():
    silent, works, away = Ready("silent"), Ready("works"), Ready("away")
    silent.outcome, away.outcome = threading.Event(), refused("away")
    TargetGroup([silent, works, away]).ready(WAIT)
    assert not silent.outcome.is_set() and silent.timeout == works.timeout == WAIT
    opened = Thread(TargetGroup([silent, away]).ready)
    silent.outcome.set()
    opened.result()


def test_what_no_thread_can_open_has_failed(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="can't start new thread"):
        TargetGroup([Ready("a"), Ready("b")]).ready()


def test_a_wrong_way_is_logged_also_after_another_one_is_open(caplog):
    wrong, works = Ready("wrong"), Ready("works")

    def ready(timeout):
        assert is_open.wait(WAIT)
        raise HostKeyError("another key")

    is_open = threading.Event()
    wrong.ready = ready
    TargetGroup([wrong, works]).ready()
    assert caplog.text == ""
    is_open.set()
    wait_until(lambda: "another key" in caplog.text)
