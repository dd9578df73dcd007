"""``relay.carriers.carrier``: states, reconnects, clients that wait, and ``acquire`` of ``relay.carriers.pool``."""

import gc
import os
import queue
import select
import threading
import time
from types import SimpleNamespace

import pytest
from carrier_rig import REFUSED, Connector, outcome_of, turned
from helpers import PROMPT, WAIT, Thread, in_child, makes, wait_until
from state_table import rows_of

from relay.carriers import blocking, retry
from relay.carriers import carrier as module
from relay.carriers.carrier import Carrier
from relay.carriers.link import CarrierState, Waiter
from relay.carriers.pool import acquire
from relay.errors import AuthenticationError, CarrierError, ConnectError, HostKeyError, SAMError
from relay.eventloop import backoff
from relay.eventloop.loop import Timers


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retry, "_BACKOFF", (0.01, 0.02))


@pytest.fixture
def carried():
    """Makes carriers that are closed with the test."""

    def make(*outcomes, check_interval=None):
        carrier = Carrier("c", connector := Connector(*outcomes), check_interval)
        carrier.begin()
        return carrier, connector

    yield from makes(make, lambda made: made[0].close())


def held_back(cancel):
    """An attempt that lasts until it is cancelled."""
    select.select([cancel], [], [], WAIT)
    assert cancel.is_set()
    return ConnectError("c: the attempt was given up")


def test_whoever_waits_gets_the_link(carried):
    carrier, connector = carried()
    link = outcome_of(carrier)
    assert link is connector.links[0] and repr(carrier) == "<relay.Carrier c, up>"
    told = []
    carrier.when_up(told.append, None)
    assert told == [link], "one that is up is told at once"


def test_a_lost_link_is_made_again_and_the_old_one_closed(carried):
    carrier, connector = carried()
    states = []
    link = outcome_of(carrier)
    carrier.subscribe(lambda state, error: states.append((state, str(error))))
    link.lose()
    wait_until(lambda: len(connector.links) == 2)
    assert link.closed.wait(WAIT)
    wait_until(lambda: carrier.state is CarrierState.UP)
    assert states == [
        (CarrierState.BACKING_OFF, "c: the line went dead"),
        (CarrierState.CONNECTING, "c: the line went dead"),
        (CarrierState.UP, "None"),
    ]
    assert outcome_of(carrier) is connector.links[1]


def test_an_impatient_one_has_an_attempt_made_at_once(carried, monkeypatch):
    monkeypatch.setattr(retry, "_BACKOFF", (60.0, 60.0))
    monkeypatch.setattr(retry, "_MAX_BACKOFF_WITH_WAITERS", 60.0)
    carrier, connector = carried(REFUSED, REFUSED)
    wait_until(lambda: carrier.state is CarrierState.BACKING_OFF)
    assert outcome_of(carrier, wait_for_reconnect=False) is REFUSED
    assert outcome_of(carrier, wait_for_reconnect=False) is connector.links[0]


class PassingError(SAMError):
    passing = True


MENDED = [
    REFUSED,
    ConnectionResetError(104, "reset"),
    TimeoutError(),
    OSError(24, "too many files"),
    PassingError("c: not now", result="I2P_ERROR"),
]
FINAL = [HostKeyError("c: changed"), AuthenticationError("c: no"), ValueError("c: odd"), SAMError("c: no", result="X")]


@pytest.mark.parametrize("error", MENDED, ids=lambda one: type(one).__name__)
def test_what_time_may_mend_is_tried_again(carried, error):
    carrier, connector = carried(error, error)
    assert outcome_of(carrier) is connector.links[0]
    assert connector.attempts == 3


@pytest.mark.parametrize("error", FINAL, ids=lambda one: type(one).__name__)
def test_what_time_does_not_mend_is_final(carried, error):
    carrier, connector = carried(error)
    assert outcome_of(carrier) is error
    assert carrier.state is CarrierState.FAILED and carrier.error is error
    assert outcome_of(carrier) is error, "whoever comes later is told at once"
    assert connector.attempts == 1


@pytest.mark.parametrize(
    ("error", "pause", "words"),
    [
        (AuthenticationError("c: no"), 300.0, "5 minutes"),
        (HostKeyError("c: no"), 10.0, "10 s"),
        (ValueError("c: no"), 10.0, "10 s"),
    ],
)
def test_clients_start_an_attempt_after_a_pause_whose_length_is_logged(carried, caplog, error, pause, words):
    """Each rejected login may be one of those for which a server bans its client."""
    carrier, connector = carried(error)
    wait_until(lambda: f"c: no; will not retry until a client connects more than {words} later" in caplog.text)
    assert ("Traceback" in caplog.text) is isinstance(error, ValueError)
    for seconds, attempts in ((0.0, 1), (0.5 * pause, 1), (1.1 * pause, 2)):
        carrier.since = time.monotonic() - seconds
        outcome = outcome_of(carrier)
        assert (outcome is error, connector.attempts) == (attempts == 1, attempts)


def ended_at(stage):
    return CarrierError(f"c: it hung up ({stage})", stage=stage)


def test_a_server_that_ends_the_connection_at_the_same_point_three_times_is_final(carried, caplog):
    carrier, connector = carried(*[ended_at("login")] * 9)
    wait_until(lambda: "will not retry until a client connects" in caplog.text)
    assert carrier.state is CarrierState.FAILED and connector.attempts == 3
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert (
        line
        == "c: it hung up (login); 3 times in a row; will not retry until a client connects more than 5 minutes later"
    )
    assert str(outcome_of(carrier)) == "c: it hung up (login); 3 times in a row"


def test_what_ends_at_different_points_is_tried_again(carried):
    one, other = ended_at("login"), ended_at("keys")
    carrier, connector = carried(one, one, other, other, one, REFUSED, one, one, CarrierError("c: lost"), one)
    assert outcome_of(carrier) is connector.links[0]
    assert connector.attempts == 11


def test_a_server_that_has_let_us_in_before_is_tried_again(carried):
    carrier, connector = carried(None, *[ended_at("login")] * 5)
    outcome_of(carrier)
    connector.links[0].lose()
    wait_until(lambda: carrier.state is CarrierState.UP and len(connector.links) == 2)
    assert connector.attempts == 7


@pytest.mark.parametrize("errors", [[ended_at("login")] * 3, [ValueError("c: odd")]])
def test_an_alternative_is_tried_once_before_it_is_final(carried, caplog, errors):
    go = threading.Event()
    carrier, connector = carried(lambda cancel: go.wait(WAIT) and errors[0], *errors[1:], errors[0])
    connector.alternatives.append("the other way is tried")
    go.set()
    assert type(outcome_of(carrier)) is type(errors[0])
    assert carrier.state is CarrierState.FAILED
    assert connector.attempts == len(errors) + 1
    assert [one.getMessage() for one in caplog.records if "the other way is tried" in one.getMessage()] != []
    assert len(connector.asked) == 2


def test_of_losses_in_a_row_only_the_first_is_followed_at_once(carried, monkeypatch, caplog):
    monkeypatch.setattr(retry, "_BACKOFF", (600.0, 600.0))
    carrier, connector = carried()
    connector.alternatives += ["never used", "trying another place"]
    for attempts in (2, 2):
        wait_until(lambda: carrier.link is not None)
        connector.links[-1].lose()
        wait_until(lambda attempts=attempts: connector.attempts == attempts)
    wait_until(lambda: carrier.state is CarrierState.BACKING_OFF)
    assert "c: the line went dead; trying another place" in [one.getMessage() for one in caplog.records]
    assert connector.alternatives == ["never used"]


def test_an_alternative_that_succeeds(carried):
    go = threading.Event()
    carrier, connector = carried(lambda cancel: go.wait(WAIT) and ValueError("c: odd"))
    connector.alternatives.append("the other way is tried")
    told = queue.SimpleQueue()
    carrier.when_up(told.put, None, wait_for_reconnect=False)
    go.set()
    assert told.get(timeout=WAIT) is connector.links[0], "whoever waits for one attempt waits for this one"


def test_a_waiter_has_its_deadline(carried):
    carrier, _ = carried(held_back)
    error = outcome_of(carrier, timeout=0.05)
    assert isinstance(error, ConnectError) and error.reason == "connect_timeout"
    assert str(error) == "c: not connected in time: no answer yet"


def test_the_deadlines_error_says_what_failed_last(carried, monkeypatch):
    monkeypatch.setattr(retry, "_BACKOFF", (9.0, 9.0))
    monkeypatch.setattr(retry, "_MAX_BACKOFF_WITH_WAITERS", 9.0)
    carrier, _ = carried(REFUSED)
    wait_until(lambda: carrier.state is CarrierState.BACKING_OFF)
    assert str(outcome_of(carrier, timeout=0.05)) == "c: not connected in time: connection refused"


@pytest.mark.parametrize("comes", ["before the failure", "after it"])
def test_a_client_that_waits_shortens_the_back_off(carried, monkeypatch, comes):
    monkeypatch.setattr(retry, "_BACKOFF", (60.0, 60.0))
    monkeypatch.setattr(retry, "_MAX_BACKOFF_WITH_WAITERS", 0.02)
    go, told = threading.Event(), queue.SimpleQueue()
    carrier, connector = carried(lambda cancel: go.wait(WAIT) and REFUSED)
    if comes == "after it":
        go.set()
        wait_until(lambda: carrier.state is CarrierState.BACKING_OFF)
    carrier.when_up(told.put, None)
    turned(carrier)
    go.set()
    assert told.get(timeout=WAIT) is connector.links[0]


@pytest.fixture
def delays(monkeypatch):
    """The back-offs before they are jittered; none is waited for."""
    asked = []

    def jittered(seconds):
        asked.append(seconds)
        return 0.0

    monkeypatch.setattr(backoff, "jittered", jittered)
    monkeypatch.setattr(retry, "_BACKOFF", (0.5, 3.0))
    return asked


@pytest.mark.parametrize(("steady", "delay"), [(0.0, 0.5), (60.0, 2.0)])
def test_the_back_off_begins_anew_after_a_connection_that_lasted(carried, delays, monkeypatch, steady, delay):
    monkeypatch.setattr(retry, "_STABLE_AFTER", steady)
    carrier, connector = carried(REFUSED, REFUSED)
    wait_until(lambda: carrier.state is CarrierState.UP)
    connector.links[0].lose()
    wait_until(lambda: len(connector.links) == 2)
    assert delays == [0.5, 1.0, delay]


def test_instead_of_a_link_that_is_seen_to_be_lost(carried):
    carrier, connector = carried()
    link = outcome_of(carrier)
    why = CarrierError("c: the line went dead")
    seen = []
    carrier.subscribe(lambda state, error: seen.append((state, error)))
    assert outcome_of(carrier, instead_of=(link, why)) is connector.links[1]
    assert seen[0] == (CarrierState.BACKING_OFF, why)


def test_a_bug_of_one_who_waits_harms_nobody_else(carried, caplog):
    go = threading.Event()
    carrier, _ = carried(lambda cancel: go.wait(WAIT) and None, check_interval=0.01)

    def fail(outcome):
        raise RuntimeError("a bug")

    told = queue.SimpleQueue()
    carrier.when_up(fail, None)
    carrier.when_up(told.put, None)
    go.set()
    assert told.get(timeout=WAIT).checked.wait(WAIT)
    assert "c: a caller that waited for it failed" in caplog.text


def test_a_link_that_is_lost_before_it_is_known_is_made_again(monkeypatch):
    class Hasty(Connector):
        def connect(self, deadline, cancel, lost):
            link = super().connect(deadline, cancel, lost)
            if self.attempts == 1:
                link.lose()
            return link

    connector = Hasty()
    carrier = Carrier("c", connector, None)
    carrier.begin()
    try:
        wait_until(lambda: carrier.state is CarrierState.UP and connector.attempts == 2)
        assert connector.links[0].closed.wait(WAIT)
    finally:
        carrier.close()


@pytest.fixture
def no_threads(monkeypatch):
    """Has the system refuse new threads, with some names only."""
    refused = []

    def refuse(*words):
        start = threading.Thread.start

        def refusing(thread):
            if any(word in thread.name for word in words):
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refusing)
        return refused

    return refuse


def test_no_thread_to_connect_is_no_final_failure(carried, no_threads, monkeypatch):
    carrier, connector = carried()
    link = outcome_of(carrier)
    refused = no_threads("connecting")
    link.lose()
    wait_until(lambda: len(refused) > 2)
    monkeypatch.undo()
    assert outcome_of(carrier) is connector.links[1]


def test_a_check_that_fails_is_not_the_last_one(carried, caplog):
    carrier, _ = carried(check_interval=0.01)
    link, checks = outcome_of(carrier), []

    def check():
        checks.append(1)
        raise RuntimeError("a bug")

    link.check = check
    wait_until(lambda: len(checks) > 2)


def test_close_does_not_wait_for_an_attempt_that_does_not_listen(carried):
    go = threading.Event()
    carrier, connector = carried(lambda cancel: go.wait(WAIT) and None)
    wait_until(lambda: connector.attempts)
    begun = time.monotonic()
    carrier.close()
    assert time.monotonic() - begun < PROMPT
    assert carrier.state is CarrierState.CLOSED
    go.set()
    assert connector.closed.wait(WAIT) and connector.links[0].closed.is_set(), "what comes of it is let go"


def test_a_watcher_that_raises_is_logged(carried, caplog):
    carrier, _ = carried()

    def watch(state, error):
        raise RuntimeError("a user's bug")

    link = outcome_of(carrier)
    carrier.subscribe(watch)
    link.lose()
    wait_until(lambda: "c: a watcher of the state failed" in caplog.text)


def test_letting_go_without_patience_waits_for_nothing():
    connector, go = Connector(), threading.Event()
    carrier, release = acquire("k", lambda: Carrier("c", connector, None))
    link = outcome_of(carrier)
    link.close = lambda: go.wait(WAIT)
    for _ in range(2):
        Thread(release, 0.0).result(PROMPT)
    assert not connector.closed.is_set()
    wait_until(lambda: carrier.state is CarrierState.CLOSED)
    go.set()
    assert connector.closed.wait(WAIT)


def test_a_forked_child_needs_no_lock_of_ours(carried):
    carrier, _ = carried(held_back)
    wait_until(lambda: carrier.blocking.cancel._pipe)
    descriptors = carrier.blocking.cancel._pipe

    def work():
        told = []
        carrier.when_up(told.append, None)()
        carrier.retry_failed()
        carrier.close()
        return isinstance(told[0], CarrierError) and not any(os.path.exists(f"/dev/fd/{one}") for one in descriptors)

    with carrier._io_thread.loop._lock, carrier.blocking.cancel._lock:
        assert in_child(work) == 0


def test_nothing_is_left_of_those_who_waited(carried):
    go = threading.Event()
    carrier, _ = carried(lambda cancel: go.wait(WAIT) and None)
    told = queue.SimpleQueue()
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            carrier.when_up(told.put, time.monotonic() + WAIT)
            carrier.when_up(told.put, time.monotonic() + WAIT)()
        go.set()
        for _ in range(50):
            told.get(timeout=WAIT)
        wait_until(lambda: sum(isinstance(one, Waiter) for one in gc.get_objects()) < 3)
    finally:
        gc.enable()


def renewed(carrier, connector, streams=0):
    """The old link, with so many streams, and the one that took its place."""
    link = outcome_of(carrier)
    link.streams = streams
    carrier.replace(link, "it has gone deaf")
    wait_until(lambda: len(connector.links) == 2 and carrier.link is connector.links[1])
    return link, connector.links[1]


def test_a_link_is_renewed_beside_the_old_one_which_ends_with_its_last_stream(carried, caplog):
    carrier, connector = carried()
    states = []
    outcome_of(carrier)
    carrier.subscribe(lambda state, error: states.append(state))
    old, new = renewed(carrier, connector, streams=1)
    assert "c: it has gone deaf; replacing it" in caplog.text
    assert outcome_of(carrier) is new
    assert not old.closed.is_set()
    old.end_streams()
    assert old.closed.wait(WAIT)
    assert carrier.link is new and carrier.state is CarrierState.UP and not new.closed.is_set()
    assert set(states) == {CarrierState.UP}, "it was up all the time"


def test_only_the_link_that_is_up_is_renewed_and_once(carried):
    go = threading.Event()
    carrier, connector = carried(None, lambda cancel: go.wait(WAIT) and None)
    link = outcome_of(carrier)
    carrier.replace(object(), "not it")
    for _ in range(3):
        carrier.replace(link, "deaf")
    go.set()
    wait_until(lambda: carrier.link is connector.links[-1] is not link)
    carrier.replace(link, "deaf")
    turned(carrier)
    assert connector.attempts == 2


IN_VAIN = {
    "refused": "connection refused",
    "no answer": "the new connection brings no answer",
    "lost": "the line went dead",
}


@pytest.mark.parametrize(("how", "words"), IN_VAIN.items(), ids=IN_VAIN)
def test_the_old_link_is_kept_where_there_is_no_new_one(carried, caplog, monkeypatch, how, words):
    """Some servers end a connection right after the login."""
    carrier, connector = carried(None, *[REFUSED] * (how == "refused"))
    link = outcome_of(carrier)
    assert carrier.replacement_error is None
    connector.answers = False
    if how == "no answer":
        monkeypatch.setattr(blocking, "_ANSWER", 0.0)
    carrier.replace(link, "deaf")
    if how == "lost":
        wait_until(lambda: len(connector.links) == 2)
        connector.links[1].lose()
    wait_until(lambda: f"c: {words}; the old one is kept" in caplog.text)
    assert str(carrier.replacement_error) == f"c: {words}"
    assert all(one.closed.is_set() for one in connector.links[1:])
    assert carrier.link is link and carrier.state is CarrierState.UP and not link.closed.is_set()
    assert carrier.losses == 0
    connector.answers = True
    carrier.replace(link, "deaf")
    wait_until(lambda: carrier.link is connector.links[-1] is not link)


def test_an_old_link_that_is_lost_is_closed_and_changes_nothing(carried):
    carrier, connector = carried()
    old, new = renewed(carrier, connector, streams=1)
    old.lose()
    assert old.closed.wait(WAIT)
    old.end_streams()
    turned(carrier)
    assert carrier.link is new and carrier.state is CarrierState.UP and connector.attempts == 2


def test_old_links_are_checked_as_well(carried):
    carrier, connector = carried(check_interval=0.01)
    old, new = renewed(carrier, connector, streams=1)
    old.checked.clear()
    assert old.checked.wait(WAIT) and new.checked.wait(WAIT)


@pytest.mark.parametrize("streams", [0, 1])
def test_close_ends_all_links_also_while_one_is_renewed(carried, streams):
    carrier, connector = carried(None, None, held_back)
    old, new = renewed(carrier, connector, streams)
    carrier.replace(new, "deaf")
    wait_until(lambda: connector.attempts == 3)
    begun = time.monotonic()
    carrier.close()
    assert time.monotonic() - begun < PROMPT
    assert carrier.state is CarrierState.CLOSED and connector.closed.wait(WAIT)
    assert old.closed.wait(WAIT) and new.closed.wait(WAIT)


def idle_of(carrier):
    """Set as soon as the carrier says that it has no stream."""
    idle = threading.Event()
    carrier.when_idle(idle.set)
    turned(carrier)
    turned(carrier)
    return idle


def test_it_is_idle_when_no_link_of_it_has_a_stream(carried):
    carrier, connector = carried()
    old, new = renewed(carrier, connector, streams=1)
    new.streams = 1
    idle = idle_of(carrier)
    new.end_streams()
    turned(carrier)
    assert not idle.is_set()
    new.streams = 1
    old.end_streams()
    turned(carrier)
    assert not idle.is_set()
    new.end_streams()
    assert idle.wait(WAIT)


def test_it_is_idle_without_a_link(carried):
    carrier, _ = carried(None, held_back)
    link = outcome_of(carrier)
    link.streams = 1
    idle = idle_of(carrier)
    assert not idle.is_set()
    link.lose()
    link.end_streams()
    assert idle.wait(WAIT)
    assert idle_of(carrier).wait(WAIT)


def test_a_forked_child_abandons_old_links_as_well(carried):
    carrier, connector = carried()
    old, new = renewed(carrier, connector, streams=1)
    assert in_child(lambda: old.abandoned and new.abandoned and not old.closed.is_set()) == 0
    assert not old.abandoned


def test_an_attempt_has_its_time(carried):
    class Watching(Connector):
        def connect(self, deadline, cancel, lost):
            self.left = deadline - time.monotonic()
            return super().connect(deadline, cancel, lost)

    connector = Watching()
    carrier = Carrier("c", connector, None, 600.0)
    carrier.begin()
    try:
        outcome_of(carrier)
        assert 590 < connector.left <= 600
    finally:
        carrier.close()


def test_what_to_do_about_a_failure_is_said_once(carried, caplog):
    failures = [ConnectError("c: nothing there; is a router running there?") for _ in range(4)]
    for one in failures:
        one.advice = "; is a router running there?"
    other = ConnectError("c: no answer; is a router running there?")
    other.advice = one.advice
    carrier, connector = carried(*failures[:3], other, failures[3])
    assert outcome_of(carrier) is connector.links[0]
    lines = [one.getMessage().partition("; trying again")[0] for one in caplog.records if "trying again" in one.msg]
    full = [str(failures[0]), "c: nothing there", "c: nothing there", str(other), str(failures[3])]
    assert lines == full


@pytest.mark.parametrize("probe", [True, False])
def test_after_a_stop_of_the_process_the_link_is_probed_unless_it_is_switched_off(monkeypatch, probe):
    still = Still(monkeypatch, probe=probe)
    for event in WAY["up"]:
        still.do(event)
    assert bool(still.network) is probe
    still.do("check timer")
    assert not still.carrier.link.probes
    still.timers.run(time.monotonic() + 60.0)
    assert still.carrier.link.probes == ["this process was stopped for 38 s"] * probe


# -- the table of states ----------------------------------------------------------------------------------------------


class Still:
    """A carrier without threads: its calls, its attempts and its timers run when the test says so."""

    def __init__(self, monkeypatch, **options):
        self.calls, self.attempts, self.outcomes = [], [], []
        self.connector = Connector()
        self.timers = Timers()
        loop = SimpleNamespace(call=lambda function: self.calls.append(function) or True, timers=self.timers)
        io_thread = SimpleNamespace(loop=loop, thread=None, release=lambda client: None)
        self.network = []
        monkeypatch.setattr(module.network, "subscribe", lambda home, changed: self.network.append(changed))
        monkeypatch.setattr(module.network, "unsubscribe", lambda home, changed: self.network.clear())
        monkeypatch.setattr(module.IOThread, "acquire", lambda client: io_thread)
        monkeypatch.setattr(blocking.threading, "Thread", self.thread)
        self.carrier = Carrier("c", self.connector, 10.0, **options)

    def thread(self, target, name, daemon):
        """Closing is done at once; an attempt goes on until the test ends it."""
        return SimpleNamespace(start=target if name.endswith("closing") else lambda: self.attempts.append(target))

    def end_attempt(self, *outcomes):
        self.connector.outcomes[:] = outcomes
        self.attempts.pop(0)()

    def fail_with_alternative(self):
        self.connector.alternatives = ["trying another method"]
        self.end_attempt(HostKeyError("c: no"))

    def lose_with_alternative(self):
        self.connector.alternatives = ["trying another place"]
        self.carrier.link.lose()

    def ask(self):
        self.carrier.when_up(self.outcomes.append, None)

    def ask_much_later(self):
        self.carrier.since -= 301.0
        self.ask()

    def do(self, event):
        carrier = self.carrier
        {
            "begin": carrier.begin,
            "close": lambda: carrier.close(wait=False),
            "fork": carrier.abandon,
            "client asks": self.ask,
            "client asks, later": self.ask_much_later,
            "connected": self.end_attempt,
            "failed": lambda: self.end_attempt(REFUSED),
            "failed, alternative": self.fail_with_alternative,
            "failed for good": lambda: self.end_attempt(HostKeyError("c: no")),
            "check timer": lambda: self.timers.run(time.monotonic() + 12.0),
            "timer": lambda: self.timers.run(time.monotonic() + 60.0),
            "network changes": lambda: self.network[0]("a new address"),
            "replace": lambda: carrier.replace(carrier.link, "it does not answer"),
            "lost": lambda: carrier.link.lose(),
            "lost, alternative": self.lose_with_alternative,
        }[event]()
        while self.calls:
            self.calls.pop(0)()

    def facts(self):
        """Return what an event can change."""
        links = self.connector.links
        return {
            "attempts": self.connector.attempts + len(self.attempts),
            "checked": sum(link.checked.is_set() for link in links),
            "probed": sum(len(link.probes) for link in links),
            "closed": sum(link.closed.is_set() for link in links),
            "abandoned": sum(link.abandoned for link in links),
            "connector closed": self.connector.closed.is_set(),
            "cancelled": self.carrier.blocking.cancel.is_set(),
            "links told": sum(outcome in links for outcome in self.outcomes),
            "errors told": sum(isinstance(outcome, Exception) for outcome in self.outcomes),
            "waiting": len(self.carrier._waiters),
            "timer": self.carrier._timer.due < float("inf"),
            "follows the network": len(self.network),
        }


WAY = {
    "new": [],
    "connecting": ["begin", "client asks"],
    "up": ["begin", "connected"],
    "replacing": ["begin", "connected", "replace"],
    "backing off": ["begin", "failed"],
    "failed": ["begin", "failed for good"],
    "closing": ["begin", "close"],
    "closed": ["close"],
    "abandoned": ["fork"],
}
STATE_ROWS = [
    ("new", "begin", "connecting", {"attempts": 1, "follows the network": 1}),
    ("new", "close", "closed", {"connector closed": 1, "cancelled": 1}),
    ("connecting", "client asks", "connecting", {"waiting": 1}),
    ("connecting", "connected", "up", {"links told": 1, "waiting": -1, "timer": 1}),
    ("connecting", "failed", "backing off", {"timer": 1}),
    ("connecting", "failed, alternative", "connecting", {"attempts": 1}),
    ("connecting", "failed for good", "failed", {"errors told": 1, "waiting": -1}),
    ("connecting", "close", "closing", {"cancelled": 1, "errors told": 1, "waiting": -1, "follows the network": -1}),
    ("up", "client asks", "up", {"links told": 1}),
    ("up", "check timer", "up", {"checked": 1}),
    ("up", "network changes", "up", {"probed": 1}),
    ("up", "replace", "replacing", {"attempts": 1}),
    ("up", "lost", "backing off", {"closed": 1}),
    ("up", "lost, alternative", "connecting", {"attempts": 1, "closed": 1}),
    (
        "up",
        "close",
        "closed",
        {"closed": 1, "connector closed": 1, "cancelled": 1, "timer": -1, "follows the network": -1},
    ),
    ("replacing", "client asks", "replacing", {"links told": 1}),
    ("replacing", "check timer", "replacing", {"checked": 1}),
    ("replacing", "network changes", "replacing", {"probed": 1}),
    ("replacing", "connected", "up", {"closed": 1}),
    ("replacing", "failed", "up", {}),
    ("replacing", "lost", "connecting", {"closed": 1}),
    ("replacing", "close", "closing", {"closed": 1, "cancelled": 1, "timer": -1, "follows the network": -1}),
    ("backing off", "client asks", "backing off", {"waiting": 1}),
    ("backing off", "timer", "connecting", {"attempts": 1, "timer": -1}),
    ("backing off", "network changes", "connecting", {"attempts": 1, "timer": -1}),
    ("backing off", "close", "closed", {"connector closed": 1, "cancelled": 1, "timer": -1, "follows the network": -1}),
    ("failed", "client asks", "failed", {"errors told": 1}),
    ("failed", "client asks, later", "connecting", {"attempts": 1, "waiting": 1}),
    ("failed", "close", "closed", {"connector closed": 1, "cancelled": 1, "follows the network": -1}),
    ("closing", "client asks", "closing", {"errors told": 1}),
    ("closing", "connected", "closed", {"closed": 1, "connector closed": 1}),
    ("closing", "failed", "closed", {"connector closed": 1}),
    ("closed", "client asks", "closed", {"errors told": 1}),
    ("any", "fork", "abandoned", {}),
    ("abandoned", "client asks", "abandoned", {"errors told": 1}),
]


@pytest.mark.parametrize(("state", "event", "following", "changes"), STATE_ROWS)
def test_each_row_of_the_table(monkeypatch, state, event, following, changes):
    still = Still(monkeypatch)
    for one in WAY["up" if state == "any" else state]:
        still.do(one)
    assert state in (still.carrier._state.value, "any")
    before = still.facts()
    still.do(event)
    assert still.carrier._state.value == following
    changed = {name: now - before[name] for name, now in still.facts().items() if now != before[name]}
    changed.pop("abandoned", None)  # "any" is the subject of the next test
    assert changed == changes
    still.carrier.blocking.cancel.close()


@pytest.mark.parametrize("state", [state for state in WAY if state != "abandoned"])
def test_a_forked_child_abandons_it_in_every_state(monkeypatch, state):
    still = Still(monkeypatch)
    for one in WAY[state]:
        still.do(one)
    has_link = still.carrier.link is not None
    still.do("fork")
    assert still.carrier._state is CarrierState.ABANDONED and still.carrier.state is CarrierState.CLOSED
    assert still.facts()["abandoned"] == has_link and still.carrier.link is None


def test_the_table_has_these_rows():
    assert rows_of(module) == [row[:3] for row in STATE_ROWS]
