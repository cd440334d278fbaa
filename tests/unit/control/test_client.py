"""What the client says when there is no agent, or an agent that is unwell."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenlb.control import client
from xenlb.control.protocol import FAILED, UNREACHABLE, ControlError


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        yield server


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="cannot be reached: there is no ") as caught:
        client.call(tmp_path / "s", "status")
    assert caught.value.status == UNREACHABLE
    assert caught.value.hint == "start it with: systemctl start xenlb"


def test_a_socket_without_a_listener(tmp_path: Path, listening: socket.socket) -> None:
    listening.close()
    with pytest.raises(ControlError, match="no process listens at ") as caught:
        client.call(tmp_path / "s", "status")
    assert caught.value.status == UNREACHABLE


def test_an_agent_that_hangs(tmp_path: Path, listening: socket.socket) -> None:
    with pytest.raises(ControlError, match=r"did not answer within 0\.2 seconds") as caught:
        client.call(tmp_path / "s", "status", patience=0.2)
    assert caught.value.status == UNREACHABLE


@pytest.fixture
def full(tmp_path: Path) -> Iterator[socket.socket]:
    """One whose queue is full."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(tmp_path / "s"))
        server.listen(0)
        first.connect(str(tmp_path / "s"))
        yield server


@pytest.mark.usefixtures("full")
def test_an_agent_that_does_not_accept_connections(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="does not accept connections") as caught:
        client.call(tmp_path / "s", "status", patience=0.2)
    assert "start it" not in caught.value.hint


def test_the_client_waits_for_room_in_a_full_queue(tmp_path: Path, full: socket.socket) -> None:
    def serve() -> None:
        for answer in (b"", b'{"ok": 7}\n'):
            connection, _ = full.accept()
            with connection:
                connection.send(answer)

    answers: list[object] = []
    asking = threading.Thread(
        target=lambda: answers.append(client.call(tmp_path / "s", "status", patience=20))
    )
    asking.start()
    serving = threading.Thread(target=serve)
    serving.start()
    for thread in (asking, serving):
        thread.join(30)
    assert answers == [7]


def test_an_agent_that_is_killed_before_it_reads(tmp_path: Path, listening: socket.socket) -> None:
    """Who waits for it goes on waiting: it is away, not broken."""

    def killed() -> None:
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(1)  # what else was sent stays unread

    thread = threading.Thread(target=killed)
    thread.start()
    with pytest.raises(ControlError, match="stopped while it answered") as caught:
        client.call(tmp_path / "s", "status")
    thread.join()
    assert caught.value.status == UNREACHABLE


@pytest.mark.parametrize(
    ("said", "message", "status"),
    [
        (b"", "stopped while it answered", UNREACHABLE),
        (b'{"item": 1}\n', "stopped while it answered", UNREACHABLE),
        (b"nonsense\n", "connection to the agent broke", FAILED),
        (b"7\n", "connection to the agent broke", FAILED),
        (b'{"error": {}}\n', "connection to the agent broke", FAILED),
    ],
)
def test_an_agent_whose_connection_breaks(
    tmp_path: Path, listening: socket.socket, said: bytes, message: str, status: int
) -> None:
    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(said)

    agent = threading.Thread(target=answer)
    agent.start()
    with pytest.raises(ControlError, match=message) as caught:
        client.call(tmp_path / "s", "status", patience=5)
    agent.join()
    assert caught.value.status == status
