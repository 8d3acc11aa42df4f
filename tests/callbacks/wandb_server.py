"""A server on this machine that answers what a run of W&B asks, and keeps what it was sent."""

from __future__ import annotations

import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

VIEWER = {"id": "VQ==", "flags": "{}", "entity": "team", "username": "user", "email": "", "admin": False,
          "teams": {"edges": []}, "apiKeys": {"edges": []}}  # fmt: skip
KIND = {"__typename": "ArtifactType", "id": "VA==", "name": "run_table", "description": None,
        "createdAt": "2026-01-01T00:00:00Z"}  # fmt: skip


class WandbServer:
    """Listens until it is stopped; `asked` are the variables of each GraphQL request, `streams` the lines of files."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    content = gzip.decompress(content)
                data = json.dumps(outer.reply(self.path, content)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = answer

        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.streams: dict[str, list[str]] = {}
        self.uploads: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Be gone: further connections are refused."""
        self.server.shutdown()
        self.server.server_close()

    def reply(self, path: str, content: bytes) -> dict[str, Any]:
        if path == "/graphql":
            request = json.loads(content)
            query, variables = request["query"], request.get("variables") or {}
            self.asked.append((query, variables))
            return {"data": self.data(query, variables)}
        if path.endswith("/file_stream"):
            for name, part in (json.loads(content).get("files") or {}).items():
                self.streams.setdefault(name, []).extend(part["content"])
        elif path.startswith("/upload/"):
            self.uploads.append(path.removeprefix("/upload/"))
        return {}

    def data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            project = {"id": "UA==", "name": variables["project"], "entity": {"id": "RQ==", "name": "team"}}
            bucket = {"id": "Qg==", "name": variables["name"], "displayName": variables["displayName"],
                      "description": None, "config": "{}", "sweepName": None, "project": project,
                      "historyLineCount": 0}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createArtifact(" in query:
            sequence = {"id": "Uw==", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "QQ==", "state": "COMMITTED", "artifactSequence": sequence}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "Qg==", "uploadHeaders": [], "files": files}}
        if "artifactType" in query:
            return {"project": {"artifactType": KIND, "artifact": {"artifactType": {"name": "run_table"}}}}
        if "serverInfo" in query:
            return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "features": []}, "viewer": VIEWER}
        return {"viewer": VIEWER}

    def run(self) -> dict[str, Any]:
        """What was said of the run: its name, group, job type, tags, configuration."""
        return next(variables for query, variables in self.asked if "upsertBucket" in query)

    def history(self) -> list[dict[str, Any]]:
        """The rows of history that arrived."""
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", ())]
