"""A server on this machine that plays the Hugging Face hub as far as downloads ask it."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPOSITORY = "szanella/MICO-purchase100"
JSON = {"Content-Type": "application/json"}


class HubServer:
    """One repository of a hub, and how it misbehaves.

    files: path → content. status: path of a file, ``listing`` or ``tree`` → HTTP status.
    cut: paths whose answers lack the last byte, as if the file were so long; broken: those whose
    connection ends before it. before: called with a path, or ``listing``, before it goes out.
    """

    def __init__(self, files):
        self.files = dict(files)
        self.status, self.cut, self.broken = {}, set(), set()
        self.sizes = True
        self.before = lambda _: None
        self.sent = []  # paths of the files that went out

    @property
    def commit(self):
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    @contextmanager
    def running(self):
        """Serve in a thread; gives the endpoint."""
        handler = type("Handler", (_Handler,), {"hub": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()

    def listing(self):
        """What the API says of the repository: every file with its size."""
        files = [{"rfilename": name} for name in self.files]
        for file in files if self.sizes else ():
            file["size"] = len(self.files[file["rfilename"]])
        return {"id": REPOSITORY, "sha": self.commit, "siblings": files}

    def tree(self):
        """What the API says of the files at one commit."""
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
            for name, content in self.files.items()
        ]

    def answer(self, path):
        """Status, headers and content of the answer to a path."""
        api = f"/api/datasets/{REPOSITORY}"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{self.commit}"):
            return self.status.get("listing", 200), JSON, json.dumps(self.listing()).encode()
        if path == f"{api}/tree/{self.commit}":
            return self.status.get("tree", 200), JSON, json.dumps(self.tree()).encode()
        name = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/{self.commit}/")
        if name not in self.files:
            return 404, {}, b""
        content = self.files[name]
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{_git_hash(content)}"'}
        return self.status.get(name, 200), headers, content[:-1] if name in self.cut else content


def _git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_HEAD(self):
        self._begin()

    def do_GET(self):
        name, content = self._begin()
        self.hub.before(name)
        self.wfile.write(content[:-1] if name in self.hub.broken else content)
        if name in self.hub.files:
            self.hub.sent.append(name)

    def _begin(self):
        path = unquote(urlsplit(self.path).path)
        status, headers, content = self.hub.answer(path)
        content = content if status == 200 else b""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(key, value)
        self.end_headers()
        listing = path == f"/api/datasets/{REPOSITORY}"
        return "listing" if listing else path.rpartition(f"{self.hub.commit}/")[2], content

    def log_message(self, *arguments):
        pass
