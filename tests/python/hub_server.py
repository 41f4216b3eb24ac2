"""A server on this machine that speaks the Hugging Face hub's protocol, as far as its client uses it here."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse


class HubHandler(BaseHTTPRequestHandler):
    """As much of the hub's protocol as huggingface_hub uses to list and read repositories, over a local folder."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    root = ""

    def reply(self, code: int, body: bytes = b"", kind: str = "application/json", **headers) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entry(self, repository: str, path: str) -> dict:
        full = os.path.join(self.root, repository, path)
        kind = "directory" if os.path.isdir(full) else "file"
        return {
            "type": kind,
            "path": path,
            "oid": "1" * 40,
            "size": 0 if kind == "directory" else os.path.getsize(full),
        }

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[0] != "api" or parts[4] != "paths-info":
            return self.reply(404, b"{}")
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body)["paths"]
        repository = "/".join(parts[2:4])
        there = [p for p in paths if os.path.exists(os.path.join(self.root, repository, p))]
        return self.reply(200, json.dumps([self.entry(repository, p) for p in there]).encode())

    def do_GET(self):
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            repository = "/".join(parts[2:4])
            if not os.path.isdir(os.path.join(self.root, repository)):
                return self.reply(404, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound")
            if len(parts) > 4 and parts[4] == "tree":
                top = os.path.join(self.root, repository)
                found = []
                for where, _folders, names in os.walk(os.path.join(top, *parts[6:])):
                    found += [self.entry(repository, os.path.relpath(os.path.join(where, n), top)) for n in names]
                return self.reply(200, json.dumps(found).encode())
            information = {
                "_id": "1",
                "id": repository,
                "sha": self.commit,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            return self.reply(200, json.dumps({**information, "likes": 0, "siblings": []}).encode())
        at = parts.index("resolve")
        full = os.path.join(self.root, "/".join(parts[at - 2 : at]), *parts[at + 2 :])
        if not os.path.isfile(full):
            return self.reply(404, b"{}", X_Error_Code="EntryNotFound")
        with open(full, "rb") as file:
            content = file.read()
        headers = {"ETag": '"' + "1" * 40 + '"', "X_Repo_Commit": self.commit, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            return self.reply(200, kind="application/octet-stream", Content_Length=str(len(content)), **headers)
        span = self.headers.get("Range")
        if span is None:
            return self.reply(200, content, "application/octet-stream", **headers)
        first, last = span.removeprefix("bytes=").split("-")
        first, last = int(first), int(last or len(content) - 1)
        last = min(last, len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.reply(206, content[first : last + 1], "application/octet-stream", **headers)

    def log_message(self, *_):
        pass


def serve(case, root: str) -> str:
    """Serves the repositories under ROOT/OWNER/NAME until the test case ends; the server's address."""
    handler = type("Handler", (HubHandler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    case.addCleanup(thread.join)
    case.addCleanup(server.server_close)
    case.addCleanup(server.shutdown)
    return f"http://127.0.0.1:{server.server_address[1]}"
