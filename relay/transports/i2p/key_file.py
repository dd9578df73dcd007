"""Files of private keys: reading, creating, and locking them while they are in use.

A file holds the key in the binary form of i2pd and the Java router, which relay writes, or in the base64 of SAM.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import math
import os
import re
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from ...access.regular_file import open_regular
from ...addresses.destinations import PrivateKey
from ...errors import SAMError

LONGEST = 1 << 14  # bytes of a file that are read; the longest keys have half of that in base64

# The file's access time records the end of a session, plus a year (in seconds): no program that reads the file writes
# such a time, and Linux does not replace an access time in the future (relatime, mount(8)).
_AHEAD = 365 * 24 * 3600

_PLAIN_NAME = re.compile(r"[a-z0-9_-]{1,64}")


class Key(Protocol):
    """A private key."""

    @property
    def data(self) -> bytes:
        """The bytes of its file."""


AnyKey = TypeVar("AnyKey", bound=Key)


class KeyFile(Generic[AnyKey]):
    """A private key in a locked file.

    :param path: of the file, as it was given.
    :param key: the key.
    :param lock: of the file.
    :param seconds_since_session: seconds since a session of the key has ended, as far as that is known.
    """

    def __init__(self, path: Path, key: AnyKey, lock: _Lock, seconds_since_session: float = math.inf) -> None:
        self.path = path
        self.key = key
        self.seconds_since_session = seconds_since_session
        self._lock = lock

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], make: Callable[[], AnyKey], parse: Callable[[bytes], AnyKey] | None = None
    ) -> Self:
        """Lock the file and read the key; if there is no file, create it with a new key.

        :param path: of the file; its directory must exist.
        :param make: returns a new key; called if there is no file, while its name is locked.
        :param parse: makes a key of the bytes of a file, and raises :class:`ValueError`; ``None`` for keys of I2P.
        :returns: the key, locked until :meth:`close` or the end of the process.
        :raises SAMError: if the key is in use, in this process or another; if the file is invalid or accessible to
            other users; or if it cannot be read, written or locked. The file stays unchanged then.
        """
        name, real = _places(path)  # two links to a file are one key; a dangling link is followed
        # Before the file is looked at: two programs that find no file must not both make a key.
        lock = _Lock(real, name)
        try:
            # The copies hold the private key, and only their writer, which is dead, would have removed them.
            if lock.was_left:
                _remove_temporaries(real)
            # One that was killed could not record the end of its session, which may have been just now.
            seconds_since_session = 0.0 if lock.was_left else _seconds_since_session(real)
            key: Any = _read(real, name, parse or _parsed)
            if key is None:
                key = make()
                _write(real, key, name)
        except BaseException:
            lock.release()
            raise
        return cls(name, key, lock, seconds_since_session)

    @property
    def was_left(self) -> bool:
        """``True`` if the last process was killed, so that it is not known when its session has ended."""
        return self._lock.was_left

    def mark_session_ended(self) -> None:
        """Record that a session of the key has just ended, for :attr:`seconds_since_session` of the next one."""
        real = os.path.realpath(os.path.expanduser(self.path))
        try:
            # The modification time stays: backups go by it.
            os.utime(real, ns=(time.time_ns() + _AHEAD * 10**9, os.stat(real).st_mtime_ns))
        except OSError:
            pass  # of another user, or deleted

    def close(self) -> None:
        """Unlock the file. Idempotent."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<KeyFile {self.path}, {getattr(self.key, 'b32', 'of Tor')}>"


class TransientKey:
    """A key without a file, which no session had before.

    :param key: the key.
    """

    path = None
    seconds_since_session = math.inf

    def __init__(self, key: PrivateKey) -> None:
        self.key = key

    def mark_session_ended(self) -> None:
        """Do nothing: no later session has this key."""

    def close(self) -> None:
        """Do nothing: nothing is locked."""


SessionKey = KeyFile[PrivateKey] | TransientKey  # the private key of a session's destination, reserved until ``close``


def _seconds_since_session(path: Path) -> float:
    """Return the seconds since a session with the key has ended; infinite if unknown."""
    try:
        accessed = os.stat(path).st_atime
    except OSError:
        return math.inf
    now = time.time()
    # A time of now, or in the past, was written by a reader of the file, and says nothing.
    return max(0.0, now - (accessed - _AHEAD)) if accessed > now + _AHEAD / 2 else math.inf


def path_of_session(name: str, kind: str = "i2p") -> Path:
    """Return the key file of a session with a name and without ``keys=``, in the user's data directory.

    Creates the directories, owner-only (mode 0700). The file names also differ on case-insensitive file systems.

    :param name: of the session; not empty.
    :param kind: the directory of such keys.
    :returns: the path; each name has its own.
    :raises SAMError: if the directories cannot be created.
    :raises ValueError: if the name is empty.
    """
    if not name:
        raise ValueError("name: empty; a session without a name has no key file")
    if not _PLAIN_NAME.fullmatch(name):
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{re.sub('[^A-Za-z0-9_-]', '_', name)[:64]}.{digest[:16]}"
    folder = _data_directory() / "relay" / kind
    try:
        # Each by itself: mkdir() gives the parents that it makes the default mode, and the keys are in there.
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SAMError(f"{folder}: {error.strerror}; name a file for the keys (--keys FILE, keys=FILE)") from None
    return folder / f"{name}.dat"


def _data_directory() -> Path:
    """Return the user's data directory (freedesktop.org, "XDG Base Directory Specification")."""
    given = os.environ.get("XDG_DATA_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.local/share")
    if not os.path.isabs(folder):
        raise SAMError("session keys: this user has no home directory; name a file (--keys FILE, keys=FILE)")
    return Path(folder)


def read(path: str | os.PathLike[str]) -> PrivateKey:
    """Read a key, even if it is in use.

    :param path: of the file.
    :returns: the key.
    :raises SAMError: if there is no file, if it is invalid or accessible to other users, or if it cannot be read.
    """
    name, real = _places(path)
    key = _read(real, name, _parsed)
    if key is None:
        raise SAMError(f"{name}: no such file; check the path, or make a key with relay keys new")
    return key


def write(path: str | os.PathLike[str], key: PrivateKey) -> None:
    """Write a new key file atomically, owner-only (mode 0600).

    :param path: of the file, which must not exist; its directory must.
    :param key: the key.
    :raises SAMError: if the file exists (a key is never overwritten), or cannot be written.
    """
    name, _ = _places(path)
    _write(name, key, name)


def leave(paths: Iterable[str]) -> None:
    """Leave some keys to another process: no further session of this one gets them. Those that have them go on.

    :param paths: of their files.
    """
    # Without symbolic links, as the locks have them: two names of one file are one key.
    places = {_places(path)[1] for path in paths}
    with _locks.changed:
        _locks.left |= places


def take_back(paths: Iterable[str]) -> None:
    """Let sessions of this process have the keys again that :func:`leave` has left.

    :param paths: of their files.
    """
    places = {_places(path)[1] for path in paths}
    with _locks.changed:
        _locks.left -= places


def wait_until_free(paths: Iterable[str], seconds: float) -> bool:
    """Wait until no session of this process has any of some keys.

    :param paths: of their files.
    :param seconds: to wait at most.
    :returns: whether that is so.
    """
    places = {_places(path)[1] for path in paths}
    with _locks.changed:
        return _locks.changed.wait_for(lambda: places.isdisjoint(_locks.held()), max(0.0, seconds))


def _places(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return a path as errors name it, and the same without symbolic links."""
    expanded = os.path.expanduser(path)
    try:
        return Path(expanded), Path(os.path.realpath(expanded))
    except ValueError:  # NUL, or a character that the file system's encoding lacks
        raise SAMError(f"{expanded!r}: not a path; give the path of a key file") from None


def _read(path: Path, name: Path, parse: Callable[[bytes], AnyKey]) -> AnyKey | None:
    """Return the key in a file; ``None`` if there is no file.

    :param name: of the file, in errors.
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
        raise SAMError(f"{name}: cannot read: {error.strerror}; check the file and its permissions") from None
    try:
        return parse(data)
    except ValueError as error:
        kind = "an I2P private key" if parse is _parsed else "a private key of an onion service"
        raise SAMError(f"{name}: not {kind} ({error}); the file is unchanged: name another one") from None


def _check_mode(status: os.stat_result, name: Path) -> None:
    """Reject a key that other users can access, as ssh does; a file of another user is that user's decision."""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == os.geteuid() and mode & 0o077:
        raise SAMError(f"{name}: private key is accessible to other users (mode {mode:04o}); run chmod 600")


def _parsed(data: bytes) -> PrivateKey:
    if not data:
        raise ValueError("empty")
    if len(data) > LONGEST:
        raise ValueError(f"more than {LONGEST} bytes")
    key = PrivateKey.from_base64(data.decode("ascii")) if data.isascii() else PrivateKey.from_bytes(data)
    if not key.consistent:
        raise ValueError("its signing key does not match its destination")
    return key


def _write(path: Path, key: Key, name: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(key.data)
                file.flush()
                # Before the file gets its name: after a power failure there must be the whole key or no file.
                os.fsync(descriptor)
            os.link(temporary, path)  # unlike a rename, a link never replaces a file
        finally:
            os.unlink(temporary)
        _sync_folder(path.parent)
    except FileExistsError:
        raise SAMError(f"{name}: file exists; a key is never overwritten, so choose another name") from None
    except OSError as error:
        raise SAMError(f"{name}: cannot write: {error.strerror}; check the directory and its permissions") from None


def _remove_temporaries(path: Path) -> None:
    """Remove copies of the key that a program left which was killed while it wrote the file; the file is locked."""
    found: list[Path] = []
    with contextlib.suppress(OSError):  # no descriptor is left to look for them
        found += path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}")
    for one in found:
        with contextlib.suppress(OSError):
            one.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power failure: another key under that name would be another destination."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Lock:
    """Lock of one key file: flock(2) on a lock file beside it, which exists while it is locked.

    It also excludes other sessions of this process, and ends with the process. In a directory where relay may not
    write, it locks the key file itself, which relay cannot replace there.

    ``was_left`` is true if the last program that had the lock was killed: its lock file is still there.

    :param path: of the key file, without symbolic links.
    :param name: of the key file, in errors.
    :raises SAMError: if another session has locked it, if it is left to another process, or if it cannot be locked.
    """

    def __init__(self, path: Path, name: Path) -> None:
        self._beside: Path | None = path.with_name(f".{path.name}.lock")
        self.path = path
        self._held: list[int] = []  # one descriptor or none; list.pop is atomic
        self.was_left = False
        try:
            # Again if the file was removed between the open and the lock: a lock on a file without a name excludes no
            # other program.
            while not self._held:
                self._try(path)
        except BlockingIOError:
            raise SAMError(f"{name}: the key is in use by another session; use another file") from None
        except OSError as error:
            where = f" by {error.filename}" if error.filename else ""
            raise SAMError(f"{name}: cannot lock{where}: {error.strerror}; check the permissions") from None
        if not _locks.add(self):
            self.release()
            raise SAMError(f"{name}: the key is left to the process that takes the place of this one; connect again")

    def _try(self, path: Path) -> None:
        descriptor = self._open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, self._beside or path):  # else the previous owner has just removed it
                self._held.append(descriptor)
        finally:
            if not self._held:
                os.close(descriptor)

    def _open(self, path: Path) -> int:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        if self._beside is not None:
            try:
                return self._open_beside(os.O_RDWR | os.O_NOFOLLOW | flags)
            except OSError:
                # A lack of descriptors, or a link in the way, is no read-only directory.
                if os.access(path.parent, os.W_OK) or not path.exists():
                    raise
        self._beside = None
        return os.open(path, os.O_RDONLY | flags)

    def _open_beside(self, flags: int) -> int:
        assert self._beside is not None
        try:
            self.was_left = False
            return os.open(self._beside, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            self.was_left = True
            return os.open(self._beside, flags | os.O_CREAT, 0o600)

    def release(self) -> None:
        """Unlock. Idempotent."""
        try:
            descriptor = self._held.pop()
        except IndexError:
            return
        if self._beside is not None:
            try:
                # Before the unlock: a program that has opened it meanwhile finds, once it has the lock, that the name
                # is gone, and begins again.
                os.unlink(self._beside)
            except OSError:
                pass  # it was removed meanwhile
        # Closing alone is not enough while a child process, forked but not yet executing its program, has a copy.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
        _locks.discard(self)

    def forget(self) -> None:
        """Close the copy in a forked child, which would keep the lock for the life of the child."""
        while self._held:
            os.close(self._held.pop())


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


class _Locks:
    """The locks that this process has."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[_Lock] = weakref.WeakSet()
        self.changed = threading.Condition()
        self.left: set[Path] = set()  # the key files that are left to another process; with ``changed`` held

    def add(self, lock: _Lock) -> bool:
        """Return whether this process may have it."""
        with self.changed:
            if lock.path in self.left:
                return False
            self._all.add(lock)
        return True

    def discard(self, lock: _Lock) -> None:
        """Forget a lock that was released."""
        with self.changed:
            self._all.discard(lock)
            self.changed.notify_all()

    def held(self) -> Iterable[Path]:
        """Return the paths of their key files, with ``changed`` held."""
        return [lock.path for lock in self._all]

    def forget(self) -> None:
        """Close the copies in a forked child, where ``changed`` may be held for ever."""
        self.changed = threading.Condition()
        for lock in tuple(self._all):
            lock.forget()


_locks = _Locks()
os.register_at_fork(after_in_child=_locks.forget)
