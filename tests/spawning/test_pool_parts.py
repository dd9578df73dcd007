"""``relay.spawning.pool_parts``: the parts of a tunnel in the workers."""

from __future__ import annotations

import itertools

import pytest
from state_table import rows_of

from relay.spawning import pool_parts
from relay.spawning.pool_parts import PartEvent, PartState, next_part_state

ROWS = [(PartState(state), PartEvent(event), PartState(after)) for state, event, after in rows_of(pool_parts)]


@pytest.mark.parametrize(("state", "event", "after"), ROWS)
def test_each_row_of_the_table(state, event, after):
    assert next_part_state(state, event) is after


def test_what_is_not_in_the_table_changes_nothing():
    listed = {(state, event) for state, event, _ in ROWS}
    assert listed == set(pool_parts._NEXT)
    for state, event in itertools.product(PartState, PartEvent):
        if (state, event) not in listed:
            assert next_part_state(state, event) is state
