"""Successors are forked from a process that holds the TLS ticket keys and nothing else of the program.

    started ──forks──▶ fork server ──forks, on SIGUSR2──▶ successor ──(asks the same fork server)──▶ its successor
       └──────────────────▲ dies when the last of them is gone

Ticket keys can only be passed on by a fork (`tlscache.ticket_keys`), and a fork of the running program would be the old
program. So `start` forks a process off before the program is imported. A successor begins as a copy of that one,
forgets the few modules that it has of the program, and imports `proxy.process.start`: it runs what is installed now.

What it can't take anew is the interpreter, other packages, and the modules in `KEPT`. Where one of those has changed on
disk the fork server refuses, and the caller starts a process from scratch: clients then make one full handshake more.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final

from tlscache.ticket_keys import TicketKeys

KEPT: Final = frozenset(
    (
        *("proxy", "proxy.process", "proxy.process.forkserver"),
        *("tlscache", "tlscache.openssl", "tlscache.replay", "tlscache.ticket_keys"),
    )
)
"""Modules of ours that a successor takes over from the fork server. None of them is compiled."""
OURS: Final = frozenset(("proxy", "routing", "tlscache", "loadtests"))

REQUEST_MAX: Final = 65_536
FDS_MAX: Final = 253  # in one message: SCM_MAX_FD
ANSWER_S: Final = 5.0
_STANDARD: Final = frozenset((0, 1, 2))
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Stamp = dict[str, object]


class Refused(Exception):
    """There is no forking a successor; the text says why."""


class ForkServer:
    """The program's end. `keys` are the ticket keys that all programs of one fork server share; without a `channel`
    there is none, for that reason.
    """

    def __init__(self, keys: TicketKeys, channel: socket.socket | None, reason: str = "") -> None:
        self.keys = keys
        self._channel = channel
        self._reason = reason

    def fork(self, environment: dict[str, str], fds: list[int]) -> int:
        """The pid of a successor. It has these variables on top of its environment, and these descriptors under the
        same numbers. Blocks for milliseconds.

        Raises Refused.
        """
        if self._channel is None:
            raise Refused(self._reason)
        request = json.dumps({"environment": environment, "fds": fds}).encode()
        if len(fds) > FDS_MAX or len(request) > REQUEST_MAX:
            raise Refused(f"{len(fds)} descriptors with {len(request)} bytes to say of them are too many to pass on")
        try:
            self._channel.settimeout(ANSWER_S)
            socket.send_fds(self._channel, [request], fds)
            answer = json.loads(self._channel.recv(REQUEST_MAX) or b"{}")
        except OSError as error:
            reason = f"the fork server does not answer: {error.strerror or error}"
            self.dismiss(reason)  # a successor that it forks later finds nobody to report to, and ends
            raise Refused(reason) from error
        if "pid" not in answer:
            raise Refused(answer.get("reason", "the fork server is gone"))
        return int(answer["pid"])

    def dismiss(self, reason: str) -> None:
        """It is not needed."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._reason = reason


def start(path: str, begin: str, sockets: tuple[socket.socket, ...] = ()) -> ForkServer:
    """Start it. `begin` names the module that successors run: its `serve(path, …)`, then its `leave`. `sockets` are the
    program's alone.
    """
    inherited: set[int] = set()  # systemd's sockets, or those of a predecessor
    with suppress(FileNotFoundError):  # without /proc nobody knows them
        inherited = open_files()
    keys = TicketKeys()
    stamp = stamp_now()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        forked = _fork_off()
    except OSError as error:
        ours.close()
        theirs.close()
        return ForkServer(keys, None, f"there is no fork server: {error.strerror or error}")
    if not forked:
        theirs.close()
        return ForkServer(keys, ours)
    try:
        ours.close()
        for sock in sockets:
            sock.close()
        for fd in inherited:
            with suppress(OSError):
                os.close(fd)
        for number in _SIGNALS:  # the program's; this process goes when the last program has gone
            signal.signal(number, signal.SIG_IGN)
        channel = _serve(theirs, stamp)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # and not run as a second program
    program = importlib.import_module(begin)
    sys.exit(program.leave(program.serve(path, ForkServer(keys, channel))))


def _fork_off() -> bool:
    """Fork a process that is no child of this one, so that whoever started the program has it for its only child, and
    init inherits a successor as it would any daemon. True in that process. Raises OSError.
    """
    pid = os.fork()
    if pid:
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise OSError("can't fork twice")
        return False
    try:
        again = os.fork()
    except OSError:
        os._exit(1)
    if again:
        os._exit(0)
    return True


def open_files() -> set[int]:
    """This process's descriptors, but for the standard ones."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the directory's own
            os.fstat(fd)
            found.add(fd)
    return found - _STANDARD


def _serve(first: socket.socket, stamp: Stamp) -> socket.socket:
    """Until the last program is gone, and then exit. Returns in successors: their channel."""
    with selectors.DefaultSelector() as programs:
        programs.register(first, selectors.EVENT_READ)
        while programs.get_map():
            for key, _ in programs.select():
                asking = key.fileobj
                assert isinstance(asking, socket.socket)
                try:
                    request, fds, _, _ = socket.recv_fds(asking, REQUEST_MAX, FDS_MAX)
                except OSError:
                    request, fds = b"", []
                if not request:
                    programs.unregister(asking)
                    asking.close()
                    continue
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                if _answer(asking, stamp):
                    for other in [key.fileobj for key in programs.get_map().values()]:
                        assert isinstance(other, socket.socket)
                        other.close()
                    ours.close()
                    programs.close()  # its number may be one that the request wants
                    return _become_successor(json.loads(request), fds, theirs)
                theirs.close()
                for fd in fds:
                    os.close(fd)
                programs.register(ours, selectors.EVENT_READ)
    os._exit(0)


def _answer(asking: socket.socket, stamp: Stamp) -> bool:
    """Fork a successor, or say why not. True in the successor."""
    reason = change_since(stamp)
    if not reason:
        try:
            if not _fork_off():
                return False
        except OSError as error:
            reason = f"can't fork: {error.strerror or error}"
        else:
            try:
                asking.send(json.dumps({"pid": os.getpid()}).encode())
            except OSError:  # it did not wait
                os._exit(1)
            return True
    with suppress(OSError):
        asking.send(json.dumps({"reason": reason}).encode())
    return False


def _become_successor(request: dict[str, object], fds: list[int], channel: socket.socket) -> socket.socket:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    environment, numbers = request["environment"], request["fds"]
    assert isinstance(environment, dict)
    assert isinstance(numbers, list)
    # First away from the wanted numbers, so that none is overwritten that is still to be moved.
    taken = {*numbers, *_STANDARD}
    held = [_moved(fd, taken) for fd in (channel.detach(), *fds)]
    for fd, number in zip(held[1:], numbers, strict=True):
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
    os.environ.update(environment)
    forget_program()
    return socket.socket(fileno=held[0])


def _moved(fd: int, taken: set[int]) -> int:
    """The same file under a number that is not taken (not above all of them: the limit may be near)."""
    passed = []
    while fd in taken:
        passed.append(fd)
        fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, fd + 1)
    for number in passed:
        os.close(number)
    return fd


def forget_program() -> None:
    """Have the program's modules imported anew, from what is on disk now; but for `KEPT`."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS and name not in KEPT]:
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        if parent in KEPT and hasattr(sys.modules[parent], child):
            delattr(sys.modules[parent], child)
    importlib.invalidate_caches()


def stamp_now() -> Stamp:
    """What a forked successor shares with its fork server, as it is on disk now: name to version."""
    found: Stamp = {}
    for name in KEPT:
        found[f"the module {name}"] = _digest(getattr(sys.modules[name], "__file__", None))
    found["the standard library"] = _digest(os.__file__)
    interpreter = os.stat(os.path.realpath(sys.executable))
    found["the interpreter"] = interpreter.st_ino, interpreter.st_size, interpreter.st_mtime_ns
    for directory in sys.path:
        with suppress(OSError):
            for entry in os.listdir(directory or "."):
                name, dot, kind = entry.rpartition(".")
                if dot and kind in {"dist-info", "egg-info"} and not name.startswith("onetrip"):
                    found[f"the package {name}"] = True
    return found


def _digest(path: str | None) -> bytes:
    try:
        return hashlib.sha256(Path(path or "").read_bytes()).digest()
    except OSError:
        return b""


def change_since(stamp: Stamp) -> str:
    """The first thing that differs, in words; "" where nothing does."""
    try:
        now = stamp_now()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    for name in sorted(stamp.keys() | now.keys()):
        if stamp.get(name) != now.get(name):
            return f"{name} has {'come' if name not in stamp else 'gone' if name not in now else 'changed'}"
    return ""
