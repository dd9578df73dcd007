"""``relay.engine.entrance`` step by step: who is asked about a client, and what becomes of it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from notes import Notes

import relay
from relay.access.gate import Denial
from relay.access.limit import Action
from relay.access.limiter import ALL
from relay.access.policy import ClientPolicy
from relay.addresses.printable import printable
from relay.engine import entrance as module
from relay.engine import header_clients, header_sender, questions
from relay.engine.admission import Slots
from relay.engine.connection import Connection as RealConnection
from relay.engine.entrance import Entrance
from relay.engine.records import ConnectionState, ConnectionSummary
from relay.streams.proxy_handshake import HandshakeListener
from relay.streams.request import RejectedRequest
from relay.streams.upgrade_listener import ScreenedAddress, UpgradeListener

NOW = 1234.5
PEER = ("192.0.2.7", 5)
WHO = relay.Identity("tcp", "192.0.2.7", *PEER)
DENIAL = Denial("a rule")


class Gate(Notes):
    """A gate whose decisions the test makes."""

    is_idle = False
    decision = barred = banned = None

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        Gate.made.append(self)

    def screen(self, *given):
        self.calls.append(("screen", *given))
        return self.decision

    def enter(self, *given):
        self.calls.append(("enter", *given))
        return self.decision

    def enter_within(self, *given):
        self.calls.append(("enter_within", *given))
        return self.decision

    def bar(self, *given, **options):
        self.calls.append(("bar", *given, *options.items()))
        return self.barred

    def login_failed(self, *given):
        self.calls.append(("login_failed", *given))
        return self.banned


class Connection(Notes):
    """A connection as the entrance sees it."""

    state, flows, ticket, is_closed = ConnectionState.CONNECTING, None, None, False

    def __init__(self, peer=PEER):
        super().__init__()
        self.summary = ConnectionSummary(peer, NOW)


class Owner(Notes):
    """The relay thread."""

    name, listening, is_closing, is_exposed = "it", True, False, True

    def __init__(self):
        super().__init__()
        self.loop = SimpleNamespace(timers=object())

    def admit(self, *given):
        self.calls.append(("admit", *given))
        self.admitted = Connection(given[2])
        return self.admitted


class Rules:
    """Rules of access."""

    files = ()

    def __init__(self, *allowed):
        self.allowed, self.asked = list(allowed), []

    def decide(self, identity):
        self.asked.append(identity)
        return SimpleNamespace(is_allowed=self.allowed.pop(0), rule="a rule")


class Readings(Notes):
    """The readings of files."""

    too_long = just_read = False

    def reads_too_long(self, now):
        self.calls.append(("reads_too_long", now))
        return self.too_long

    def has_just_read(self, rules, now):
        self.calls.append(("has_just_read", rules, now))
        return self.just_read


@pytest.fixture
def keeper(monkeypatch):
    """The keeper of bans and quotas; none unless the test sets one."""
    found = SimpleNamespace(made=None, asked=[])
    monkeypatch.setattr(module, "LedgerKeeper", lambda *given: found.asked.append(given) or found.made)
    return found


@pytest.fixture
def owner(monkeypatch, keeper):
    Gate.made = []
    monkeypatch.setattr(module, "Gate", Gate)
    monkeypatch.setattr(questions, "Readings", Readings)
    monkeypatch.setattr(questions, "Questions", Notes)
    monkeypatch.setattr(header_clients, "HeaderClients", Notes)
    monkeypatch.setattr(header_sender, "HeaderSender", lambda version: SimpleNamespace(version=version, introduce=list))
    return Owner()


@pytest.fixture
def slots():
    return Slots(-1)


@pytest.fixture
def make(owner, slots):
    return lambda **policy: Entrance(owner, slots, ClientPolicy(**policy))


@pytest.fixture
def one(make):
    """An entrance with a gate."""
    made = make()
    made.gate = Gate()
    return made


# -- its policy ----------------------------------------------------------------------------------------------------


def test_without_a_policy_there_is_no_gate(owner, slots, keeper):
    one = Entrance(owner, slots, None)
    assert one.policy == ClientPolicy()
    assert (one.gate, one.reads_headers, one.sender, one.introduce) == (None, False, None, None)
    assert one._rules_of_files is None
    assert keeper.asked == []
    assert one.half_open is slots.half_open
    one.keep()


def test_a_policy_has_a_gate(owner, make):
    one = make(limits=("a limit",))
    assert one.gate is Gate.made[0]
    assert one.gate.given == (one.policy, owner.loop.timers)
    assert one.gate.options == {"book": None, "on_quota": one._on_quota}
    one.set_policy(other := ClientPolicy(admit=len))
    assert one.gate.calls == [("change", other)]
    assert one.policy is other
    one.gate.is_idle = True
    one.set_policy(None)
    assert (one.gate, one.policy) == (None, ClientPolicy())


def test_with_a_store_there_is_a_gate_that_keeps_its_ledger(owner, slots, keeper):
    keeper.made = Notes()
    one = Entrance(owner, slots, ClientPolicy(), None, "a store")
    assert keeper.asked == [("it", "a store", owner.loop.timers)]
    assert one.gate.options["book"] is keeper.made
    assert keeper.made.ledger is one.gate
    one.keep()
    assert keeper.made.calls == [("write",)]


def test_a_gate_that_has_nothing_to_do_is_dropped_at_once(make, monkeypatch):
    monkeypatch.setattr(Gate, "is_idle", True)
    assert make(limits=("a limit",)).gate is None


@pytest.mark.parametrize(("files", "are_read"), [((), False), (("a file",), True)])
def test_rules_of_files(make, files, are_read):
    rules = Rules()
    rules.files = files
    assert make(rules=rules)._rules_of_files is (rules if are_read else None)


def test_senders_of_headers(owner, make):
    one = make(accept_proxy="senders")
    assert one.reads_headers is True
    assert one._headers.given == (owner, one, "senders")
    headers = one._headers
    one.set_policy(ClientPolicy(accept_proxy="others"))
    assert (one._headers, headers.senders) == (headers, "others")
    one.set_policy(None)
    assert (one.reads_headers, headers.senders) == (False, None)


def test_a_header_for_each_target(make):
    one = make()
    one.set_header("v2")
    assert one.sender.version == "v2"
    assert one.introduce is one.sender.introduce
    one.set_header(None)
    assert (one.sender, one.introduce) == (None, None)


def test_other_rules_end_what_they_deny(make, monkeypatch):
    one = make(admit=len)
    denied = []
    monkeypatch.setattr(one, "deny", lambda *given: denied.append(given))
    connections = [Connection((f"192.0.2.{number}", 5)) for number in range(6)]
    undecided = (ConnectionState.REQUESTING, ConnectionState.REPLYING, ConnectionState.TARPIT)
    for connection, state in zip(connections, undecided, strict=False):
        connection.state = state
    connections[3].is_closed = True
    rules = Rules(True, False)
    one.set_rules(rules, connections, NOW)
    assert (one.policy.rules, one.policy.admit) == (rules, len)
    assert [identity.host for identity in rules.asked] == ["192.0.2.4", "192.0.2.5"]
    assert denied == [(connections[5], DENIAL, NOW)]
    one.set_rules(None, connections, NOW)
    assert one.policy.rules is None
    assert len(denied) == 1


@pytest.mark.parametrize(
    ("key", "used_up", "text"),
    [
        ("192.0.2.7", False, "it: 80 % of the quota of 192.0.2.7 is used (limit much)"),
        (ALL, True, "it: all of the quota of all clients is used (limit much)"),
    ],
)
def test_a_quota_is_logged(one, caplog, key, used_up, text):
    one._on_quota(SimpleNamespace(name="much"), key, used_up)
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]


def test_how_often_it_logs(one):
    logs = (one._crowded, one._guesses, one._denials, one._bans, one._quotas)
    assert [log._most for log in logs] == [1, 1, 600, 60, 60]
    assert {(log._logger.name, log._level) for log in logs} == {("relay", logging.WARNING)}


# -- listeners -----------------------------------------------------------------------------------------------------


class Upgrading(UpgradeListener, Notes):
    """A listener whose clients shake hands."""

    def upgrade(self, *given):
        self.calls.append(given)


class Shaking(HandshakeListener, Notes):
    """A listener of proxy clients."""

    def handshake(self):
        return "a handshake"


def test_who_takes_the_clients_of_a_listener(one, monkeypatch):
    assert one.hand_of(object()) is None
    calls = []
    monkeypatch.setattr(one, "read_request", lambda *given: calls.append(given))
    one.hand_of(Shaking())("client", PEER, NOW)
    assert calls == [("client", "a handshake", PEER, NOW)]
    monkeypatch.setattr(one, "_upgrade", lambda *given: calls.append(given))
    one.hand_of(listener := Upgrading())("client", PEER, NOW)
    assert calls[1:] == [(listener, "client", PEER, NOW)]


def test_a_client_shakes_hands(one, owner):
    listener = Upgrading()
    one._upgrade(listener, "client", PEER, NOW)
    assert listener.calls == [("client", PEER, NOW)]
    assert type(listener.calls[0][1]) is ScreenedAddress
    assert one.gate.calls == [("screen", WHO, NOW, True)]
    assert owner.calls == []


def test_not_if_its_address_is_denied(one, owner, monkeypatch):
    denied = []
    monkeypatch.setattr(one, "deny", lambda *given: denied.append(given))
    one.gate.decision = DENIAL
    one._upgrade(listener := Upgrading(), "client", PEER, NOW)
    assert listener.calls == []
    assert owner.calls == [("admit", "client", None, PEER, NOW)]
    assert denied == [(owner.admitted, DENIAL, NOW)]


def test_not_before_its_header(make, monkeypatch):
    one = make(accept_proxy="senders")
    calls = []
    monkeypatch.setattr(one, "read_request", lambda *given: calls.append(given))
    one._upgrade(listener := Upgrading(), "client", PEER, NOW)
    assert calls == [("client", None, PEER, NOW, listener)]


def test_a_client_without_an_address_is_not_screened(one):
    assert one.screen("", NOW) is None
    assert one.gate.calls == []
    one.gate = None
    assert one.screen(PEER, NOW) is None


@pytest.mark.parametrize(
    ("rules", "readings", "are_read"),
    [(False, None, True), (True, None, False), (True, False, False), (True, True, True)],
)
def test_whether_rules_are_read(one, rules, readings, are_read):
    one._rules_of_files = found = object() if rules else None
    if readings is not None:
        one._readings = Readings()
        one._readings.just_read = readings
    one.gate.decision = DENIAL
    assert one.screen(PEER, NOW) is DENIAL
    assert one.gate.calls == [("screen", WHO, NOW, are_read)]
    if readings is not None:
        assert one._readings.calls == [("has_just_read", found, NOW)]


# -- requests ------------------------------------------------------------------------------------------------------


def test_a_request_is_read(one, owner):
    handshake = object()
    one.read_request("client", handshake, PEER, NOW)
    assert owner.calls == [("admit", "client", None, PEER, NOW)]
    assert owner.admitted.calls == [("read_request", handshake, NOW)]
    assert one.gate.calls == [("bar", WHO, NOW, True)]


def test_whether_rules_are_read_by_then(one):
    one._rules_of_files, one._readings = (rules := object()), Readings()
    one.read_request("client", object(), PEER, NOW)
    assert one.gate.calls == [("bar", WHO, NOW, False)]
    assert one._readings.calls == [("has_just_read", rules, NOW)]


def test_without_a_gate_too(make, owner):
    make().read_request("client", handshake := object(), PEER, NOW)
    assert owner.admitted.calls == [("read_request", handshake, NOW)]


def test_not_that_of_a_client_that_is_barred(one, owner):
    one.gate.barred = DENIAL
    one.read_request("client", object(), PEER, NOW)
    assert owner.admitted.calls == [("fail", "denied", NOW, ("clean", False))]
    assert owner.admitted.summary.rule == "a rule"


def test_a_header_comes_first(make, owner):
    one = make(accept_proxy="senders")
    one.read_request("client", "a handshake", PEER, NOW, "listener")
    assert one._headers.calls == [("read", "client", "a handshake", PEER, NOW, "listener")]
    assert owner.calls == []


def test_nothing_is_read_if_nothing_comes(one, owner):
    one.read_request("client", None, PEER, NOW)
    assert owner.calls == []
    one.reads_headers = True
    one.read_request("client", object(), PEER, NOW)
    assert len(owner.calls) == 1


class Answer(Notes):
    """The clients with a header, of which the test decides."""

    def offered(self, *given):
        self.calls.append(("offered", *given))
        return "offered"

    def end(self, *given):
        self.calls.append(("end", *given))
        return "ended"


def test_who_was_introduced(one):
    assert one.is_introduced("stream", PEER, NOW) is True
    assert one.end_half_open("connection") is True
    one.reads_headers = True
    assert one.is_introduced("stream", PEER, NOW) is True
    one._headers = Answer()
    assert one.is_introduced("stream", PEER, NOW) == "offered"
    assert one.end_half_open("connection") == "ended"
    assert one._headers.calls == [("offered", "stream", PEER, NOW), ("end", "connection")]
    one.reads_headers = False
    assert one.is_introduced("stream", PEER, NOW) is True


def crowd(slots, count, peer=PEER):
    """Fill the half-open connections."""
    for _ in range(count):
        slots.half_open[Connection(peer)] = None


@pytest.mark.parametrize(("count", "leave"), [(1023, 0), (1024, 64)])
def test_too_many_give_way(one, slots, monkeypatch, caplog, count, leave):
    monkeypatch.setattr(RealConnection, "source", lambda connection: connection.summary.peer[0])
    crowd(slots, count)
    one.read_request("client", object(), PEER, NOW)
    left = [connection.calls for connection in slots.half_open if connection.calls]
    assert left == [[("give_way", NOW)]] * leave
    text = "it: 1024 clients at a time are half-open; the oldest of the largest source are reset (192.0.2.7:5)"
    assert caplog.record_tuples == ([("relay", logging.WARNING, text)] if leave else [])


@pytest.mark.parametrize(("count", "leave"), [(1023, 0), (1024, 64)])
def test_they_give_way_to_a_client_that_waits_for_an_answer(one, slots, monkeypatch, count, leave):
    monkeypatch.setattr(RealConnection, "source", lambda connection: connection.summary.peer[0])
    crowd(slots, count)
    one._make_half_open(mine := Connection(), NOW)
    assert list(slots.half_open.items())[-1] == (mine, None)
    assert len([connection for connection in slots.half_open if connection.calls]) == leave


@pytest.mark.parametrize("of_files", [True, False])
def test_and_to_one_that_waits_for_a_reading(make, slots, monkeypatch, of_files):
    monkeypatch.setattr(RealConnection, "source", lambda connection: connection.summary.peer[0])
    one = make(admit=len)
    one._rules_of_files = object() if of_files else None
    crowd(slots, 1024)
    one.admits(Connection(), NOW)
    gone = [connection.calls for connection in slots.half_open if connection.calls]
    assert gone == [[("give_way", NOW)]] * 64


def test_a_local_client_has_no_address(one, slots, monkeypatch, caplog):
    monkeypatch.setattr(RealConnection, "source", lambda connection: None)
    one.make_room(NOW)
    assert caplog.messages == []
    crowd(slots, 1, "")
    one.make_room(NOW)
    assert "source are reset (a local client)" in caplog.text


# -- the way on ----------------------------------------------------------------------------------------------------


def asking(slots, connection):
    slots.connections[connection] = slots.half_open[connection] = None
    return connection


def test_a_client_with_a_request_gets_a_stream(make, owner, slots):
    connection = asking(slots, Connection())
    make().on_request(connection, NOW)
    assert slots.half_open == {}
    assert owner.calls == [("make_stream", connection, NOW), ("update_listening",)]
    assert connection.summary.dialed == NOW
    assert connection.calls == []


@pytest.mark.parametrize(("limit", "waits"), [(0, True), (1, True), (2, False), (-1, False)])
def test_or_waits_for_a_slot(make, owner, slots, limit, waits):
    slots.limit = limit
    slots.connections[Connection()] = None
    connection = asking(slots, Connection())
    make().on_request(connection, NOW)
    assert connection.calls == ([("wait_for_slot",)] if waits else [])
    assert slots.queued == ({connection: None} if waits else {})
    assert [name for name, *_ in owner.calls] == (
        ["update_listening"] if waits else ["make_stream", "update_listening"]
    )


def test_one_that_is_denied_gets_none(one, owner, slots):
    one.gate.decision = DENIAL
    connection = asking(slots, Connection())
    one.on_request(connection, NOW)
    assert owner.calls == []
    assert connection.calls == [("fail", "denied", NOW, ("clean", False))]


@pytest.mark.parametrize(("listening", "updated"), [(True, []), (False, [("update_listening",)])])
def test_the_slot_of_one_that_gets_none_is_given_to_the_next(one, owner, slots, listening, updated):
    owner.listening = listening
    slots.limit = 1
    first, second, third = (Connection() for _ in range(3))
    slots.connections.update(dict.fromkeys((first, second, third)))
    slots.queued.update(dict.fromkeys((first, second, third)))
    one.on_last_reply(first, NOW)
    assert (slots.half_open, slots.queued) == ({first: None}, {third: None})
    assert owner.calls == [("make_stream", second, NOW), *updated]
    assert second.summary.dialed == NOW


def test_a_last_reply_of_one_that_waits_for_none(one, slots):
    connection = Connection()
    slots.connections[connection] = None
    one.on_last_reply(connection, NOW)
    assert list(slots.half_open) == [connection]


def test_the_queue_is_served_by_one_call_at_a_time(one, owner, slots):
    slots.connections.update(dict.fromkeys(waiting := [Connection(), Connection()]))
    slots.queued.update(dict.fromkeys(waiting))
    open_calls = []

    def make_stream(connection, now):
        open_calls.append(connection)
        one.serve_queue(now)
        if len(open_calls) == 1:
            assert list(slots.queued) == [waiting[1]]
            raise ValueError("a bug")

    owner.make_stream = make_stream
    with pytest.raises(ValueError, match="a bug"):
        one.serve_queue(NOW)
    assert open_calls == waiting[:1]
    one.serve_queue(NOW)
    assert open_calls == waiting


# -- the decision --------------------------------------------------------------------------------------------------


def test_a_client_is_admitted_with_its_ticket(one):
    one.gate.decision = ticket = object()
    connection = Connection()
    assert one.admits(connection, NOW) is True
    assert connection.ticket is ticket
    assert one.gate.calls == [("enter", WHO, NOW, False)]
    one.admits(Connection(ScreenedAddress(PEER)), NOW)
    assert one.gate.calls[1:] == [("enter", WHO, NOW, True)]


def test_or_denied(one):
    one.gate.decision = DENIAL
    connection = Connection()
    assert one.admits(connection, NOW) is False
    assert connection.ticket is None
    assert connection.summary.rule == "a rule"


def test_without_a_gate_there_is_no_ticket(make):
    connection = Connection()
    assert make().admits(connection, NOW) is True
    assert connection.ticket is None


def test_another_thread_is_asked(make, owner, slots):
    one = make(admit=len)
    one.gate.decision = ticket = object()
    connection = Connection()
    assert one.admits(connection, NOW) is False
    assert one._questions.given == (owner, one._on_answer)
    assert one._questions.calls == [("ask", len, connection, NOW)]
    assert list(slots.half_open) == [connection]
    assert connection.ticket is ticket
    one.admits(Connection(), NOW)
    assert len(one._questions.calls) == 2


def test_files_of_rules_are_read_first(one, owner, slots):
    one._rules_of_files = rules = object()
    connection = Connection()
    assert one.admits(connection, NOW) is False
    assert one._readings.given == (owner, one._on_read)
    assert one._readings.calls == [("read", rules, None, connection, NOW)]
    assert list(slots.half_open) == [connection]
    one.admits(connection, NOW)
    assert one._readings.calls[1:] == [("reads_too_long", NOW), ("read", rules, None, connection, NOW)]
    one._readings.too_long = True
    assert one.admits(connection, NOW) is True
    assert one.gate.calls == [("enter", WHO, NOW, False)]
    assert one._readings.calls[3:] == [("reads_too_long", NOW)]


def test_the_name_of_a_user_is_looked_up(one, monkeypatch):
    monkeypatch.setattr(module, "unnamed_user", lambda identity: 7 if identity == "unnamed" else None)
    connection = Connection()
    connection.summary.identity = "unnamed"
    assert one.admits(connection, NOW) is False
    assert one._readings.calls == [("read", None, 7, connection, NOW)]


@pytest.mark.parametrize("denied", [True, False])
def test_after_that_it_is_decided(one, owner, slots, monkeypatch, denied):
    monkeypatch.setattr(module, "named", lambda identity: identity._replace(name="somebody"))
    one.gate.decision = DENIAL if denied else None
    connection = asking(slots, Connection())
    connection.summary.identity = WHO
    one._on_read(connection, NOW)
    assert connection.summary.identity.name == "somebody"
    assert one.gate.calls == [("enter", connection.summary.identity, NOW, False)]
    assert owner.named("make_stream") == ([] if denied else [(connection, NOW)])
    assert slots.half_open == {}


def test_a_client_without_an_identity_has_no_name(one, owner, slots):
    connection = asking(slots, Connection())
    one._on_read(connection, NOW)
    assert connection.summary.identity is None
    assert owner.named("make_stream") == [(connection, NOW)]


# -- the answer ----------------------------------------------------------------------------------------------------


def test_yes(one, owner, slots):
    connection = asking(slots, Connection())
    one._on_answer(connection, True, NOW)
    assert slots.half_open == {}
    assert owner.named("make_stream") == [(connection, NOW)]
    assert one.gate.calls == []


def test_no(one, owner, slots):
    connection = asking(slots, Connection())
    one._on_answer(connection, False, NOW)
    assert connection.calls == [("fail", "denied", NOW, ("clean", False))]
    assert connection.summary.rule == "admit"
    assert owner.calls == []


def test_within_limits(one, owner, slots):
    connection = asking(slots, Connection())
    connection.ticket = before = Notes()
    one.gate.decision = after = object()
    one._on_answer(connection, ("a limit",), NOW)
    assert one.gate.calls == [("enter_within", ("a limit",), WHO, NOW, before)]
    assert connection.ticket is after
    assert before.calls == []
    assert owner.named("make_stream") == [(connection, NOW)]


@pytest.mark.parametrize("has_ticket", [True, False])
def test_not_within_limits(one, owner, slots, has_ticket):
    connection = asking(slots, Connection())
    connection.ticket = ticket = Notes() if has_ticket else None
    one.gate.decision = DENIAL
    one._on_answer(connection, ("a limit",), NOW)
    assert connection.ticket is None
    assert ticket is None or ticket.calls == [("leave",)]
    assert connection.calls == [("fail", "denied", NOW, ("clean", False))]
    assert connection.summary.rule == "a rule"
    assert owner.calls == []


def test_limits_need_a_gate(make, owner, slots):
    one = make(accept_proxy=None)
    connection = asking(slots, Connection())
    one._on_answer(connection, (), NOW)
    assert one.gate is Gate.made[-1]
    assert one.gate.given[0] is one.policy
    assert owner.named("make_stream") == [(connection, NOW)]


# -- a denial ------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(monkeypatch):
    """The places of the tarpit."""
    found = SimpleNamespace(free=True, taken=0)

    def take():
        found.taken += found.free
        return found.free

    monkeypatch.setattr(module, "take_place", take)
    return found


@pytest.mark.parametrize(("action", "clean"), [(Action.RESET, False), (Action.CLOSE, True)])
def test_a_denied_client_is_ended(one, places, action, clean):
    connection = Connection()
    one.deny(connection, Denial("a rule", action), NOW)
    assert connection.calls == [("fail", "denied", NOW, ("clean", clean))]
    assert connection.summary.rule == "a rule"
    assert places.taken == 0


def test_an_open_connection_is_closed(one):
    connection = Connection()
    connection.flows = object()
    one.deny(connection, Denial("a rule", Action.TARPIT, 30.0), NOW)
    assert connection.calls == [("close", "denied", NOW)]


def test_a_tarpit_keeps_it(one, slots, places):
    connection = asking(slots, Connection())
    one.deny(connection, Denial("a rule", Action.TARPIT, 30.0), NOW)
    assert connection.calls == [("keep_in_tarpit", 30.0, NOW)]
    assert (slots.half_open, slots.tarpit) == ({}, {connection: None})
    one.deny(other := Connection(), Denial("a rule", Action.TARPIT, 30.0), NOW)
    assert list(slots.tarpit) == [connection, other]
    one.empty_tarpit(NOW)
    assert connection.calls[1:] == other.calls[1:] == [("give_way", NOW)]


@pytest.mark.parametrize("why", ["closing", "full"])
def test_a_tarpit_that_keeps_nobody(one, owner, slots, places, why):
    owner.is_closing, places.free = why == "closing", why != "full"
    connection = Connection()
    one.deny(connection, Denial("a rule", Action.TARPIT, 30.0), NOW)
    assert connection.calls == [("fail", "denied", NOW, ("clean", False))]
    assert (slots.tarpit, places.taken) == ({}, 0)


# -- wrong passwords -----------------------------------------------------------------------------------------------


def rejection(problem="a wrong password", guessed=True):
    return SimpleNamespace(problem=problem, guessed=guessed)


def test_a_bad_request_is_logged(one, caplog):
    with caplog.at_level(logging.INFO, "relay"):
        one.on_rejected_request(Connection(), rejection("it is \x07bad", guessed=False), NOW)
        one.on_rejected_request(Connection(), RejectedRequest(b"", ""), NOW)
    assert caplog.record_tuples == [("relay", logging.INFO, "it: it is \\x07bad (client 192.0.2.7:5)")]
    assert one.gate.calls == []


def test_a_wrong_password_is_counted(one, owner, caplog):
    owner.is_exposed = False
    connection = Connection()
    one.on_rejected_request(connection, rejection(), NOW)
    assert caplog.messages == [
        "denied peer=192.0.2.7:5 tunnel=it rule=login",
        "it: a wrong password (client 192.0.2.7:5)",
    ]
    assert connection.summary.rule == "login"
    assert one.gate.calls == [("login_failed", WHO, NOW, False)]


def test_a_long_problem_is_cut(one, caplog):
    one.on_rejected_request(Connection(), rejection("x" * 600), NOW)
    assert caplog.messages[1] == f"it: {printable('x' * 600, 500)} (client 192.0.2.7:5)"


@pytest.mark.parametrize("exposed", [True, False])
def test_without_a_gate_it_is_counted_where_others_can_guess(make, owner, exposed):
    owner.is_exposed = exposed
    one = make()
    one.on_rejected_request(Connection(), rejection(), NOW)
    if exposed:
        assert one.gate.given[0] == ClientPolicy()
        assert one.gate.calls == [("login_failed", WHO, NOW, True)]
    else:
        assert one.gate is None


@pytest.mark.parametrize(
    ("peer", "client", "rate", "most"),
    [(PEER, "192.0.2.7:5", SimpleNamespace(most=5), 5), ("", "a local client", None, 0)],
)
def test_a_client_that_has_guessed_is_banned(one, caplog, peer, client, rate, most):
    one.gate.banned = SimpleNamespace(terms=SimpleNamespace(rate=rate, ban=60.0))
    one._count_guess(Connection(peer), NOW)
    text = f"it: {client} sent {most} wrong passwords; it is rejected for 60 s"
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]


def test_its_other_connections_are_no_further_guesses(one, slots, caplog):
    one.gate.banned = SimpleNamespace(terms=SimpleNamespace(rate=None, ban=60.0))
    one.gate.barred = Denial("a ban")
    guesser, other, replying, last = (asking(slots, Connection()) for _ in range(4))
    for connection in (guesser, other, last):
        connection.state = ConnectionState.REQUESTING
    replying.state = ConnectionState.REPLYING
    one._count_guess(guesser, NOW)
    assert (guesser.calls, replying.calls) == ([], [])
    assert other.calls == last.calls == [("close", "denied", NOW)]
    assert other.summary.rule == "a ban"
    assert one.gate.named("bar") == [(WHO, NOW, ("are_rules_read", False))] * 2
    assert caplog.messages[1:] == ["denied peer=192.0.2.7:5 tunnel=it rule=a ban"] * 2


def test_connections_of_others_stay(one, slots):
    one.gate.banned = SimpleNamespace(terms=SimpleNamespace(rate=None, ban=60.0))
    other = asking(slots, Connection())
    other.state = ConnectionState.REQUESTING
    one._count_guess(Connection(), NOW)
    assert other.calls == []


# -- the line of a denial ------------------------------------------------------------------------------------------


def line_of(one, caplog, connection):
    caplog.clear()
    one.log_denied(connection, NOW)
    (record,) = caplog.record_tuples
    assert record[:2] == ("relay", logging.WARNING)
    return record[2]


def test_the_line_of_a_client_with_an_address(one, owner, caplog):
    connection = Connection()
    assert line_of(one, caplog, connection) == "denied peer=192.0.2.7:5 tunnel=it rule=-"
    owner.name = "my tunnel/2.x-y_z"
    connection.summary.rule = "bad\n"
    assert line_of(one, caplog, connection) == "denied peer=192.0.2.7:5 tunnel=my_tunnel_2.x-y_z rule=bad\\n"
    connection.summary.rule = "r" * 300
    assert line_of(one, caplog, connection).endswith(f" rule={printable('r' * 300, 200)}")


@pytest.mark.parametrize("peer", ["192.0.2.99:5", b"\x00192.0.2.99:5"])
def test_the_line_of_a_client_that_has_chosen_the_name_of_its_socket(one, caplog, peer):
    connection = Connection(peer)
    assert line_of(one, caplog, connection) == "denied peer=- tunnel=it rule=-"
    connection.summary.identity = relay.Identity("unix", "some body")
    assert line_of(one, caplog, connection) == "denied peer=unix:some_body tunnel=it rule=-"


def test_the_line_of_a_client_of_i2p(one, caplog):
    connection = Connection("")
    connection.summary.identity = relay.Identity("i2p", "somebody", destination="abc.b32.i2p")
    assert line_of(one, caplog, connection) == "denied peer=abc.b32.i2p tunnel=it rule=-"


@pytest.mark.parametrize(
    ("source", "identity", "peer"),
    [
        (("192.0.2.50", 9), None, "192.0.2.7:5"),
        (None, None, "-"),
        (None, relay.Identity("i2p", "", destination="abc.b32.i2p"), "abc.b32.i2p"),
    ],
)
def test_the_line_of_a_client_behind_a_balancer(one, caplog, source, identity, peer):
    connection = Connection()
    connection.summary.header = SimpleNamespace(source=source)
    connection.summary.identity = identity
    assert line_of(one, caplog, connection) == f"denied peer={peer} tunnel=it rule=-"
