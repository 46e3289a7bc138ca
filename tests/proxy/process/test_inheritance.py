"""Listening sockets: bound, taken over from a predecessor, or given by systemd."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.config import Address, parse_config
from proxy.process import inheritance as listening
from proxy.process.inheritance import ADMIN, READY_VARIABLE, SOCKETS_VARIABLE, bind, environment_for, open_sockets


def config(web: str = "127.0.0.1:0", admin: str = "127.0.0.1:0", more: str = "") -> Any:
    return parse_config(
        f"""
listeners:
  - {{name: web, address: "{web}", upstream: app{more}}}
upstreams: {{app: {{regions: {{here: {{endpoints: ["127.0.0.1:1"]}}}}}}}}
admin: {{address: "{admin}"}}
"""
    )


class Kept:
    """Sockets that are closed in the end."""

    def __init__(self) -> None:
        self.all: list[socket.socket] = []

    def __call__(self, sock: socket.socket) -> socket.socket:
        self.all.append(sock)
        return sock

    def open(self, *args: Any, **kwargs: Any) -> dict[str, socket.socket]:
        found = open_sockets(config(*args, **kwargs))
        self.all += found.values()
        return found

    def server(self) -> socket.socket:
        return self(socket.create_server(("127.0.0.1", 0)))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    for name in (SOCKETS_VARIABLE, READY_VARIABLE, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    kept = Kept()
    yield kept
    for sock in kept.all:
        sock.close()


def port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def answers(sock: socket.socket) -> bool:
    with socket.socket(sock.family) as client:
        client.settimeout(2)
        return client.connect_ex(sock.getsockname()) == 0


# Binding.


def test_every_listener_and_the_admin_address_gets_one(kept: Kept) -> None:
    found = kept.open()
    assert set(found) == {"web", ADMIN}
    for sock in found.values():
        assert answers(sock)
        assert sock.gettimeout() == 0.0
        assert not sock.get_inheritable()


def test_a_name_is_resolved_and_a_port_bound_again_at_once(kept: Kept) -> None:
    sock = kept(bind(Address("localhost", 0)))
    again = Address("localhost", port(sock))
    with socket.create_connection(sock.getsockname()), sock.accept()[0] as accepted:
        accepted.shutdown(socket.SHUT_WR)  # the side that closes first waits (TIME_WAIT)
    sock.close()
    kept(bind(again))


def test_ipv6_does_not_take_ipv4_away(kept: Kept) -> None:
    sock = kept(bind(Address("::", 0)))
    kept(bind(Address("0.0.0.0", port(sock))))


def test_an_address_in_use_is_named(kept: Kept) -> None:
    taken = kept.server()
    with pytest.raises(OSError, match=rf"^can't listen on 127\.0\.0\.1:{port(taken)}: Address already in use$"):
        bind(Address("127.0.0.1", port(taken)))


def test_a_low_port_without_the_right_gets_a_hint(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listening.socket, "socket", type("Socket", (socket.socket,), {"bind": refuse}))
    with pytest.raises(OSError, match=r"127\.0\.0\.1:80: Permission denied \(ports below 1024 need root"):
        bind(Address("127.0.0.1", 80))
    with pytest.raises(OSError, match=r"Permission denied$"):
        bind(Address("127.0.0.1", 8080))


def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(OSError, match=r"can't listen on no-such-name\.invalid:80: "):
        bind(Address("no-such-name.invalid", 80))


def test_what_was_bound_is_closed_when_the_rest_fails(kept: Kept) -> None:
    taken = kept.server()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="can't listen"):
        open_sockets(config(admin=f"127.0.0.1:{port(taken)}"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_fast_open_is_asked_for(kept: Kept) -> None:
    sock = kept(bind(Address("127.0.0.1", 0), fast_open=True))
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == listening.FAST_OPEN_QUEUE


# Unix sockets.


def test_a_unix_socket(kept: Kept, tmp_path: Path) -> None:
    sock = kept(bind(Address(path=str(tmp_path / "web.sock"))))
    assert answers(sock)


def test_what_a_dead_program_left_is_replaced(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert answers(kept(bind(Address(path=str(path)))))


def test_what_a_living_program_listens_on_is_not(kept: Kept, tmp_path: Path) -> None:
    path = str(tmp_path / "web.sock")
    living = kept(bind(Address(path=path)))
    with pytest.raises(OSError, match="Address already in use"):
        bind(Address(path=path))
    assert answers(living)


def test_a_file_of_somebody_elses_is_not_removed(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        bind(Address(path=str(path)))
    assert path.read_text() == "precious"


# From a predecessor.


def handed(monkeypatch: pytest.MonkeyPatch, sockets: dict[str, socket.socket]) -> dict[str, int]:
    """As a successor sees them: descriptors of its own. Returns their numbers."""
    numbers = {name: os.dup(sock.fileno()) for name, sock in sockets.items()}
    monkeypatch.setenv(SOCKETS_VARIABLE, json.dumps(numbers))
    return numbers


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def test_a_predecessors_sockets_are_used(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"web": kept.server(), ADMIN: kept.server()}
    numbers = handed(monkeypatch, before)
    found = kept.open(f"127.0.0.1:{port(before['web'])}")
    assert {name: sock.fileno() for name, sock in found.items()} == numbers
    assert all(sock.gettimeout() == 0.0 and not sock.get_inheritable() for sock in found.values())
    assert SOCKETS_VARIABLE not in os.environ, "no program that is started later sees them"


def test_what_the_config_no_longer_names_is_closed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = kept.server()
    numbers = handed(monkeypatch, {"gone": gone})
    assert set(kept.open()) == {"web", ADMIN}
    assert closed(numbers["gone"])


@pytest.mark.parametrize("wanted", ["127.0.0.1:{other}", "127.0.0.2:{same}", "[::1]:{same}", "unix:{path}"])
def test_an_address_that_changed_is_bound_anew(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, wanted: str, tmp_path: Path
) -> None:
    before, other = kept.server(), kept.server()
    free = port(other)
    other.close()
    numbers = handed(monkeypatch, {"web": before})
    address = wanted.format(same=port(before), other=free, path=tmp_path / "web.sock")
    found = kept.open(address)["web"]
    assert found.getsockname() != before.getsockname()
    assert answers(found)
    assert found.fileno() == numbers["web"] or closed(numbers["web"])


def test_a_unix_socket_is_taken_over(kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "web.sock")
    numbers = handed(monkeypatch, {"web": kept(bind(Address(path=path)))})
    assert kept.open(f"unix:{path}")["web"].fileno() == numbers["web"]


def test_any_name_is_handed_over(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = kept.server()
    extra, _ = environment_for({"a,b=c d": sock}, 42)
    monkeypatch.setenv(SOCKETS_VARIABLE, extra[SOCKETS_VARIABLE])
    assert list(listening._handed_over()) == ["a,b=c d"]
    sock.detach()


def test_what_a_successor_is_given(kept: Kept) -> None:
    web, admin = kept.server(), kept.server()
    extra, fds = environment_for({"web": web, ADMIN: admin}, 42)
    assert extra == {SOCKETS_VARIABLE: json.dumps({"web": web.fileno(), "admin": admin.fileno()}), READY_VARIABLE: "42"}
    assert fds == [web.fileno(), admin.fileno(), 42]


def test_the_predecessor_is_told_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv(READY_VARIABLE, str(writer))
    listening.tell_predecessor()
    listening.tell_predecessor()
    assert os.read(reader, 100) == b"ready"
    assert os.read(reader, 100) == b"", "and the pipe is closed"
    os.close(reader)


# From systemd.


def test_systemd_sockets_are_used_whatever_their_address(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """sd_listen_fds(3): from descriptor 3 on, with names."""
    given = {"unnamed": kept.server(), "web": kept.server()}
    start = next(number for number in range(500, 1000) if closed(number) and closed(number + 1))
    for number, sock in enumerate(given.values(), start):
        os.dup2(sock.fileno(), number)
    monkeypatch.setattr(listening, "_LISTEN_FDS_START", start)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_FDNAMES", "unnamed:web")
    found = kept.open()
    assert found["web"].getsockname() == given["web"].getsockname()
    assert closed(start), "what no listener is called is closed"
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)


def test_sockets_for_another_process_are_left_alone(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "web")
    assert set(kept.open()) == {"web", ADMIN}


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_notified(kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"\0onetrip-{os.getpid()}"
    receiver = kept(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    receiver.bind(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
    listening.notify_systemd("READY=1", "MAINPID=7")
    assert receiver.recv(100) == b"READY=1\nMAINPID=7"


def test_without_systemd_nothing_is_notified(kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listening.notify_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    listening.notify_systemd("READY=1")
