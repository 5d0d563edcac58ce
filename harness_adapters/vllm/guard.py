"""Ask for the API key on every path of ``vllm serve``, by vLLM's own option for such code.

    VLLM_API_KEY=… vllm serve DIR --middleware harness_adapters.vllm.guard.EveryPath …

vLLM asks for its key under /v1 and leaves the endpoints open that VLLM_SERVER_DEV_MODE=1 adds, with
which anybody who reaches the port can replace the model.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from harness_adapters.vllm import KEY
from merge_plugins.errors import MergeError

OPEN = ("/health", "/ping")
"""Paths that tell a load balancer whether the server lives, and no more."""
ASGI = Callable[..., Awaitable[None]]


class EveryPath:
    """Answer 401 to a request without the key in $VLLM_API_KEY; an ASGI middleware."""

    def __init__(self, app: ASGI) -> None:
        key = os.environ.get(KEY)
        if not key:
            raise MergeError(f"set {KEY} in the server's environment: every request must have it")
        self._app, self._wanted = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: ASGI) -> None:
        """Hand a request on, or refuse it."""
        headers = dict(scope.get("headers", ()))
        known = secrets.compare_digest(headers.get(b"authorization", b""), self._wanted)
        if known or scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"Unauthorized"})
