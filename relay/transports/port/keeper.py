"""The process above a program: nothing of the program outlives it, and it does not outlive relay.

It starts the program and collects whatever the program leaves behind (PR_SET_CHILD_SUBREAPER of prctl(2)). On SIGTERM,
which it also gets at relay's death, it sends SIGTERM to its process group, and waits two seconds. Once the program has
ended, or that time is over, it kills each process that is left, and ends with the program's status.
"""

from __future__ import annotations

import os

PATIENCE = 2  # whole seconds from SIGTERM to SIGKILL

# Its arguments: the private directory, relay's process, the program's path, and the argument list of the program.
# prctl(2): 36 is PR_SET_CHILD_SUBREAPER, 1 PR_SET_PDEATHSIG, 4 PR_SET_DUMPABLE: it ends by a signal without a core.
_KEEPER = """
import ctypes, os, signal, sys
from signal import SIGALRM, SIGCHLD, SIGKILL, SIGTERM
folder, relay, path, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
prctl = ctypes.CDLL(None).prctl
awaited = {SIGALRM, SIGCHLD, SIGTERM}
signal.pthread_sigmask(signal.SIG_SETMASK, awaited)
prctl(36, 1)
prctl(1, SIGTERM)

def clean():
    if folder:
        for name in os.listdir(folder):
            os.unlink(folder + "/" + name)
        os.rmdir(folder)

def run(above):
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    prctl(1, SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if os.getppid() == above:
        try:
            os.execv(path, argv)
        except OSError as error:
            os.write(2, os.fsencode(path + ": " + error.strerror + "\\n"))
    os._exit(1)

def wait(child):
    is_ending = False
    while True:
        number = signal.sigwait(awaited)
        if number == SIGTERM and not is_ending:
            is_ending = True
            signal.alarm(PATIENCE)
            os.killpg(0, SIGTERM)
        if number == SIGALRM:
            return None
        if number == SIGCHLD:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == child:
                    return found[1]

def end_others(child, status):
    while True:
        try:
            found = os.waitpid(-1, os.WNOHANG)
            if found[0] == child:
                status = found[1]
            if found[0]:
                continue
            with open("/proc/thread-self/children") as file:
                for process in file.read().split():
                    os.kill(int(process), SIGKILL)
            found = os.waitpid(-1, 0)
            if found[0] == child:
                status = found[1]
        except ChildProcessError:
            return status
        except OSError as error:
            os.write(2, b"a process of it cannot be ended: " + error.strerror.encode() + b"\\n")
            return status

if os.getppid() != relay:
    os._exit(1)
me, child = os.getpid(), os.fork()
if not child:
    run(me)
status = end_others(child, wait(child))
try:
    clean()
except OSError:
    pass
code = os.waitstatus_to_exitcode(status or 0)
if code < 0:
    prctl(4, 0)
    if code != -SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    os.kill(me, -code)
os._exit(code)
""".replace("PATIENCE", str(PATIENCE))


def keeper() -> int:
    """Return a descriptor of the code, for the standard input of an interpreter; the caller closes it.

    As an argument the code would be in each list of processes, before the words of the program.

    :raises OSError: if there is no descriptor left.
    """
    made = os.memfd_create("relay-keeper")
    os.write(made, _KEEPER.encode())
    os.lseek(made, 0, os.SEEK_SET)
    return made
