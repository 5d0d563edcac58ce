"""A hub on this machine that serves the models in a folder, and takes new ones from who logs in."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN, READ_TOKEN = "hf_to_write", "hf_to_read"


@dataclass
class Hub:
    """What the hub holds besides files, which are in ``root/org/name``."""

    root: Path
    commits: dict[str, list[str]] = field(default_factory=dict)
    """Messages of the commits to each repository."""
    private: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    """Uploaded files that no commit names yet, by hash."""

    def sha(self, repo: str) -> str:
        made = self.commits.get(repo)
        return COMMIT if not made else hashlib.sha1(repr(made).encode()).hexdigest()


@contextmanager
def hub_of(root: Path) -> Iterator[str]:
    """Serve the models ``root/org/name``; yields what to set ``HF_ENDPOINT`` to."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """The hub's protocol, as far as huggingface_hub speaks it to read and write models."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def say(self, content: Any, status: int = 200, **headers: str) -> None:
        self.answer(
            json.dumps(content).encode(), status, Content_Type="application/json", **headers
        )

    @property
    def words(self) -> list[str]:
        return unquote(self.path.partition("?")[0]).strip("/").split("/")

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def body(self) -> bytes:
        """Read what was sent, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = self.words
        if words == ["api", "whoami-v2"]:
            self.whoami()
            return
        repo = "/".join(words[2:4] if words[0] == "api" else words[:2])
        folder = self.hub.root / repo
        if not folder.is_dir():
            self.say({"error": "no such model"}, 404, X_Error_Code="RepoNotFound")
        elif words[0] == "api":
            names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
            tree = [entry(folder, name) for name in names]
            siblings = [{"rfilename": name} for name in names]
            info = {"sha": self.hub.sha(repo), "siblings": siblings, "id": repo}
            info["private"] = repo in self.hub.private
            self.say(tree if words[4:5] == ["tree"] else info)
        elif not (file := folder.joinpath(*words[4:])).is_file():
            self.say({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
        else:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(content, ETag=tag, X_Repo_Commit=self.hub.sha(repo))

    def whoami(self) -> None:
        if self.token not in (TOKEN, READ_TOKEN):
            self.say({"error": "Invalid username or password."}, 401)
            return
        role = "write" if self.token == TOKEN else "read"
        orgs = [{"name": "lab", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]
        auth = {"accessToken": {"displayName": "mine", "role": role}}
        self.say({"type": "user", "name": "me", "orgs": orgs, "auth": auth})

    def do_PUT(self) -> None:
        content = self.body()
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self.say({})

    def do_POST(self) -> None:
        body, words = self.body(), self.words
        if self.token != TOKEN:
            self.say({"error": "this token may not write"}, 403)
        elif words == ["api", "validate-yaml"]:
            self.validate(json.loads(body)["content"])
        elif words == ["api", "repos", "create"]:
            self.create(json.loads(body))
        elif words[4:5] == ["preupload"]:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.say({"files": files})
        elif words[-2:] == ["objects", "batch"]:
            self.say(
                {"transfer": "basic", "objects": [*map(self.place, json.loads(body)["objects"])]}
            )
        elif words[4:5] == ["commit"]:
            self.commit("/".join(words[2:4]), [json.loads(line) for line in body.splitlines()])

    def validate(self, content: str) -> None:
        front: Mapping[str, Any] = yaml.safe_load(content.split("---\n")[1])
        wrong = [{"message": f'"{key}" must be text'} for key in ("license", "library_name")
                 if not isinstance(front.get(key, ""), str)]  # fmt: skip
        self.say({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def create(self, asked: Mapping[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        folder = self.hub.root / repo
        if folder.exists():
            self.say({"error": "You already created this model repo"}, 409)
            return
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self.say({"url": f"http://{self.headers['Host']}/{repo}", "name": repo})

    def place(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        href = f"http://{self.headers['Host']}/large/{asked['oid']}"
        return {**asked, "actions": {"upload": {"href": href}}}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        folder, (header, *changes) = self.hub.root / repo, lines
        parent = header["value"].get("parentCommit")
        if parent not in (None, self.hub.sha(repo)):
            self.say({"error": "somebody was faster"}, 412)
            return
        for change in changes:
            value, file = change["value"], folder / change["value"]["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if change["key"] == "file":
                file.write_bytes(base64.b64decode(value["content"]))
            elif change["key"] == "lfsFile":
                file.write_bytes(self.hub.large[value["oid"]])
            else:
                file.unlink()
        self.hub.commits.setdefault(repo, []).append(header["value"]["summary"])
        url = f"http://{self.headers['Host']}/{repo}/commit/{self.hub.sha(repo)}"
        self.say({"success": True, "commitOid": self.hub.sha(repo), "commitUrl": url})


def entry(repo: Path, name: str) -> dict[str, Any]:
    raw = (repo / name).read_bytes()
    git = hashlib.sha1(b"blob %d\0%s" % (len(raw), raw)).hexdigest()
    return {"type": "file", "path": name, "size": len(raw), "oid": git}
