"""A small server that answers as Hugging Face's hub does to the calls that a fetch and an upload of a model make."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

KEY = "hf_loopback"


class Hub:
    """Repositories by name, each with its files. `asked` has every request; `refused`: no key may write."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refused = False

    def commit(self, repository: str) -> str:
        """The name of the newest commit, 40 hex digits."""
        digest = hashlib.sha1()
        for name, data in sorted(self.files[repository].items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()


@contextmanager
def serve() -> Iterator[tuple[Hub, str]]:
    """Yield the hub and its URL, for HF_ENDPOINT."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _page(self, repository: str) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host}:{port}/{repository}"

    def _json(self, document: object) -> None:
        self._answer(200, json.dumps(document).encode(), Content_Type="application/json")

    def _missing(self, code: str) -> None:
        self._answer(404, b'{"error":"not found"}', X_Error_Code=code, X_Error_Message="not found")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]), parts[4:])
        files = self.hub.files.get("/".join(parts[:2]))
        if files is None:
            return self._missing("RepoNotFound")
        name = "/".join(parts[4:])
        if name not in files:
            return self._missing("EntryNotFound")
        commit, etag = self.hub.commit("/".join(parts[:2])), hashlib.sha1(files[name]).hexdigest()
        return self._answer(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=commit, Accept_Ranges="bytes")

    def _describe(self, repository: str, rest: list[str]) -> None:
        if repository not in self.hub.files:
            return self._missing("RepoNotFound")
        commit, files = self.hub.commit(repository), self.hub.files[repository]
        if rest[:1] == ["tree"]:
            return self._json(
                [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                 for name, data in files.items()]
            )  # fmt: skip
        if rest[:1] == ["revision"] and rest[1] not in ("main", commit):
            return self._missing("RevisionNotFound")
        siblings = [{"rfilename": name} for name in files]
        return self._json({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "tags": []})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.refused or self.headers.get("Authorization") != f"Bearer {KEY}":
            return self._answer(403, b'{"error":"this key cannot write"}')
        parts = path.split("/")
        if path == "api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repository in self.hub.files:
                return self._answer(409, json.dumps({"error": "exists", "url": self._page(repository)}).encode())
            self.hub.files[repository] = {}
            self.hub.private[repository] = asked.get("visibility") == "private"
            return self._json({"url": self._page(repository), "name": repository})
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repository = "/".join(parts[2:4])
        if parts[4] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.hub.files[repository][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = self.hub.commit(repository)
        return self._json(
            {"commitUrl": f"{self._page(repository)}/commit/{commit}", "commitOid": commit, "success": True}
        )
