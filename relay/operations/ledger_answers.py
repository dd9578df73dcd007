"""The answers of the app to requests about bans and quotas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from .ledgers import Ledgers

__all__ = ["ledger_answers"]


def ledger_answers(instance: Ledgers) -> dict[tuple[str, str], Callable[[Request], Any]]:
    """Return the answers to requests about bans and quotas, by the method and the path."""

    def clear(kind: str, request: Request) -> Any:
        if not (key := request.query_params.get("key")):
            raise HTTPException(400, "key: expected the clients that count together, as the list has them")
        return {"cleared": instance.clear(kind, key, request.query_params.get("tunnel"))}

    return {
        ("GET", "/bans"): lambda request: {"bans": instance.bans(request.query_params.get("tunnel"))},
        ("GET", "/quotas"): lambda request: {"quotas": instance.quotas(request.query_params.get("tunnel"))},
        ("DELETE", "/bans"): lambda request: clear("bans", request),
        ("DELETE", "/quotas"): lambda request: clear("quotas", request),
    }
