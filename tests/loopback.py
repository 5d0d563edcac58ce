"""A judge on this machine that speaks the OpenAI protocol, and does what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Judge:
    """Serves on a free port while entered. ``answer`` gets the body of a request.

    It returns the text of an answer, a mapping from its first token to their logarithms of
    probability, or the status of an error.
    """

    answer: Callable[[dict[str, Any]], str | dict[str, float] | int]
    calls: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def __enter__(self) -> Judge:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.calls.append(body)
                judge.keys.add(self.headers.get("Authorization", ""))
                said = judge.answer(body)
                status = said if isinstance(said, int) else 200
                key = self.headers.get("Authorization", "")
                error = {"error": {"message": f"told to answer {status} to {key}", "type": "test"}}
                held = json.dumps(error if status != 200 else _completion(body, said)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(held)))
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(held)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """What to give as ``--base-url``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"


def _completion(body: dict[str, Any], said: Any) -> dict[str, Any]:
    tokens = said if isinstance(said, dict) else {}
    best = max(tokens, key=tokens.__getitem__) if tokens else said
    top = [{"token": t, "bytes": None, "logprob": p} for t, p in tokens.items()]
    logprobs = {"content": [{**top[0], "top_logprobs": top}]} if tokens else None
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": best},
        "logprobs": logprobs,
    }
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
