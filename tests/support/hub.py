"""A Hugging Face hub on this machine: what `huggingface_hub` asks of it to look up a model and to fetch its files."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves folders as the revisions of repositories; `requests` are those that came, as `GET /path`."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}  # of a path that begins so: status and headers
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self) -> list[str]:
        """The files that were fetched, in order of their names."""
        return sorted(r.rpartition("/")[2] for r in self.requests if r.startswith("GET ") and "/resolve/" in r)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{request.command} {path}")
        for start, (status, headers) in self.refusals.items():
            if path.startswith(start):
                send(request, status, b"", headers)
                return
        api = path.startswith("/api/models/")
        asked = path.removeprefix("/api/models").removeprefix("/")
        name = next((name for name in self.repositories if f"{asked}/".startswith(f"{name}/")), None)
        if name is None:
            send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        parts = asked.removeprefix(name).split("/")[1:]  # revision or tree or resolve, a revision, a file
        revisions = {**self.repositories[name]}
        revisions |= {commit(ref): folder for ref, folder in revisions.items()}
        revision = parts[1] if parts else "main"
        if revision not in revisions:
            send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        folder = revisions[revision]
        sha = revision if len(revision) == 40 else commit(revision)
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        if api and parts[:1] == ["tree"]:
            tree = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": "0" * 40} for n in names]
            send(request, 200, json.dumps(tree).encode())
        elif api:
            found = {"id": name, "sha": sha, "siblings": [{"rfilename": n} for n in names]}
            send(request, 200, json.dumps(found).encode())
        elif (file := "/".join(parts[2:])) in names:
            content = (folder / file).read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            send(request, 200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": sha})
        else:
            send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})


def commit(ref: str) -> str:
    """The commit that a branch or tag stands for here."""
    return hashlib.sha1(ref.encode()).hexdigest()


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
