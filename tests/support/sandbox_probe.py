"""A ``relay`` whose threads try, as soon as they run, what the sandbox forbids: to read, to write and to connect.

Run as ``sandbox_probe.py REPORT SECRET PORT`` and the words of a command. Each thread that starts after the sandbox,
and the main thread, adds a line of JSON to the file REPORT: its name, and the name of the error of each attempt.
"""

import errno
import json
import os
import socket
import sys
import threading

if __name__ == "__main__":
    import relay.cli
    from relay.daemon import sandboxed

    report, secret, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sys.argv[1:4] = []
    descriptor = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    is_on = threading.Event()
    run, apply = threading.Thread.run, sandboxed.apply

    def outcome(call, *arguments):
        try:
            call(*arguments).close()
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"

    def probe(name):
        found = {
            "thread": name,
            "read": outcome(open, secret),
            "write": outcome(open, f"{secret}.new", "w"),
            "connect": outcome(socket.create_connection, ("127.0.0.1", port)),
        }
        os.write(descriptor, f"{json.dumps(found)}\n".encode())

    def probed(thread):
        if is_on.is_set():
            probe(thread.name)
        run(thread)

    def probed_apply(rules):
        probe("before")
        sandbox = apply(rules)
        is_on.set()
        probe("main")
        return sandbox

    threading.Thread.run, sandboxed.apply = probed, probed_apply
    sys.exit(relay.cli.main())
