"""A hub on 127.0.0.1 that speaks as much of the protocol as uploading and downloading a small repository takes."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class FakeHub:
    """Repositories in memory: id -> file name -> content; and what was asked of the server."""

    endpoint: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    token: str = "hf_writer"

    def commit(self, repo: str) -> str:
        """Return the commit id of a repository: a digest of its files."""
        digest = hashlib.sha1()
        for name, content in sorted(self.repos[repo].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request of huggingface_hub's client."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def answer(self, content: bytes | dict, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        body = self.body()
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, body, *found.groups())
        return self.answer({"error": f"not found: {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = route

    def allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self.answer({"error": "Invalid username or password."}, 401)
        return False

    def create(self, body: bytes) -> None:
        if self.allowed():
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.hub.repos.setdefault(repo, {})
            self.hub.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.answer({"url": f"{self.hub.endpoint}/{repo}"})

    def check_card(self, body: bytes) -> None:
        self.answer({"errors": [] if json.loads(body)["content"].startswith("---\n") else ["no front matter"]})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = json.loads(body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular",
             "shouldIgnore": False} for f in files
        ]  # fmt: skip
        self.answer({"files": modes, "commitOid": self.hub.commit(repo)})

    def lfs(self, body: bytes, repo: str) -> None:
        objects = [
            {**{k: o[k] for k in ("oid", "size")},
             "actions": {"upload": {"href": f"{self.hub.endpoint}/blobs/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]  # fmt: skip
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put(self, body: bytes, oid: str) -> None:
        self.hub.blobs[oid] = body
        self.answer({})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if not self.allowed():
            return
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.blobs[value["oid"]]
        oid = self.hub.commit(repo)
        self.answer({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if repo not in self.hub.repos or revision not in ("main", self.hub.commit(repo)):
            code = "RevisionNotFound" if repo in self.hub.repos else "RepoNotFound"
            self.answer({"error": code}, 404, X_Error_Code=code)
            return
        siblings = [{"rfilename": name} for name in self.hub.repos[repo]]
        self.answer({"id": repo, "modelId": repo, "sha": self.hub.commit(repo), "private": False, "tags": [],
                     "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        files = self.hub.repos[repo].items()
        listed = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files]
        self.answer(json.dumps(listed).encode(), Content_Type="application/json")

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            self.answer({}, 404, X_Error_Code="EntryNotFound")
            return
        self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=self.hub.commit(repo))


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.check_card,
    f"POST /api/models/{REPO}/preupload/(.+)": Handler.preupload,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": Handler.lfs,
    r"PUT /blobs/(\w+)": Handler.put,
    f"POST /api/models/{REPO}/commit/(.+)": Handler.commit,
    f"GET /api/models/{REPO}/revision/(.+)": Handler.info,
    f"GET /api/models/{REPO}": Handler.info,
    f"GET /api/models/{REPO}/tree/(.+)": Handler.tree,
    f"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)": Handler.resolve,
}


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub on a free port for as long as the block lasts."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
