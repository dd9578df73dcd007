"""The states of a TLS session.

A session has two directions. :class:`Outgoing` is what the holder sends:

======== ============================================ ======== ==================================================
state    event                                        next     action
======== ============================================ ======== ==================================================
OPEN     the holder has ended its output              ENDING   encrypt close_notify
ENDING   the transport has taken everything           ENDED    call what waits for that (:meth:`.Session.drained`)
ENDED    the holder has closed the stream             SHUT     shut the transport's output down, and wait for the
                                                               far end's end
======== ============================================ ======== ==================================================

:class:`Incoming` is what the far end sends:

======== ============================================ ======== ==================================================
state    event                                        next     action
======== ============================================ ======== ==================================================
OPEN     close_notify                                 ENDING   none
OPEN     data, and the outgoing direction is not OPEN REPLYING pass them on
OPEN     the transport's end, which answers our       ENDING   none
         close_notify (:meth:`.Session._is_answered`)
OPEN     any other end of the transport               over     reset the holder: bytes may be missing
REPLYING close_notify                                 ENDING   none
REPLYING the transport's end                          over     reset the holder: the reply may be cut
ENDING   the holder has taken everything              ENDED    pass the end on
======== ============================================ ======== ==================================================

If the outgoing direction is SHUT, every end of the transport counts as close_notify. The session is over when
``Incoming`` is ENDED and everything was sent: both sockets are closed. A reset by the far end, a broken record and an
alert reset the holder; a reset by the holder, and a minute without progress after it has closed the stream, reset the
far end.
"""

from __future__ import annotations

import enum


class Outgoing(enum.Enum):
    """The state of what the holder sends."""

    OPEN = "open"
    ENDING = "ending"
    ENDED = "ended"
    SHUT = "shut"


class Incoming(enum.Enum):
    """The state of what the far end sends."""

    OPEN = "open"
    REPLYING = "replying"
    ENDING = "ending"
    ENDED = "ended"
