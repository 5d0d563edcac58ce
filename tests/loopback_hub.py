"""A hub on this machine that serves the models in a folder, over its protocol for reading."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_of(root: Path) -> Iterator[str]:
    """Serve the models ``root/org/name``; yields what to set ``HF_ENDPOINT`` to."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def answer(self, content: bytes, **headers: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0]).strip("/").split("/")
            if path[0] == "api":
                repo = root / path[2] / path[3]
                files = [file for file in repo.rglob("*") if file.is_file()]
                names = [str(file.relative_to(repo)) for file in files]
                tree = [entry(repo, name) for name in names]
                info = {"sha": COMMIT, "siblings": [{"rfilename": n} for n in names], "id": "x/y"}
                self.answer(json.dumps(tree if path[4] == "tree" else info).encode())
                return
            content = (root / path[0] / path[1]).joinpath(*path[4:]).read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            self.answer(content, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)

        def do_HEAD(self) -> None:
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(repo: Path, name: str) -> dict[str, Any]:
    raw = (repo / name).read_bytes()
    git = hashlib.sha1(b"blob %d\0%s" % (len(raw), raw)).hexdigest()
    return {"type": "file", "path": name, "size": len(raw), "oid": git}
