"""The backend by paramiko: exact errors, and no other program to install.

paramiko does the key exchange, the signatures and the login messages. This package replaces its packets, channels,
requests, forwards, agent and host key files, because of properties that its interface cannot give:

- A non-blocking channel of paramiko blocks in ``send`` while the connection is congested, and all its waits poll ten
  times a second. Here one thread per connection runs an event loop, and a channel is a kernel socket with
  backpressure.
- paramiko copies the data of each packet several times, and wakes the reading thread for each; here packets are
  decrypted and passed on in batches.
- It sends messages from several threads, so that EOF may follow CLOSE, for which OpenSSH ends the connection.
- It has one forward handler per transport, no open that can be cancelled, and an agent without a timeout.

The names of paramiko that this takes beyond its documented interface are in :mod:`relay.transports.ssh.internals`,
which checks them at import.
"""

from ..internals import BACKEND, check

check(BACKEND, "relay's SSH backend paramiko", "use backend='openssh' (in an address: ?backend=openssh)")
