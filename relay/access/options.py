"""The options of a tunnel about its clients: checked, they become its policy."""

from __future__ import annotations

import inspect
from typing import Any

from .limit import check_limits
from .policy import AccessRules, ClientPolicy, Entries
from .senders import parse_senders


def check_policy(
    *,
    allow: Entries = None,
    deny: Entries = None,
    admit: Any = None,
    limit: Any = None,
    accept_proxy: Any = None,
) -> ClientPolicy:
    """Return the policy that has these options; the parameters are those of :class:`relay.Tunnel`.

    :raises TypeError: if one has the wrong type.
    :raises ValueError: if one has a wrong value.
    """
    senders = parse_senders(accept_proxy)
    if admit is not None and (not callable(admit) or inspect.iscoroutinefunction(admit)):
        raise TypeError(f"admit: expected a callable that is no coroutine function, got {type(admit).__name__}")
    return ClientPolicy(rules=rules_of(allow, deny), admit=admit, limits=check_limits(limit), accept_proxy=senders)


def rules_of(allow: Entries, deny: Entries) -> AccessRules | None:
    """Return the access lists of a tunnel, whose files are read now; ``None`` if there is none.

    :raises TypeError: if an entry has the wrong type.
    :raises ValueError: if one is neither a rule nor a file, or a file is invalid.
    """
    if allow is None and not deny:
        return None
    from .access_list import AccessList

    return AccessList(allow, deny)
