"""A stand-in for the hub on 127.0.0.1: serves the model folders below a root as `owner/name`."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@contextmanager
def fake_hub(root: Path) -> Iterator[str]:
    """The address of a hub that serves `root/owner/name/*` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def refuse(self, code: str) -> None:
            self.answer(404, b"{}", X_Error_Code=code, X_Error_Message=code)

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.model(root.joinpath(*parts[2:4]), parts[4:])
            elif "resolve" in parts:
                self.file(root.joinpath(*parts[:2]), "/".join(parts[4:]))
            else:
                self.refuse("RepoNotFound")

        do_HEAD = do_GET

        def model(self, folder: Path, rest: list[str]) -> None:
            if not folder.is_dir():
                self.refuse("RepoNotFound")
                return
            names = sorted(path.name for path in folder.iterdir())
            if rest[:1] == ["tree"]:
                files = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": "0" * 40} for n in names]
                self.answer(200, json.dumps([] if len(rest) > 2 else files).encode())
                return
            name = "/".join(folder.parts[-2:])
            info = {"id": name, "modelId": name, "sha": COMMIT, "tags": [], "siblings": [{"rfilename": n} for n in names]}
            self.answer(200, json.dumps(info).encode())

        def file(self, folder: Path, name: str) -> None:
            path = folder / name
            if not folder.is_dir():
                self.refuse("RepoNotFound")
            elif not path.is_file():
                self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                content = path.read_bytes()
                tag = hashlib.sha256(content).hexdigest()
                self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
