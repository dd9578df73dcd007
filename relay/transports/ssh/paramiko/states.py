"""The states of an SSH channel (RFC 4254, section 5.3).

Each side sends EOF when it has no more data, which leaves the other direction open, and CLOSE once, after which it may
send nothing; the channel is over when both CLOSEs were sent (RFC 4254, section 5.3). Two states describe that.
*Receiving* is the direction from the server to the owner:

=========== ============================= =========== ================================================================
state       event                         next state  action
=========== ============================= =========== ================================================================
OPEN        data                          OPEN        pass them on; what the owner does not read waits in the backlog
OPEN        the owner hangs up            DISCARDING  clear the backlog, start the linger timer
OPEN        EOF or CLOSE                  EOF_PENDING then as for an empty backlog, if it is empty
DISCARDING  data                          DISCARDING  drop them, and give their bytes back to the window
DISCARDING  EOF or CLOSE                  ENDED       none
EOF_PENDING the backlog is empty          ENDED       pass the EOF on; a reset instead, if the stream has failed
EOF_PENDING the owner hangs up            ENDED       clear the backlog, start the linger timer
EOF_PENDING data, EOF or CLOSE            the same    ignore them
ENDED       data, EOF or CLOSE            the same    ignore them
any         the channel detaches (below)  ENDED       clear the backlog, close the channel's end of the socketpair
=========== ============================= =========== ================================================================

*Sending* is the direction from the owner to the server, and the channel as a whole:

=========== ============================= =========== ================================================================
state       event                         next state  action
=========== ============================= =========== ================================================================
OPEN        data                          OPEN        send them, as many as the server's window allows
OPEN        the owner's EOF               EOF_SENT    send EOF
OPEN        the channel detaches          CLOSE_SENT  send CLOSE
OPEN        the server's CLOSE            CLOSED      send CLOSE; the number is free
EOF_SENT    the channel detaches          CLOSE_SENT  send CLOSE
EOF_SENT    the server's CLOSE            CLOSED      send CLOSE; the number is free
CLOSE_SENT  the server's CLOSE            CLOSED      the number is free
=========== ============================= =========== ================================================================

The channel *detaches* from the owner when the stream is reset or fails, and when Sending is no longer OPEN and either
Receiving is ENDED or the owner has hung up. After that it is over as soon as Sending is CLOSED; at once if the stream
was reset or has failed; after 60 s if the server does not answer.
"""

from __future__ import annotations

from enum import Enum


class Receiving(Enum):
    """States of the direction from the server to the owner of the stream; see the first table of the module."""

    OPEN, DISCARDING, EOF_PENDING, ENDED = range(4)


class Sending(Enum):
    """States of the direction from the owner of the stream to the server; see the second table of the module."""

    OPEN, EOF_SENT, CLOSE_SENT, CLOSED = range(4)
