"""The sandbox on this machine, and functions that run in a process of their own, because it cannot be taken back."""

import errno
import json
import os
import traceback
import warnings

import pytest

try:
    import landlockpy

    ABI = landlockpy.abi_version()
    _REASON = ""
except (ImportError, OSError) as error:
    ABI = 0
    _REASON = f"this machine has no Landlock ({error})"

needs_landlock = pytest.mark.skipif(ABI == 0, reason=_REASON)
needs_ports = pytest.mark.skipif(ABI < 4, reason=f"this machine has ABI {ABI} of Landlock; ports need 4 (Linux 6.7)")


def error_of(call, *arguments):
    """The name of the error of a call; ``done`` if it has none. What it returns is closed."""
    try:
        made = call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    if hasattr(made, "close"):
        made.close()
    return "done"


def in_child(function):
    """Call a function in a forked child, which has one thread; return its result, which JSON can hold."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(function()).encode())
            status = 0
        except BaseException:  # noqa: BLE001  (the child must end here)
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(text)
