"""Passwords and passphrases: from text, a callable, a file or an environment variable, read when they are needed."""

from __future__ import annotations

import inspect
import os
import stat
from collections.abc import Callable

from ..access.regular_file import open_regular
from ..addresses.options import Secret
from ..addresses.ssh import SSHServer
from ..errors import AuthenticationError

LONGEST = 1 << 16  # bytes of a file that are looked at; no secret is longer


def password_of(server: SSHServer, prompt: str | None = None) -> str | None:
    """The password for a server, read anew at each call.

    :param server: what the caller asked for.
    :param prompt: what to ask the caller's callable, if it takes an argument; ``None`` for "user@host's password: ".
    :returns: the password; ``None`` if there is none.
    :raises AuthenticationError: in one line, if the place that is to have it does not, or if its callable fails. An
        exception of the callable is its cause.
    """
    question = f"{server.user}@{server.host}" if server.user else server.host
    return secret_of(server, "password", prompt or f"{question}'s password: ")


def passphrase_of(server: SSHServer, keyfile: str) -> str | None:
    """The passphrase of a key file, read anew at each call.

    :param server: what the caller asked for.
    :param keyfile: the path, which a callable that takes an argument finds in its prompt.
    :returns: the passphrase; ``None`` if there is none.
    :raises AuthenticationError: as for :func:`password_of`.
    """
    return secret_of(server, "passphrase", f"Passphrase for {keyfile}: ")


def wants_prompt(secret: Secret | None) -> bool:
    """Return true if a secret is a callable with a parameter, which can answer any question."""
    if not callable(secret):
        return False
    try:
        inspect.signature(secret).bind("")
    except TypeError:
        return False
    except ValueError:
        return False  # a builtin that does not tell
    return True


def secret_of(owner: object, name: str, prompt: str) -> str | None:
    """A secret of whatever has one, read anew at each call.

    :param owner: an address with an attribute ``name``, one with ``_file`` and one with ``_env`` after it.
    :param name: of the secret.
    :param prompt: what to ask the caller's callable, if it takes an argument.
    :returns: the secret; ``None`` if there is none.
    :raises AuthenticationError: as for :func:`password_of`.
    """
    given: Secret | None = getattr(owner, name)
    if isinstance(given, str):
        return given
    if given is not None:
        return _called(owner, name, given, prompt)
    path: str | None = getattr(owner, f"{name}_file")
    if path is not None:
        return _from_file(owner, name, os.path.expanduser(path))
    variable: str | None = getattr(owner, f"{name}_env")
    return None if variable is None else _from_environment(owner, name, variable)


def _called(owner: object, name: str, function: Callable[..., str], prompt: str) -> str:
    try:
        value = function(prompt) if wants_prompt(function) else function()
    except Exception as error:  # it is the caller's own code
        problem = f"{owner}: the callable given as {name} raised {type(error).__name__}"
        raise AuthenticationError(f"{problem}; it is to return text") from error
    if not isinstance(value, str):
        raise AuthenticationError(f"{owner}: the callable given as {name} returned {type(value).__name__}, not text")
    return value


def _from_file(owner: object, name: str, path: str) -> str:
    """The first line of an owner-only file."""
    where = f"{owner}: {name}_file {path!r}"
    try:
        with open_regular(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            line = b"" if mode & 0o077 else file.readline(LONGEST)
    except OSError as error:
        raise AuthenticationError(
            f"{where}: {error.strerror}; check the path: the file is read with every login"
        ) from None
    if mode & 0o077:
        raise AuthenticationError(f"{where}: file is accessible to other users (mode {mode:04o}); run chmod 600")
    # Some editors begin each file with a byte order mark, which would be a part of the password.
    value = _without_line_end(line.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    if not value:
        raise AuthenticationError(f"{where}: its first line, which is to be the {name}, is empty; write it there")
    return value


def _from_environment(owner: object, name: str, variable: str) -> str:
    found = os.environ.get(variable)
    value = _without_line_end(found or "")
    if not value:
        problem = "not set" if found is None else "empty"
        raise AuthenticationError(f"{owner}: {name}_env: the environment variable {variable!r} is {problem}; set it")
    return value


def _without_line_end(text: str) -> str:
    """The text without the one end of line that an editor or ``echo`` puts after it."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
