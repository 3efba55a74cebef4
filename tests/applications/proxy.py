"""A line between client and server that loses the answer to a COMMIT."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes connections on to a port; after `lose_commits` of n, the next n answers to COMMIT are lost."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._left = 0
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_commits(self, number: int) -> None:
        self._left = number

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        cut = threading.Event()
        threading.Thread(target=self._answers, args=(client, server, cut), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(65536):
                if self._left and b"COMMIT\0" in data:
                    self._left -= 1
                    cut.set()
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answers(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if cut.is_set():
                    # The server has committed: it has answered.
                    self.lost += 1
                    break
                client.sendall(data)
        for line in (client, server):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
