"""A judge for the tests."""

import threading

import pytest

from helpers.judge_server import JudgeServer


@pytest.fixture
def serve():
    servers = []

    def start(respond):
        server = JudgeServer(respond)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
