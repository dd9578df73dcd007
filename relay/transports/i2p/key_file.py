"""Files of private keys: read, made once, and locked while they are in use.

A file holds the key as i2pd and the Java router write it (binary), or in base64, as SAM tells it; ours are binary.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import re
import secrets
import stat
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ...addresses.destinations import PrivateKey
from ...errors import SAMError
from ..files import open_regular

__all__ = ["KeyFile", "TransientKey", "path_of_session", "read", "write"]

LONGEST = 1 << 14  # bytes of a file that are read; the longest keys have half of that in base64

# The end of a session is kept as the file's time of access, so many seconds ahead (a year): nothing that reads the file
# writes such a time, and Linux does not replace one that is not past (relatime, mount(8)).
_AHEAD = 365 * 24 * 3600

_PLAIN_NAME = re.compile(r"[a-z0-9_-]{1,64}")


class KeyFile:
    """A private key in a file, which nobody else has in use.

    :param path: as it was given.
    :param key: what is in it.
    :param lock: keeps others away.
    :param rested: seconds since a session of the key has ended, as far as that is known.
    """

    def __init__(self, path: Path, key: PrivateKey, lock: _Lock, seconds_since_session: float = math.inf) -> None:
        self.path = path
        self.key = key
        self.seconds_since_session = seconds_since_session
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], make: Callable[[], PrivateKey]) -> Self:
        """Lock the file and read the key; where there is no file, make one with a new key.

        :param path: of the file; its directory is there.
        :param make: called for a new key if there is no file. The file is locked meanwhile.
        :returns: the key, locked until :meth:`close` or the end of the process.
        :raises SAMError: if the keys are in use, in this process or in another; if the file is damaged, can be read by
            others, or cannot be read, written or locked. It is not touched then.
        """
        name, real = _places(path)  # two links to a file are one key, and one to nowhere says where to put it
        lock = _Lock(real, name)
        try:
            seconds_since_session = _seconds_since_session(real)
            key = _read(real, name)
            if key is None:
                key = make()
                _write(real, key, name)
        except BaseException:
            lock.release()
            raise
        return cls(name, key, lock, seconds_since_session)

    def mark_session_ended(self) -> None:
        """Record that a session of the key has just ended, for :attr:`seconds_since_session` of the next one."""
        real = os.path.realpath(os.path.expanduser(self.path))
        try:
            os.utime(real, ns=(time.time_ns() + _AHEAD * 10**9, os.stat(real).st_mtime_ns))
        except OSError:
            pass  # it is not ours, or gone

    def close(self) -> None:
        """Let others have it. Idempotent."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<KeyFile {self.path}, {self.key.b32}>"


class TransientKey:
    """A key that is in no file.

    :param key: it.
    """

    path: Path | None = None
    seconds_since_session = math.inf

    def __init__(self, key: PrivateKey) -> None:
        self.key = key

    def mark_session_ended(self) -> None:
        """There is nobody to be told."""

    def close(self) -> None:
        """There is nobody who could have it."""


def _seconds_since_session(path: Path) -> float:
    """Seconds since a session of the key has ended; endless if that is not known."""
    try:
        accessed = os.stat(path).st_atime
    except OSError:
        return math.inf
    now = time.time()
    return max(0.0, now - (accessed - _AHEAD)) if accessed > now + _AHEAD / 2 else math.inf


def path_of_session(name: str) -> Path:
    """Where the keys of a session are that has a name and names no file: in the user's data directory.

    :param name: of the session; not empty.
    :returns: a file of its own for each name, also where capital letters do not count; the directories are made, for
        the user alone.
    :raises SAMError: if the directories cannot be made.
    """
    if not name:
        raise ValueError("a session without a name has no keys of its own")
    if not _PLAIN_NAME.fullmatch(name):
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{re.sub('[^A-Za-z0-9_-]', '_', name)[:64]}.{digest[:16]}"
    folder = _data_directory() / "relay" / "i2p"
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SAMError(f"{folder}: {error.strerror}; name a file for the keys (--keys FILE, keys=FILE)") from None
    return folder / f"{name}.dat"


def _data_directory() -> Path:
    """As in freedesktop.org's "XDG Base Directory Specification"."""
    told = os.environ.get("XDG_DATA_HOME", "")
    folder = told if os.path.isabs(told) else os.path.expanduser("~/.local/share")
    if not os.path.isabs(folder):
        raise SAMError("this user has no home directory for the keys of a session; name a file for them")
    return Path(folder)


def read(path: str | os.PathLike[str]) -> PrivateKey:
    """Read a key, also one that is in use.

    :param path: of the file.
    :raises SAMError: if there is none, or for what is wrong with it.
    """
    name, real = _places(path)
    key = _read(real, name)
    if key is None:
        raise SAMError(f"{name}: there is no such file")
    return key


def write(path: str | os.PathLike[str], key: PrivateKey) -> None:
    """Write a new file, which is whole from the first moment and nobody else's to read.

    :param path: of the file, which is not there yet; its directory is.
    :param key: what is to be in it.
    :raises SAMError: if there is something already, which is never overwritten, or if it cannot be written.
    """
    name, _ = _places(path)
    _write(name, key, name)


def _places(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """A path as errors name it, and the same without symbolic links."""
    expanded = os.path.expanduser(path)
    try:
        return Path(expanded), Path(os.path.realpath(expanded))
    except ValueError:  # a NUL, or what the file system's encoding does not have
        raise SAMError(f"{expanded!r}: not a path") from None


def _read(path: Path, name: Path) -> PrivateKey | None:
    """The key in a file; ``None`` if there is no file.

    :param name: what errors call it.
    """
    try:
        with open_regular(str(path)) as file:
            _check_mode(os.fstat(file.fileno()), name)
            data = file.read(LONGEST + 1)
    except FileNotFoundError:
        return None
    except SAMError:
        raise
    except OSError as error:
        raise SAMError(f"{name}: cannot be read: {error.strerror}") from None
    try:
        return _parsed(data)
    except ValueError as error:
        raise SAMError(f"{name}: this is no private key of I2P ({error}); the file was not touched") from None


def _check_mode(status: os.stat_result, name: Path) -> None:
    """As ssh does: a file of ours is for us alone, and whose is not ours was not put there by us."""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == os.geteuid() and mode & 0o077:
        raise SAMError(f"{name}: private key is accessible to other users (mode {mode:04o}); run chmod 600")


def _parsed(data: bytes) -> PrivateKey:
    if not data:
        raise ValueError("it is empty")
    if len(data) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} bytes")
    key = PrivateKey.from_base64(data.decode("ascii")) if data.isascii() else PrivateKey.from_bytes(data)
    if not key.consistent:
        raise ValueError("its signing key is not that of its destination")
    return key


def _write(path: Path, key: PrivateKey, name: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(key.data)
                file.flush()
                os.fsync(descriptor)
            os.link(temporary, path)  # unlike a rename, it never takes the place of another
        finally:
            os.unlink(temporary)
        _make_lasting(path.parent)
    except FileExistsError:
        raise SAMError(f"{name}: is there already, and a key is never overwritten") from None
    except OSError as error:
        raise SAMError(f"{name}: cannot be written: {error.strerror}") from None


def _make_lasting(folder: Path) -> None:
    """Have the names in a directory outlive a power failure: a new key of the same name would be a new destination."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Lock:
    """A lock that belongs to one key file: flock(2) on a file beside it, which is there while it is held.

    It holds within a process, too, and goes with the process. A file in a directory where we may not write is locked
    itself: there we cannot be the ones who replace it.

    :param path: of the key file, without symbolic links.
    :param name: what errors call it.
    :raises SAMError: if somebody else has it, or if it cannot be locked.
    """

    def __init__(self, path: Path, name: Path) -> None:
        self._beside: Path | None = path.with_name(f".{path.name}.lock")
        self._held: list[int] = []  # one descriptor or none; list.pop is atomic
        try:
            while not self._held:
                self._try(path)
        except BlockingIOError:
            raise SAMError(f"{name}: these keys are in use by another session; each needs its own") from None
        except OSError as error:
            where = f" by {error.filename}" if error.filename else ""
            raise SAMError(f"{name}: cannot be locked{where}: {error.strerror}") from None
        _locks.add(self)

    def _try(self, path: Path) -> None:
        descriptor = self._open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, self._beside or path):  # else whoever held it has just removed it
                self._held.append(descriptor)
        finally:
            if not self._held:
                os.close(descriptor)

    def _open(self, path: Path) -> int:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        if self._beside is not None:
            try:
                return os.open(self._beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)
            except OSError:
                if os.access(path.parent, os.W_OK) or not path.exists():
                    raise
        self._beside = None
        return os.open(path, os.O_RDONLY | flags)

    def release(self) -> None:
        """Let others have it. Idempotent."""
        try:
            descriptor = self._held.pop()
        except IndexError:
            return
        if self._beside is not None:
            try:
                os.unlink(self._beside)
            except OSError:
                pass  # somebody else has removed it
        # Closing would not do while a child that was just forked, and has not yet become its program, has a copy.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def forget(self) -> None:
        """In a forked child: let go of the copy, which would hold the lock for as long as the child lives."""
        while self._held:
            os.close(self._held.pop())


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


_locks: weakref.WeakSet[_Lock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in tuple(_locks):
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)
