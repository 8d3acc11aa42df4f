"""A hub of one process: what the client of the Hugging Face hub asks of it for downloads and small uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


class Hub:
    """Repositories by name, each a list of commits, each file name -> content."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.address = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        commits = self.repositories.setdefault(repository, [])
        commits.append({**(commits[-1] if commits else {}), **files})
        return self.oid(repository, len(commits) - 1)

    def oid(self, repository: str, index: int) -> str:
        return hashlib.sha1(f"{repository} {index}".encode()).hexdigest()

    def at(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories.get(repository, [])
        for index, files in reversed(list(enumerate(commits))):
            if revision in ("main", self.oid(repository, index)):
                return self.oid(repository, index), files
        return None


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

        def answer(self, code: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def as_json(self, content: object, code: int = 200) -> None:
            self.answer(code, json.dumps(content).encode(), content_type="application/json")

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[0] == "api":
                return self.as_json({"id": "/".join(parts[2:4]), "sha": "0" * 40, "siblings": []})
            repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            if repository not in hub.repositories:
                return self.answer(404, x_error_code="RepoNotFound")
            found = hub.at(repository, revision)
            if found is None:
                return self.answer(404, x_error_code="RevisionNotFound")
            commit, files = found
            if name not in files:
                return self.answer(404, x_error_code="EntryNotFound", x_repo_commit=commit)
            etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
            return self.answer(200, files[name], x_repo_commit=commit, etag=etag)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                return self.as_json({"error": "who are you?"}, 401)
            if self.path.startswith("/api/validate-yaml"):
                return self.as_json({"errors": [], "warnings": []})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.repositories.setdefault(name, [])
                return self.as_json({"url": f"{hub.address}/{name}"})
            parts = self.path.partition("?")[0].strip("/").split("/")
            repository, what = "/".join(parts[2:4]), parts[4]
            if what == "preupload":
                wanted = json.loads(body)["files"]
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
                return self.as_json({"files": files})
            lines = [json.loads(line) for line in body.splitlines() if line]
            added = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            oid = hub.commit(repository, added)
            return self.as_json({"commitUrl": f"{hub.address}/{repository}/commit/{oid}", "commitOid": oid})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
