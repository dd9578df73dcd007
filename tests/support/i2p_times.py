"""The times of I2P that tests shorten or lengthen, each by one name."""

from __future__ import annotations

from typing import Any

_CARRIERS, _I2P = "relay.carriers.retry", "relay.transports.i2p"
_WHERE = {
    "back_off": f"{_CARRIERS}._BACKOFF",
    "back_off_with_waiters": f"{_CARRIERS}._MAX_BACKOFF_WITH_WAITERS",
    "stable_after": f"{_CARRIERS}._STABLE_AFTER",
    "retry_failed": f"{_CARRIERS}.RETRY_FAILED_AFTER",
    "late_answer": "relay.streams.promise.LATE",
    "hello": f"{_I2P}.bridge.HELLO",
    "attempt": f"{_I2P}.connector._ATTEMPT",
    "reach": f"{_I2P}.connector._REACH",
    "progress": f"{_I2P}.connector._PROGRESS",
    "remembered": f"{_I2P}.connector._REMEMBERED",
    "duplicate": f"{_I2P}.connector._DUPLICATE",
    "duplicate_again": f"{_I2P}.connector._AGAIN",
    "replace_again": f"{_I2P}.connector._REPLACE_AGAIN",
    "session_rest": f"{_I2P}.session._REST",
    "name_is_fresh": f"{_I2P}.session._FRESH",
    "look_up": f"{_I2P}.session._LOOKUP_TIMEOUT",
    "stream_again": f"{_I2P}.opening._AGAIN",
    "stream_answer": f"{_I2P}.opening._ANSWER_TIMEOUT",
    "settle": f"{_I2P}.opening.SETTLE",
    "silent": f"{_I2P}.unconfirmed.SILENT",
    "listener_failed": f"{_I2P}.listener.FINAL",
    "receive_again": f"{_I2P}.receiver.AGAIN",
    "accept_again": f"{_I2P}.inbound.AGAIN",
    "accept_answer": f"{_I2P}.inbound.ANSWER",
    "accept_is_steady": f"{_I2P}.inbound.STEADY",
    "port_again": f"{_I2P}.forward_port.AGAIN",
    "port_line": f"{_I2P}.forward_port.LINE_TIMEOUT",
    "probe_head_start": f"{_I2P}.probe.HEAD_START",
    "probe_reach": f"{_I2P}.probe.REACH",
    "probe_answer": f"{_I2P}.probe.ANSWER",
    "check_again": f"{_I2P}.reachability.AGAIN",
    "check_rarely": f"{_I2P}.reachability.RARELY",
    "check_after": f"{_I2P}.reachability.AFTER",
    "check_seldom": f"{_I2P}.reachability.SELDOM",
    "check_shared": f"{_I2P}.reachability.SHARED",
    "find": f"{_I2P}.reachability.FIND",
    "find_again": f"{_I2P}.reachability.FIND_AGAIN",
    "ask_again": f"{_I2P}.standby.AGAIN",
    "ask_nobody_before": f"{_I2P}.standby.AT_ONCE",
}


def set_times(monkeypatch: Any, **seconds: Any) -> None:
    """Set some of them for a test: seconds, or as many as the time has."""
    for name, value in seconds.items():
        monkeypatch.setattr(_WHERE[name], value)
