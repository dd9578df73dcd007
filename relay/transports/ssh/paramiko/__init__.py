"""The backend over paramiko: exact errors, nothing to install."""

from ..internals import BACKEND, check

check(BACKEND, "relay's SSH backend paramiko", "use backend='openssh' (in an address: ?backend=openssh)")
