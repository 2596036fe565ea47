"""A connection to a server that can be cut, or kept from carrying anything, while the server itself goes on."""

import socket
import threading
from contextlib import contextmanager, suppress


class Line:
    """
    Passes on what is sent to a local port.

    Parameters:
        port (`int`):
            Where the server listens.
    """

    def __init__(self, port: int):
        self._server_port, self._port = port, 0
        self._flows = threading.Event()
        self._flows.set()
        self._ends: list[socket.socket] = []
        self.connect()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def connect(self) -> None:
        """Take connections, at the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """End all connections, and take no more."""
        for end in (self._listener, *self._ends):
            with suppress(OSError):  # whose other side has ended it
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def freeze(self) -> None:
        """Carry nothing, and tell nobody."""
        self._flows.clear()

    def thaw(self) -> None:
        """Carry all that has been waiting, and what comes."""
        self._flows.set()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # cut
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._ends += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # cut
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def line_to(url: str):
    line = Line(int(url.rpartition(":")[2]))
    try:
        yield line
    finally:
        line.thaw()
        line.cut()
