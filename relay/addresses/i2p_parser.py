"""Parse I2P addresses, ``i2p://…`` and ``i2p:…``, to values of :mod:`relay.addresses.i2p`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..errors import AddressError
from .address_parser import AddressParser
from .i2p import BRIDGES, SAM, Bridges, I2PListen, I2PRouter, I2PTarget, is_option
from .options import options_of
from .values import TCPAddress, TLSTarget


def parse_sam(given: str | Sequence[str]) -> Bridges:
    """Parse the address of a SAM bridge, or the addresses of several.

    :param given: ``host:port``, ``tcp://host:port`` or ``tls://host:port?servername=…&ca=…&cert=…&key=…``, or several
        of them.
    :returns: the addresses as values.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if one is not a ``str``.
    """
    texts = given if isinstance(given, list | tuple) else (given,)
    parsers = [_Sam(text, "sam") for text in texts]  # first of all, the type of each
    found = tuple(parser.read() for parser in parsers)
    try:
        BRIDGES.check("sam", found)
    except ValueError as error:
        raise AddressError(str(error)) from None
    return found


class _Sam(AddressParser):
    example = SAM
    usual_port = 7656
    schemes = ("tcp", "tls")
    forms = f"allowed are host:port, as in {SAM}, and tls://host:port?ca=FILE"
    takes_i2p = True

    def read(self) -> TCPAddress | TLSTarget:
        scheme, rest = self.split()
        host, port, query = self.place(scheme, rest)
        given = self.options(f"{scheme or 'tcp'}://", query, options_of(TLSTarget) if scheme == "tls" else {})
        return TLSTarget(host, port, **given) if scheme == "tls" else TCPAddress(host, port)


def router_of(options: Mapping[str, Any]) -> I2PRouter:
    """Return the router that keywords describe: its options, and those of the session with their dots.

    :param options: values by name; ``sam`` is text, or several texts.
    :raises AddressError: if ``sam`` cannot be understood.
    :raises TypeError: if one is unknown or has the wrong type.
    :raises ValueError: if one has a value that is not allowed.
    """
    known: dict[str, Any] = {}
    further: list[tuple[str, str]] = []
    for name, value in options.items():
        if name in options_of(I2PRouter):
            known[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
        elif is_option(name):
            further.append((name, _written(name, value)))
        else:
            raise TypeError(
                f"{name}: unexpected keyword argument; i2cp.*, inbound.* and outbound.* are further options"
            )
    if "sam" in known:
        known["sam"] = parse_sam(known["sam"])
    return I2PRouter(**known, options=tuple(sorted(further)))


def _written(name: str, value: Any) -> str:
    """Return the value of an option as SAM has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"{name}: expected text, a number, True or False, got {type(value).__name__}")
    return str(value)


def read_i2p_target(parser: AddressParser, rest: str) -> I2PTarget:
    """Parse an address to connect to, after ``i2p://``.

    :param parser: the parser of the whole address.
    :param rest: ``name.i2p``, ``….b32.i2p`` or a destination in base64, perhaps a port, perhaps parameters.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    place, _, query = rest.partition("?")
    if "@" in place:
        parser.fail("i2p:// takes no user before the name", "user= and password_file= log in at the bridge")
    if "/" in place or "#" in place:
        parser.fail("something follows the name", "parameters begin with a question mark: i2p://NAME.i2p?sam=HOST:PORT")
    dest, colon, port = place.partition(":")
    if not dest:
        parser.fail("no name is given", "write one: i2p://NAME.i2p; i2p: alone is a place to listen at")
    number = parser.port(port, 1) if colon else None
    router = _router(parser, parser.options("i2p://", query, options_of(I2PRouter), is_option))
    try:
        return I2PTarget(dest, number, router)
    except ValueError as error:
        _refuse(parser, error)


def read_i2p_listen(parser: AddressParser, rest: str) -> I2PListen:
    """Parse an address to listen on, after ``i2p:``.

    :param parser: the parser of the whole address.
    :param rest: the parameters after a question mark, if any.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    place, _, query = rest.partition("?")
    if place:
        parser.fail("something follows i2p:", "the keys give the destination: i2p: or i2p:?keys=FILE")
    given = parser.options("i2p:", query, {**options_of(I2PRouter), **options_of(I2PListen)}, is_option)
    own = {name: given.pop(name) for name in options_of(I2PListen) if name in given}
    router = _router(parser, given)
    try:
        return I2PListen(router, **own)
    except ValueError as error:
        _refuse(parser, error)


def read_i2p_hop(parser: AddressParser, rest: str) -> I2PRouter:
    """Parse a hop, after ``i2p:``.

    :param parser: the parser of the whole address.
    :param rest: the parameters after a question mark, if any.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    if rest and not rest.startswith("?"):
        parser.fail("i2p://NAME is a target, not a hop", "i2p: alone is the hop to it, i2p:?sam=HOST:PORT another one")
    return _router(parser, parser.options("i2p:", rest[1:], options_of(I2PRouter), is_option))


def _router(parser: AddressParser, given: dict[str, Any]) -> I2PRouter:
    try:
        return router_of(given)
    except ValueError as error:
        _refuse(parser, error)


def _refuse(parser: AddressParser, error: ValueError) -> NoReturn:
    problem, _, allowed = str(error).removeprefix("dest: ").partition("; ")
    parser.fail(problem, allowed)
