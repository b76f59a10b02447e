"""A stand-in for vLLM's server on a local port: checks the protocol as the connector does, and streams like vLLM."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from foreword.backbone import Backbone
from foreword.engines.prefix_files import digest_of, read_head, read_layers
from foreword.generate.offline import generate_ids
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row


class StubVllm:
    """Answers `/v1/completions` with what `answer(body)` gives, token by token.

    Attributes:
        bodies: all requests so far.
        fault: `busy` (503), `refuse` (400), `error` (an error event first), `break` (closes after the first token),
            or None.
        token_sec: time between two tokens.
        left: how many clients went away before the end.
    """

    def __init__(self, answer: Callable[[dict], list[int]]) -> None:
        self.answer, self.bodies, self.fault, self.token_sec, self.left = answer, [], None, 0.0, 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.bodies.append(body)
                stub._reply(self, body)

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict) -> None:
        if self.fault in ("busy", "refuse"):
            handler.send_response(503 if self.fault == "busy" else 400)
            handler.end_headers()
            handler.wfile.write(json.dumps({"error": {"message": "max_model_len is 8"}}).encode())
            return
        handler.send_response(200)
        handler.end_headers()
        try:
            self._stream(handler.wfile, body)
        except OSError:
            self.left += 1

    def _stream(self, out, body: dict) -> None:
        if self.fault == "error":
            out.write(b'data: {"error": {"message": "Internal server error"}}\n\ndata: [DONE]\n\n')
            return
        tokens = self.answer(body)
        for at, token in enumerate(tokens):
            time.sleep(self.token_sec)
            last = at + 1 == len(tokens)
            reason = None if not last else "length" if len(tokens) == body["max_tokens"] else "stop"
            choice = {"index": 0, "text": "?", "token_ids": [token], "finish_reason": reason}
            if body.get("logprobs") is not None:
                others = {f"token_id:{token}": -0.5, "token_id:9": -0.25, "token_id:8": -2.0}
                choice["logprobs"] = {"token_logprobs": [-0.5], "top_logprobs": [others]}
            out.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            out.flush()
            if self.fault == "break":
                return
        out.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')


def exact(backbone: Backbone, folder: Path) -> Callable[[dict], list[int]]:
    """Return an answer by the backbone itself, with the prefix read from its file: what vLLM is meant to compute."""
    lock = threading.Lock()

    def answer(body: dict) -> list[int]:
        digest, ids, prompt = digest_of(body.get("cache_salt")), body["prompt"], None
        if digest is not None:
            head = read_head(folder, digest)
            assert ids[: head.length] == [head.placeholder] * head.length, "placeholders are missing"
            ids = ids[head.length :]
            layers = [tuple(t.transpose(0, 1) for t in pair) for pair in read_layers(folder, digest)]
            states = dict(zip(backbone.geometry.sites, layers, strict=True))
            prompt = PrefixKV(states, head.length)  # a BOS that it includes was left out by the gateway
        with lock:
            return generate_ids(backbone, [Row(tuple(ids))], [prompt], max_new_tokens=body["max_tokens"])[0]

    return answer


def counting(body: dict) -> list[int]:
    """An answer by rule: letters that follow the prompt's last id."""
    return [36 + (body["prompt"][-1] + step) % 50 for step in range(body["max_tokens"])]


def asked(**fields) -> SimpleNamespace:
    """Return what the scheduler's half of the connector sees of one of vLLM's requests."""
    ids = fields["ids"]
    sampling = SimpleNamespace(prompt_logprobs=fields.get("prompt_logprobs"))
    return SimpleNamespace(
        request_id="r1", cache_salt=fields.get("salt"), prompt_token_ids=ids, num_tokens=len(ids or range(40)),
        sampling_params=None if fields.get("pooling") else sampling, skip_reading_prefix_cache=False,
    )
