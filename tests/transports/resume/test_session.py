"""Both ends of a resumable stream over carriers that are cut anywhere: every byte, every end, in bounded memory."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.transports.resume.session import (
    DONE,
    FIRST_WINDOW,
    HELD,
    LARGEST_WINDOW,
    LEAST_WINDOW,
    RESET,
    Budget,
    Direction,
    Session,
)
from relay.transports.resume.wire import CONTROL, DATA, END, FIN, PING, PONG, WINDOW, ProtocolError, frame, number

END_OF_FILE = object()


class End:
    """A session with its holder: what that sends, and what it gets."""

    def __init__(self, script=(), window=64, budget=None):
        self.session = Session(budget or Budget(), window=window)
        self.script = list(script)
        self.got = b""
        self.got_end = False
        self.takes = 1 << 20  # bytes at once

    def act(self):
        """Let the holder send and take what it can now."""
        session = self.session
        while self.script:
            first = self.script[0]
            if first is END_OF_FILE:
                session.write_end()
            elif first == RESET:
                session.reset()
            elif room := session.room:
                session.write(first[:room])
                if first[room:]:
                    self.script[0] = first[room:]
                    continue
            else:
                break
            self.script.pop(0)
        taken = bytes(session.inbox)[: self.takes]
        self.got += taken
        session.passed_on(len(taken))
        if session.incoming is Direction.ENDING and not session.inbox:
            session.passed_on_end()
            self.got_end = True


class World:
    """Two ends, and the bytes between them."""

    def __init__(self, near, far):
        self.ends = (near, far)
        self.wires = [bytearray(), bytearray()]  # what the near end and the far end have sent
        self.carried = 0
        self.carriers = 0
        self.attach()

    def attach(self):
        """Begin another carrier: what was under way is lost, and each end learns what the other one has."""
        self.carriers += 1
        for wire in self.wires:
            wire.clear()
        near, far = (end.session for end in self.ends)
        greetings = (near.window, near.received), (far.window, far.received)
        near.attach(*greetings[1])
        far.attach(*greetings[0])

    def turn(self, most=1 << 20, only=None):
        """Let both ends act and send, and carry some bytes of each direction."""
        for index, end in enumerate(self.ends):
            end.act()
            while made := end.session.output():
                self.wires[index] += made
        for index in (0, 1) if only is None else (only,):
            wire = self.wires[index]
            size = min(most, len(wire))
            self.ends[1 - index].session.feed(bytes(wire[:size]))
            del wire[:size]
            self.carried += size

    @property
    def is_over(self):
        return all(end.session.is_over for end in self.ends)

    def finish(self):
        """Go on without a cut until nothing moves any more."""
        for _ in range(10_000):
            before = self.carried
            self.turn()
            if self.carried == before and not any(self.wires):
                return
        raise AssertionError("it does not end")


def check(world, sent_by_near, sent_by_far):
    near, far = world.ends
    assert far.got == sent_by_near
    assert near.got == sent_by_far
    assert near.got_end
    assert far.got_end
    assert world.is_over
    assert near.session.word == near.session.peer_word == far.session.word == far.session.peer_word == DONE


NEAR = b"".join(bytes((65 + at,)) * (1 + at) for at in range(20))
FAR = b"".join(bytes((97 + at,)) * (1 + 2 * at) for at in range(13))


@pytest.mark.parametrize("window", [64, 4096])
@pytest.mark.parametrize("script", ["both at once", "the near end ends first", "the far end has a question"])
def test_a_cut_after_any_byte_loses_and_doubles_none(script, window):
    def world():
        if script == "both at once":
            return World(
                End([NEAR[at : at + 100] for at in range(0, len(NEAR), 100)] + [END_OF_FILE], window),
                End([FAR, END_OF_FILE], window),
            )
        if script == "the near end ends first":
            return World(End([NEAR, END_OF_FILE], window), End([FAR, END_OF_FILE], window))
        return World(End([NEAR, END_OF_FILE], window), End([FAR[:9], FAR[9:], END_OF_FILE], window))

    whole = world()
    whole.finish()
    check(whole, NEAR, FAR)
    for cut in range(whole.carried + 1):
        world_ = world()
        while world_.carried < cut:
            before = world_.carried
            # Byte by byte only near the cut: each byte of both directions is once the last one.
            world_.turn(
                most=1 if cut - world_.carried < 40 else 17, only=None if cut - world_.carried > 40 else cut % 2
            )
            if world_.carried == before:
                world_.turn(most=1)
                if world_.carried == before:
                    break
        world_.attach()
        world_.finish()
        check(world_, NEAR, FAR)


@pytest.mark.parametrize("seed", range(8))
def test_cuts_at_random_bytes_lose_and_double_none(seed):
    chance = random.Random(seed)
    for _ in range(10):
        near_sends, far_sends = (chance.randbytes(chance.randrange(3000)) for _ in range(2))
        world = World(
            End([near_sends, END_OF_FILE], chance.choice((32, 500, 4096))),
            End([far_sends, END_OF_FILE], chance.choice((32, 500, 4096))),
        )
        for end in world.ends:
            end.takes = chance.choice((1, 10, 1000))
        for _ in range(200):
            world.turn(chance.choice((1, 7, 60, 500)), chance.choice((None, 0, 1)))
            if chance.random() < 0.1:
                world.attach()
        for end in world.ends:
            end.takes = 1 << 20
        world.finish()
        check(world, near_sends, far_sends)


@pytest.mark.parametrize("word", ["reset", "done"])
def test_a_reset_right_behind_the_end_of_a_direction_passes_nothing_on(word):
    """Else a part of the direction would look whole, as the reset drops what was not passed on."""
    session, passed = Session(Budget()), []
    session.attach(64)
    session.write_end()
    assert session.output() == frame(0, FIN)
    ended = [frame(1, DATA, b"x"), frame(1, FIN), *([frame(1, END, b"reset")] if word == "reset" else [])]
    session.feed(b"".join(ended), lambda: passed.append(bytes(session.inbox)))
    assert passed == ([] if word == "reset" else [b"x"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_reset_arrives_over_any_cuts_and_what_came_before_it_is_right(data):
    script = [*data.draw(st.lists(st.binary(min_size=1, max_size=200), max_size=5)), RESET]
    other = [*data.draw(st.lists(st.binary(min_size=1, max_size=200), max_size=5)), END_OF_FILE]
    scripts = [list(script), list(other)]
    resets = data.draw(st.sampled_from([0, 1]))
    world = World(*(End(one, 128) for one in (scripts if not resets else scripts[::-1])))
    for _ in range(data.draw(st.integers(0, 12))):
        world.turn(data.draw(st.integers(1, 300)))
        if data.draw(st.booleans()):
            world.attach()
    world.finish()
    if not world.is_over:  # cut between the last two words: the next carrier tells
        world.attach()
        world.finish()
    assert world.is_over
    assert all(end.session.word == RESET and end.session.is_reset for end in world.ends)
    assert b"".join(script[:-1]).startswith(world.ends[1 - resets].got)
    assert b"".join(other[:-1]).startswith(world.ends[resets].got)
    assert all(end.session.kept == 0 for end in world.ends)


def test_the_end_is_said_again_on_each_carrier_until_the_other_end_has_it():
    world = World(End([b"a", END_OF_FILE]), End([b"b", END_OF_FILE]))
    for _ in range(5):
        world.turn()
        world.attach()
    world.finish()
    near, far = (end.session for end in world.ends)
    # The far end has forgotten nothing: a near end that has missed its word gets it over the next carrier.
    assert far.is_over
    world.attach()
    assert not far.is_over or far.word == DONE
    assert far.output().endswith(b"done")
    assert near.output().endswith(b"done")


def test_a_holder_that_takes_nothing_stops_the_other_one_and_not_the_other_direction():
    near, far = End([bytes(100_000)], 1000), End([bytes(100_000), END_OF_FILE], 1000)
    far.takes = 0
    world = World(near, far)
    for _ in range(300):
        world.turn()
    assert len(far.session.inbox) == 1000  # its whole window
    assert near.session.kept == 1000
    assert near.session.room == 0
    assert len(near.got) == 100_000
    assert near.got_end


def test_the_windows_grow_while_their_holders_take_everything_and_budget_is_left():
    budget = Budget(4 * LARGEST_WINDOW)
    world = World(End([bytes(8 << 20), END_OF_FILE], FIRST_WINDOW, budget), End([END_OF_FILE], FIRST_WINDOW, budget))
    world.finish()
    near, far = (end.session for end in world.ends)
    assert far.window == LARGEST_WINDOW
    assert near.window == FIRST_WINDOW  # nothing came
    assert budget.offered == LARGEST_WINDOW + FIRST_WINDOW
    near.release()
    far.release()
    far.release()
    assert (budget.offered, budget.held) == (0, 0)


@pytest.mark.parametrize("limit", [4 << 20, 64 << 20])
def test_a_thousand_stalled_streams_keep_to_the_limit(limit):
    """Holders send what is taken, and take nothing: what both ends keep is bounded, and no stream is without room."""
    near, far = Budget(limit), Budget(limit)
    pairs = []
    for _ in range(1000):
        one = Session(near, window=near.first_window())
        other = Session(far, window=far.first_window())
        one.attach(other.window)
        other.attach(one.window)
        pairs.append((one, other))
    for _ in range(3):
        for one, other in pairs:
            one.write(bytes(one.room))
            while data := one.output():
                other.feed(data)
            while data := other.output():
                one.feed(data)
    most = limit // 2 + 1000 * LEAST_WINDOW
    assert near.offered <= most and far.offered <= most
    assert near.held == sum(one.kept for one, _ in pairs) <= limit // 2
    came = [len(other.inbox) for _, other in pairs]
    assert sum(came) == near.held
    # The first ones have filled the budget. Once they end, there is room for the others.
    for one, other in pairs[:900]:
        one.release()
        other.release()
    assert all(one.room + one.kept >= LEAST_WINDOW for one, _ in pairs[900:])
    for one, other in pairs[900:]:
        one.release()
        other.release()
    assert near.held == near.offered == far.offered == 0


def test_a_limit_that_becomes_smaller_takes_nothing_away():
    budget = Budget(1000)
    session = Session(budget, window=100)
    session.attach(1000)
    session.write(bytes(400))
    budget.limit = 200
    assert (budget.limit, budget.room, session.room, session.kept) == (200, 0, 0, 400)
    assert budget.first_window() == LEAST_WINDOW
    assert not budget.offer(1)


def test_the_window_of_a_stream_that_keeps_less_is_smaller():
    assert Budget().first_window() == FIRST_WINDOW
    assert Budget().first_window(64 << 10) == 16 << 10
    session = Session(Budget(), window=16 << 10, held=128 << 10)
    session.attach(1000)
    for _ in range(100):
        session.feed(frame(0, DATA, bytes(16 << 10)))
        session.passed_on(16 << 10)
        session.output()
    assert session.window == 32 << 10


def test_a_window_does_not_grow_without_budget():
    budget = Budget(2 * FIRST_WINDOW)
    world = World(End([bytes(2 << 20), END_OF_FILE], FIRST_WINDOW), End([END_OF_FILE], FIRST_WINDOW, budget))
    world.finish()
    assert world.ends[1].session.window == FIRST_WINDOW


def test_what_is_kept_is_bounded_for_one_and_for_all():
    budget = Budget(20_000)
    first, second = (Session(budget, window=10) for _ in range(2))
    small = Session(Budget(), held=300)
    for one in (first, second, small):
        one.attach(8000)
    assert (first.room, small.room) == (8000, 300)
    first.write(bytes(8000))
    assert (first.room, second.room) == (0, 2000)
    second.write(bytes(2000))
    assert (second.room, budget.room) == (0, 0)
    first.reset()
    assert budget.room == 8000
    assert second.room == 6000
    second.release()
    assert budget.held == 0


def test_a_session_keeps_no_more_than_the_limit_however_large_a_window_is_offered():
    session = Session(Budget())
    session.attach(1 << 40)
    assert session.room == HELD


def test_a_ping_is_answered_once_however_many_come():
    session = Session(Budget())
    session.attach(100)
    session.feed(frame(0, CONTROL, bytes((PING,))) * 1000)
    assert session.output() == frame(0, CONTROL, bytes((PONG,)))
    assert session.output() == b""
    session.ping()
    session.ping()
    assert session.output() == frame(0, CONTROL, bytes((PING,)))
    assert session.output() == b""
    session.feed(frame(0, CONTROL, bytes((PONG,))))
    assert session.output() == b""


def test_little_is_acknowledged_with_the_next_frame_and_much_at_once():
    session = Session(Budget(), window=400)
    session.attach(100)
    session.feed(frame(0, DATA, bytes(99)))
    session.passed_on(99)
    assert session.output() == b""
    session.feed(frame(0, CONTROL, bytes((PING,))))
    assert session.output() == frame(99, CONTROL, bytes((PONG,)))
    session.feed(frame(0, DATA, bytes(100)))
    session.passed_on(60)
    assert session.output() == b""
    session.passed_on(40)
    assert session.output() == frame(199, CONTROL, bytes((WINDOW,)) + number(800))
    session.write(b"x")
    assert session.output() == frame(199, DATA, b"x")
    session.write_end()
    assert session.output() == frame(199, FIN)
    assert session.is_waiting
    session.feed(frame(2, DATA))
    assert session.outgoing is Direction.ENDED
    assert not session.is_waiting


@pytest.mark.parametrize(
    ("problem", "data"),
    [
        ("an acknowledgement of 6", frame(6, DATA)),
        ("after one of 2", frame(2, DATA) + frame(1, DATA)),
        ("more data than", frame(0, DATA, bytes(101))),
        ("more data than", frame(0, DATA, bytes(60)) * 2),
        ("data after the end", frame(0, FIN) + frame(0, DATA, b"x")),
        ("a second end", frame(0, FIN) * 2),
        ("done, before", frame(0, END, b"done")),
        ("a reason that is no word", frame(0, END, b"DONE")),
        ("unknown kind 3", frame(0, CONTROL, b"\x03")),
        ("needless", frame(0, CONTROL, b"\x00\x00")),
        ("a window", frame(0, CONTROL, b"\x02")),
        ("a window", frame(0, CONTROL, b"\x02\x01\x01")),
        ("with 65537 bytes", frame(0, DATA, bytes(65537))),
    ],
)
def test_what_breaks_the_protocol_ends_the_stream(problem, data):
    session = Session(Budget(), window=100)
    session.attach(100)
    session.write(b"hello")
    assert session.output()
    with pytest.raises(ProtocolError, match=problem):
        session.feed(data)


@pytest.mark.parametrize("position", [1, 6])
def test_a_position_that_cannot_be_is_rejected(position):
    session = Session(Budget())
    session.attach(100)
    session.write(b"hello")
    session.output()
    session.feed(frame(2, DATA))
    with pytest.raises(ProtocolError, match="not between 2 and 5"):
        session.attach(100, position)
    session.attach(100, 3)
    assert session.output() == frame(0, DATA, b"lo")


def test_what_comes_after_the_end_harms_nothing():
    session = Session(Budget(), window=100)
    session.attach(100)
    session.feed(frame(0, END, b"reset") + frame(9, DATA, bytes(500)))
    assert session.is_reset
    assert session.room == 0
    session.write(b"late")
    assert session.kept == 0
    assert session.output() == frame(0, END, b"reset")
    assert session.is_over


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda ack, kind, payload: frame(ack, kind, payload[:1] if kind == CONTROL else payload),
                st.integers(0, 6),
                st.sampled_from([DATA, FIN, END, CONTROL]),
                st.sampled_from([b"", b"x", b"done", b"reset", bytes(90)]),
            ),
        ),
        max_size=8,
    )
)
def test_hostile_bytes_raise_nothing_else_and_fill_nothing(pieces):
    budget = Budget()
    session = Session(budget, window=100)
    session.attach(100)
    session.write(b"hello")
    session.output()
    try:
        for piece in pieces:
            session.feed(piece)
            while session.output():
                pass
    except ProtocolError:
        pass
    assert len(session.inbox) <= 100
    session.release()
    assert (budget.held, budget.offered) == (0, 0)


# -- what each end says, byte for byte ---------------------------------------------------------------------------------


def attached(window=100, peer_window=100):
    made = Session(Budget(), window=window)
    made.attach(peer_window)
    return made


def test_a_quarter_of_the_window_is_acknowledged_at_once():
    session = attached(window=100)
    session.feed(frame(0, DATA, b"x" * 26))  # one is left, so that the window does not grow
    session.passed_on(24)
    assert session.output() == b""
    session.passed_on(1)
    assert session.output() == frame(25, DATA)


def test_the_end_that_the_holder_has_is_acknowledged_at_once():
    session = attached()
    session.passed_on_end()  # there is none yet
    assert (session.incoming, session.output()) == (Direction.OPEN, b"")
    session.feed(frame(0, FIN))
    session.passed_on_end()
    assert session.output() == frame(1, DATA)


def test_the_last_byte_of_a_window_is_used():
    session = attached(peer_window=10)
    session.write(b"x" * 9)
    assert session.output() == frame(0, DATA, b"x" * 9)
    session.write(b"y" * session.room)
    assert (session.output(), session.room) == (frame(0, DATA, b"y"), 0)


def test_no_more_than_the_end_is_acknowledged():
    session = attached()
    session.write_end()
    assert session.output() == frame(0, FIN)
    with pytest.raises(ProtocolError, match="an acknowledgement of 2, where 1 were sent"):
        session.feed(frame(2, DATA))


def test_another_carrier_says_what_has_come_and_how_the_window_has_grown():
    session = attached(window=FIRST_WINDOW)
    session.feed(frame(0, DATA, b"x"))
    session.passed_on(1)
    session.attach(100)
    assert session.output() == frame(1, DATA)
    session.attach(100, said=FIRST_WINDOW - 1)
    assert session.output() == frame(1, CONTROL, bytes((WINDOW,)) + number(FIRST_WINDOW))
    session.attach(100, said=FIRST_WINDOW)
    assert session.output() == frame(1, DATA)


def test_the_last_word_is_for_an_end_that_has_missed_it():
    session = attached()
    session.feed(frame(0, DATA, b"abc"))
    session.passed_on(3)
    session.reset("target_reset")
    assert session.last_word() == frame(3, END, b"target_reset")


def test_a_budget_is_offered_to_its_last_byte():
    budget = Budget(20 * LEAST_WINDOW)  # a half of it for windows
    assert budget.offer(9 * LEAST_WINDOW)
    assert not budget.offer(LEAST_WINDOW + 1)
    assert budget.offer(LEAST_WINDOW)
    assert Budget(32 * LEAST_WINDOW).first_window() == 2 * LEAST_WINDOW


def test_a_new_session_has_sent_nothing():
    with pytest.raises(ProtocolError, match="a position of 1, not between 0 and 0"):
        attached().attach(100, 1)


def test_the_window_of_a_stream_with_little_memory_is_a_part_of_it():
    assert number(Budget().first_window(held=400_000)) == number(100_000)
    session = Session(Budget(), window=LEAST_WINDOW, held=100_000)
    session.attach(100)
    session.feed(frame(0, DATA, bytes(LEAST_WINDOW)))
    session.passed_on(LEAST_WINDOW)
    assert session.output() == frame(LEAST_WINDOW, CONTROL, bytes((WINDOW,)) + number(25_000))
