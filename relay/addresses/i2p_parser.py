"""I2P addresses as text: what follows ``i2p://`` and ``i2p:`` becomes a value of :mod:`relay.addresses.i2p`."""

from __future__ import annotations

from typing import Any, NoReturn

from .i2p import I2PListen, I2PRouter, I2PTarget, is_option
from .reader import AddressReader
from .values import I2P_LISTEN_PARAMETERS, I2P_PARAMETERS

__all__ = ["read_i2p_hop", "read_i2p_listen", "read_i2p_target"]

_DEPTHS = ("in_depth", "out_depth")
_LISTS = ("allow", "deny")


def read_i2p_target(reader: AddressReader, rest: str) -> I2PTarget:
    """Read what follows ``i2p://`` in an address to connect to.

    :param reader: of the whole address.
    :param rest: ``name.i2p``, ``….b32.i2p`` or a destination in base64, perhaps a port, perhaps parameters.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    place, _, query = rest.partition("?")
    if "@" in place:
        reader.fail("i2p:// takes no user before the name", "user= and password_file= log in at the bridge")
    if "/" in place or "#" in place:
        reader.fail("something follows the name", "parameters begin with a question mark: i2p://NAME.i2p?sam=HOST:PORT")
    dest, colon, port = place.partition(":")
    if not dest:
        reader.fail("there is no name", "write one: i2p://NAME.i2p; i2p: alone is a place to listen at")
    number = reader.port(port, 1) if colon else None
    router = _router(reader, reader.repeated_parameters("i2p://", query, I2P_PARAMETERS, is_further=is_option))
    try:
        return I2PTarget(dest, number, router)
    except ValueError as error:
        _refuse(reader, error)


def read_i2p_listen(reader: AddressReader, rest: str) -> I2PListen:
    """Read what follows ``i2p:`` in an address to listen at.

    :param reader: of the whole address.
    :param rest: nothing, or parameters after a question mark.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    place, _, query = rest.partition("?")
    if place:
        reader.fail("what others connect to is told by the keys", "i2p: listens there, or i2p:?keys=FILE")
    given = reader.repeated_parameters("i2p:", query, I2P_LISTEN_PARAMETERS, _LISTS, is_option)
    lists = {name: tuple(given.pop(name)) for name in _LISTS if name in given}
    accept = given.pop("accept", [None])[0]
    router = _router(reader, given)
    try:
        return I2PListen(router, accept, lists.get("allow"), lists.get("deny", ()))
    except ValueError as error:
        _refuse(reader, error)


def read_i2p_hop(reader: AddressReader, rest: str) -> I2PRouter:
    """Read what follows ``i2p:`` in a hop.

    :param reader: of the whole address.
    :param rest: nothing, or parameters after a question mark.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    query = rest.removeprefix("?")
    return _router(reader, reader.repeated_parameters("i2p:", query, I2P_PARAMETERS, is_further=is_option))


def _router(reader: AddressReader, given: dict[str, list[str]]) -> I2PRouter:
    """A router of its parameters, each of which is written once; the value itself checks them."""
    options = {name: value for name, [value] in given.items()}
    further = tuple(sorted((name, value) for name, value in options.items() if is_option(name)))
    known: dict[str, Any] = {name: value for name, value in options.items() if not is_option(name)}
    for name in _DEPTHS:
        if name in known:
            known[name] = _depth(reader, name, known[name])
    try:
        return I2PRouter(**known, options=further)
    except ValueError as error:
        _refuse(reader, error)


def _depth(reader: AddressReader, name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) == 1):
        reader.fail(f"{name}={reader.part(text)}", "a number of hops is allowed, from 0 to 7")
    return int(text)


def _refuse(reader: AddressReader, error: ValueError) -> NoReturn:
    problem, _, allowed = str(error).removeprefix("dest: ").partition("; ")
    reader.fail(problem, allowed)
