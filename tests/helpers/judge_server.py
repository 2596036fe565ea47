"""An endpoint on this machine that judges as a test says."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeServer(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint whose `respond(prompt, attempt)` gives `(status, reply text or raw body)`."""

    request_queue_size = 32

    def __init__(self, respond):
        super().__init__(("127.0.0.1", 0), JudgeHandler)
        self.respond = respond
        self.lock = threading.Lock()
        self.attempts = Counter()
        self.requests = []
        self.under_way = self.most_under_way = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class JudgeHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["messages"][0]["content"]
        server = self.server
        with server.lock:
            server.requests.append((self.path, dict(self.headers.items()), request))
            server.attempts[prompt] += 1
            attempt = server.attempts[prompt]
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        status, reply = server.respond(prompt, attempt)
        with server.lock:
            server.under_way -= 1
        message = {"role": "assistant", "content": reply}
        body = (
            reply if isinstance(reply, bytes) else json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass
