"""
A small server with vLLM's interface and a tiny model, for tests of the protocol and of faults.

It loads adapters from their PEFT folders and writes what the transformers backend writes, so that a run that uses it comes to
what it comes to without. It proves nothing of vLLM itself: `tests/generation/test_vllm_parity.py` does.
"""

import json
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from seal_hf.adapters.adapter import Adapter
from seal_hf.generation.base import Sampling
from seal_hf.generation.transformers_generation import TransformersGenerator


class TokenIds:
    """A tokenizer whose texts are lists of token ids in JSON, without control tokens or a chat template."""

    chat_template, added_tokens_decoder = None, {}

    def __init__(self, tokenizer):
        self.pad_token_id, self.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id

    def __len__(self):
        return 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": json.loads(text)}

    def decode(self, token_ids, skip_special_tokens):
        return json.dumps(token_ids)


def written_tokens(
    generator: TransformersGenerator, prompts: list[list[int]], adapter: Adapter | None, options: dict
) -> list[list[int]]:
    """The tokens after each prompt, by vLLM's sampling parameters."""
    sampling = None
    if options["temperature"]:
        sampling = Sampling((options["seed"],) * len(prompts), options["temperature"], options["top_p"])
    written = generator.generate(
        [json.dumps(ids) for ids in prompts],
        [adapter] * len(prompts),
        max_new_tokens=options["max_tokens"],
        sampling=sampling,
    )
    return [list(one.token_ids) for one in written]


def log_probs(model, token_ids: list[int]) -> list[float]:
    """The log-probability of each token after the first, in nats."""
    row = model.get_input_embeddings().weight.new_tensor([token_ids], dtype=torch.long)
    with torch.no_grad():
        return model(row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0].tolist()


class VLLMServer:
    """
    Parameters:
        model (`PreTrainedModel`):
            The base model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        name (`str`):
            The name by which it has the model.

    Attributes:
        log (`list[tuple]`):
            What it was asked, in order: `("load", name)`, `("unload", name)`, `("begin", model, fields)`, `("end", model)`.
    """

    def __init__(self, model, tokenizer, name):
        self.model, self.name, self.path = model, name, "/models/tiny"
        self.generator = TransformersGenerator(model, TokenIds(tokenizer), name)
        self.version, self.context, self.num_replicas = "0.32.0", 4096, 1
        self.has_lora, self.loads_adapters, self.sees_files, self.needs_key = True, True, True, False
        self.max_loras, self.max_lora_rank = 2, 16
        self.adapters: dict[str, tuple[Adapter, str]] = {}
        self.log, self.faults, self.most_adapters, self.num_used = [], [], 0, 0
        self._lock, self._http, self._port = threading.RLock(), None, 0
        self.connections: set[socket.socket] = set()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begin, or begin again at the same port with no adapter; nothing happens where it runs."""
        if self._http is not None:
            return
        self.adapters.clear()
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", self._port), type("Handler", (Handler,), {"server_state": self})
        )
        self._http.daemon_threads = True
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Answer nobody any more, not on the connections either that clients hold open."""
        if self._http is None:
            return
        self._http.shutdown()
        self._http.server_close()
        self._http = None
        for connection in list(self.connections):
            with suppress(OSError):  # its client has closed it
                connection.shutdown(socket.SHUT_RDWR)

    def note(self, *entry) -> None:
        with self._lock:
            self.log.append(entry)

    def names(self, kind: str) -> list[str]:
        """The adapters or models of all entries of this kind in the log."""
        return [entry[1] for entry in self.log if entry[0] == kind]

    def load(self, name: str, path: str) -> tuple[int, dict | None]:
        self.note("load", name)
        if not self.has_lora:
            return 500, error("Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable LoRA.")
        config = Path(path, "adapter_config.json")
        if not self.sees_files or not config.is_file():
            return 404, error(f"Loading lora {name} failed: No adapter found for {path}")
        r = json.loads(config.read_text())["r"]
        if r > self.max_lora_rank:
            return 500, error(
                f"Call to add_lora method failed: LoRA rank {r} is greater than max_lora_rank {self.max_lora_rank}."
            )
        with self._lock:
            self.adapters[name] = (Adapter.from_pretrained(path, self.model, self.name), path)
            self.most_adapters = max(self.most_adapters, len(self.adapters))
        return 200, None

    def unload(self, name: str) -> tuple[int, dict | None]:
        self.note("unload", name)
        found = self.adapters.pop(name, None)
        return (200, None) if found else (404, error(f"The lora adapter '{name}' cannot be found."))

    def models(self) -> dict:
        base = {"id": self.name, "root": self.path, "parent": None, "max_model_len": self.context}
        loaded = [{"id": name, "root": path, "parent": self.name} for name, (_, path) in self.adapters.items()]
        return {"object": "list", "data": [base, *loaded]}

    def metrics(self) -> str:
        lines = [f'vllm:num_requests_running{{engine="{i}",model_name="tiny"}} 0.0' for i in range(self.num_replicas)]
        if self.has_lora and self.num_used:
            labels = f'max_lora="{self.max_loras}",running_lora_adapters="",waiting_lora_adapters=""'
            lines.append(f"vllm:lora_requests_info{{{labels}}} 1.7e+09")
        return "\n".join(["# HELP vllm:num_requests_running Number of requests.", *lines, ""])

    def write(self, body: dict) -> list[list[int]] | None:
        """The tokens after each prompt; `None` where it has no such model."""
        with self._lock:
            adapter = self.adapters.get(body["model"], (None,))[0]
            if adapter is None and body["model"] != self.name:
                return None
            self.num_used += adapter is not None
            return written_tokens(self.generator, body["prompt"], adapter, body)

    def log_probs(self, token_ids: list[int]) -> list[dict | None]:
        found = log_probs(self.model, token_ids)
        return [None, *({str(token): {"logprob": one}} for token, one in zip(token_ids[1:], found, strict=True))]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: VLLMServer

    def log_message(self, *args):
        pass

    def setup(self):
        super().setup()
        self.server_state.connections.add(self.connection)
        if self.server_state._http is None:  # it stopped between accepting this and here
            self.connection.shutdown(socket.SHUT_RDWR)

    def finish(self):
        self.server_state.connections.discard(self.connection)
        super().finish()

    def do_GET(self):
        state = self.server_state
        routes = {
            "/version": lambda: {"version": state.version},
            "/v1/models": state.models,
            "/metrics": state.metrics,
            "/health": str,
        }
        if self.path not in routes:
            return self.answer(404, {"detail": "Not Found"})
        if state.needs_key and self.path.startswith("/v1"):
            return self.answer(401, {"error": "Unauthorized"})
        self.answer(200, routes[self.path]())

    def do_POST(self):
        state, body = self.server_state, json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions":
            return self.complete(state, body)
        if not state.loads_adapters:
            return self.answer(404, {"detail": "Not Found"})
        if self.path == "/v1/load_lora_adapter":
            return self.answer(*state.load(body["lora_name"], body["lora_path"]))
        self.answer(*state.unload(body["lora_name"]))

    def complete(self, state, body):
        if not body.get("stream"):
            return self.answer(200, {"choices": [{"index": 0, "prompt_logprobs": state.log_probs(body["prompt"])}]})
        state.note("begin", body["model"], {name: value for name, value in body.items() if name != "model"})
        written = state.write(body)
        if written is None:
            return self.answer(404, error(f"The model `{body['model']}` does not exist."))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for first in range(0, max(map(len, written)), 3):
                if state.faults:
                    state.faults.pop(0)(self)
                for index, ids in enumerate(written):
                    if part := ids[first : first + 3]:
                        is_last = first + 3 >= len(ids)
                        length = "length" if len(ids) == body["max_tokens"] else "stop"
                        choice = {"index": index, "token_ids": part, "finish_reason": length if is_last else None}
                        self.send_event({"choices": [choice]})
            self.wfile.write(b"data: [DONE]\n\n")
        except (OSError, Broken):
            return
        finally:
            state.note("end", body["model"])

    def send_event(self, event):
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def answer(self, status, content):
        text = content if isinstance(content, str) else "Success" if content is None else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


class Broken(Exception):
    """The answer ends here."""


def error(message: str) -> dict:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}


def break_off(handler: Handler) -> None:
    """A fault: the connection closes."""
    raise Broken


def break_off_in_a_line(handler: Handler) -> None:
    """A fault: the connection closes after half a line."""
    handler.wfile.write(b'data: {"choices": [{"ind')
    raise Broken


@contextmanager
def served(model, tokenizer, name, **facts):
    server = VLLMServer(model, tokenizer, name)
    for fact, value in facts.items():
        setattr(server, fact, value)
    try:
        yield server
    finally:
        server.stop()
