"""Loopback servers of a checkpoint, right and wrong, and what the cache then holds."""

import dataclasses
import gzip
import hashlib
import http.server

from checkpoints import equal_weights

import sagefm as sg
from sagefm.models import _registry

NAME = "sage-fm-hest1k"


def flip(content, position, bits):
    changed = bytearray(content)
    changed[position % len(content)] ^= bits
    return bytes(changed)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file; can cut it short, send HTML or fail."""

    def do_GET(self):
        server = self.server
        server.requests += 1
        mode = server.modes.pop(0) if server.modes else "whole"
        if mode == "missing":
            self.send_error(404)
            return
        body = b"<html>Please log in</html>" if mode == "html" else server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if mode == "cut" else body)
        if mode == "cut":
            self.connection.close()

    def log_message(self, *args):
        pass


class Worse(Handler):
    """Serves the file in ways that go wrong."""

    def do_GET(self):
        server = self.server
        mode = server.modes[0] if server.modes else "whole"
        if mode in ("whole", "html", "cut", "missing"):
            super().do_GET()
            return
        server.modes.pop(0)
        server.requests += 1
        getattr(self, mode)(server.content)

    def answer(self, body, length=None, status=200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def fail(self, content):
        self.send_error(500)

    def busy(self, content):
        self.answer(b"", status=503, Retry_After="100000")

    def stall(self, content):
        self.answer(content[:2000], len(content))
        self.wfile.flush()
        self.server.over.wait(30)

    def silent(self, content):
        self.server.over.wait(30)

    def loop(self, content):
        self.server.modes.insert(0, "loop")
        self.answer(b"", status=302, Location=self.path)

    def moved(self, content):
        self.answer(b"", status=302, Location="/elsewhere")

    def away(self, content):
        self.answer(b"", status=302, Location="file:///etc/passwd")

    def long(self, content):
        self.answer(content, len(content) + 1000)

    def short(self, content):
        self.answer(content, len(content) - 1000)

    def nonsense(self, content):
        self.answer(content, "many")

    def empty(self, content):
        self.answer(b"")

    def other(self, content):
        self.answer(flip(content, 3000, 1))

    def packed(self, content):
        self.answer(gzip.compress(content, 1), Content_Encoding="gzip")

    def mispacked(self, content):
        self.answer(content, Content_Encoding="gzip")

    def halfpacked(self, content):
        self.answer(gzip.compress(content, 1)[:2000], Content_Encoding="gzip")

    def badchunks(self, content):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"10\r\n" + content[:16] + b"\r\nzz\r\n")

    def no_http(self, content):
        self.wfile.write(b"\0" * 1000)

    def header_bomb(self, content):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000)


def register(monkeypatch, url, content):
    entry = dataclasses.replace(
        _registry.registry()[NAME], url=url, sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )
    monkeypatch.setitem(_registry.registry(), NAME, entry)


def cached_files():
    folder = sg.settings.cache_dir
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(name for name in names if not name.endswith(".lock"))


def entry():
    return _registry.registry()[NAME]


def right(narrow):
    """The model loads, and is kept."""
    model = sg.models.load(NAME)
    assert equal_weights(model, narrow[0])
    assert model.card["sha256"] == entry().sha256
    return True


def settled():
    """What the cache holds when all is well: nothing that is only partly there, and nothing more each time."""
    return cached_files() == sorted([entry().file, entry().converted_path.name])
