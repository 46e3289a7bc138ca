"""Load generators: what they are asked, what their output means, and the open loop against a small server."""

import socket
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.peers.load import (
    REQUEST,
    SMALL,
    Done,
    Load,
    LoadFailed,
    idle_clients,
    parse_h2load,
    parse_wrk,
    wrk_script,
)
from loadtests.peers.openloop import OpenLoop, percentile
from loadtests.peers.origin import start_origin
from loadtests.peers.profile import flat
from loadtests.peers.wiring import make_credentials

from ..programs import needs

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n" + SMALL

WRK = """\
Running 1s test @ http://127.0.0.1:18999/echo
  38589 requests in 1.10s, 609.03MB read

RESULT {"requests":38589,"bytes":638609361,"duration_us":1100012,"errors":3,"p50_us":205,"p99_us":410}
"""

H2LOAD = """\
finished in 2.00s, 35088.00 req/s, 1.25MB/s
requests: 70176 total, 70240 started, 70176 done, 70170 succeeded, 6 failed, 0 errored, 0 timeout
status codes: 70160 2xx, 0 3xx, 10 4xx, 0 5xx
traffic: 2.50MB (2621440) total, 70.00KB (71680) headers (space savings 95.00%), 822.38KB (842112) data
"""


def test_wrk_s_result_is_read():
    assert parse_wrk(WRK) == Done(38589, 638609361, 1.100012, 3, 205, 410)
    assert parse_wrk("unable to connect to 127.0.0.1:1") is None


def test_h2load_s_result_counts_what_was_not_2xx_as_errors():
    assert parse_h2load(H2LOAD) == Done(70160, 2621440, 2.0, 16)
    assert parse_h2load(H2LOAD.replace("2.00s", "250.00ms")).duration_s == 0.25
    assert parse_h2load("could not connect") is None


def test_the_script_shapes_the_requests():
    script = wrk_script(Load("/echo", 64, body_bytes=16384, close=True))
    assert 'wrk.method = "POST"' in script
    assert 'string.rep("x", 16384)' in script
    assert 'wrk.headers["Connection"] = "close"' in script
    plain = wrk_script(Load("/small", 64))
    assert "POST" not in plain
    assert "Connection" not in plain


def test_a_grpc_call_gets_its_message_back_and_a_status(tmp_path):
    needs("nginx", "nghttp")
    message = tmp_path / "message"
    message.write_bytes(b"\0\0\0\0\x05hello")
    with tempfile.TemporaryDirectory(prefix="onetrip-") as place:
        Path(place).chmod(0o755)  # started by root, nginx's workers are nobody
        heard = called(message, start_origin(Path(place) / "origin", make_credentials(Path(place)), 0))
    assert "content-type: application/grpc" in heard
    assert "grpc-status: 0" in heard
    assert "hello" in heard


def called(message, origin):
    with origin.program:
        command = [
            needs("nghttp"),
            "-v",
            f"https://127.0.0.1:{origin.h2}/bench.Echo/Call",
        ]
        command += ["-d", str(message), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


@contextmanager
def server(answer, chunks=1):
    """Answers every request with the same bytes, in so many writes; an empty answer closes."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def serve(client):
        with client:
            received = b""
            while more := client.recv(65536):
                received += more
                while received.startswith(REQUEST):
                    received = received[len(REQUEST) :]
                    reply = answer() if callable(answer) else answer
                    if not reply:
                        return
                    size = -(-len(reply) // chunks)
                    for start in range(0, len(reply), size):
                        client.sendall(reply[start : start + size])

    def accept():
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_open_loop_sends_what_is_due_and_counts_each_answer(chunks):
    with server(ANSWER, chunks) as port:
        loop = OpenLoop(port, rate=400, connections=4)
        result = loop.run(0.25)
        loop.close()
    assert len(result.due_s) == len(result.sent_s) == 100
    assert all(due >= sent > 0 for due, sent in zip(result.due_s, result.sent_s, strict=True))


def test_a_stall_counts_for_every_request_it_delayed():
    stalled = threading.Event()
    count = 0

    def answer():
        nonlocal count
        count += 1
        if count == 2:  # the first one belongs to connecting
            stalled.wait(0.2)
        return ANSWER

    with server(answer) as port:
        loop = OpenLoop(port, rate=100, connections=1)
        result = loop.run(0.1)
        loop.close()
    assert len(result.due_s) == 10
    assert sum(due > 0.1 for due in result.due_s) >= 9
    assert sum(sent > 0.1 for sent in result.sent_s) == 1
    assert result.late_starts == 9


@pytest.mark.parametrize("wrong", [b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", b""])
def test_a_wrong_answer_ends_the_open_loop(wrong):
    answers = iter([ANSWER])
    with server(lambda: next(answers, wrong)) as port:
        loop = OpenLoop(port, rate=100, connections=1)
        with pytest.raises(LoadFailed, match="answered"):
            loop.run(0.1)
        loop.close()


def test_percentiles_are_nearest_ranks():
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 50) == 51.0
    assert percentile(values, 99) == 100.0
    assert percentile([3.0], 99) == 3.0


def test_idle_clients_are_held_and_the_closed_ones_counted():
    with server(ANSWER) as port, idle_clients(5, port) as clients:
        assert len(clients) == 5
        assert clients.closed() == 0


def test_an_idle_client_that_is_refused_fails_loudly():
    wrong = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull"
    with server(wrong) as port, pytest.raises(LoadFailed, match="503 Service Unavailable: full"), idle_clients(1, port):
        pass


def test_a_closed_idle_client_is_seen():
    closing = ANSWER
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def accept():
        client = listener.accept()[0]
        client.recv(65536)
        client.sendall(closing)
        client.shutdown(socket.SHUT_WR)
        accepted.append(client)

    thread = threading.Thread(target=accept)
    thread.start()
    with idle_clients(1, listener.getsockname()[1]) as clients:
        thread.join()
        assert clients.closed() == 1
    accepted[0].close()
    listener.close()


def test_a_profile_sums_the_lines_of_a_function():
    raw = (
        "process 1:serve;run (loop.py:1);parse (h1.py:10) 6\n"
        "process 1:serve;run (loop.py:1);parse (h1.py:99) 2\n"
        "process 1:serve;run (loop.py:7) 2\n"
        "process 1:serve;_bootstrap (threading.py:9);wait (threading.py:327) 10\n"
    )
    lines = flat(raw).splitlines()
    assert lines[0].startswith("10 samples")
    assert lines[2].split() == ["80.0", "80.0", "parse", "(h1.py)"]
    assert lines[3].split() == ["20.0", "100.0", "run", "(loop.py)"]
    assert flat("") == "no samples"
