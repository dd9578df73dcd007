"""The bans and quotas that an upgrade hands over, without a file."""

from relay.access.ledger import LedgerEntry
from relay.daemon.kept_state import state_kept
from relay.engine.outlets import Outlets


def test_a_ban_that_was_lifted_after_an_upgrade_does_not_come_back():
    """A tunnel that a reload removes and opens again reads its entries once more."""
    banned, other = (LedgerEntry("few", key, 2e9, 0, 0.0) for key in ("192.0.2.7", "192.0.2.8"))
    lifted, unknown = banned._replace(banned_until=0.0), banned._replace(key="192.0.2.9")
    with state_kept(Outlets(), None, {"one": [banned, other]}) as state:
        state.put("one", [lifted, unknown])
        state.put("two", [banned])
        assert [*state.entries("one", "few")] == [lifted, other]
        assert [*state.entries("two", "few")] == []
