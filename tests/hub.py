"""A Hugging Face hub on this machine: folders served as repositories, and a log of what was asked for."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import huggingface_hub
from huggingface_hub import constants, hf_api

LARGE = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")  # kept by Git LFS, so given out by another host
PAGE = 10  # entries of a listing that come at once; the true hub gives 1000
TOKEN = "hf_good"
API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+))?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Refused(Exception):
    """An answer other than 200, with the hub's own code and message."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        codes = {"X-Error-Code": code} if code else {}
        self.status, self.headers = status, codes | {"X-Error-Message": message} | headers


@dataclass
class Repository:
    revisions: dict[str, Path]  # branch or tag and its folder; `main` first of all
    gated: bool = False  # files go only to who has `TOKEN`

    def files(self, folder: Path) -> dict[str, bytes]:
        names = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}

    def commit(self, folder: Path) -> str:
        files = self.files(folder)
        return hashlib.sha1(repr([(name, etag(name, data)) for name, data in files.items()]).encode()).hexdigest()

    def folder(self, revision: str) -> Path:
        """Of a branch, a tag or a commit."""
        for name, folder in self.revisions.items():
            if revision in (name, self.commit(folder)):
                return folder
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")


@dataclass
class Asked:
    """A request and its answer's status."""

    method: str
    host: str
    path: str
    token: str | None
    range: str | None
    status: int


@dataclass
class Hub:
    """Repositories by id, such as owner/model, at `url` between `start` and `stop`."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    log: list[Asked] = field(default_factory=list)
    cuts: int = 0  # so many of the next large files break off in the middle
    stops_after_cut: bool = False
    status: int | None = None  # of every answer, if set: the hub is ill
    server: ThreadingHTTPServer | None = None
    port: int = 0  # the system's choice at the first start, the same at the next ones

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, repo_id: str, folder: Path, *, gated: bool = False, **revisions: Path) -> None:
        self.repositories[repo_id] = Repository({"main": folder} | revisions, gated)

    def start(self) -> None:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def downloaded(self) -> set[str]:
        """The names of the files whose contents were given out, from the repository's root."""
        paths = (
            urlsplit(asked.path).path for asked in self.log if asked.method == "GET" and asked.status in (200, 206)
        )
        found = (FILE.fullmatch(path.removeprefix("/lfs")) for path in paths)
        return {unquote(match[3]) for match in found if match}


def etag(name: str, data: bytes) -> str:
    """As on the hub: SHA-256 of a large file, Git's SHA-1 of a small one."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        try:
            status, headers, body = self._answer()
        except Refused as refused:
            status, headers, body = refused.status, refused.headers, b""
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        host = self.headers["Host"].partition(":")[0]
        self.hub.log.append(Asked(self.command, host, self.path, token, self.headers["Range"], status))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(body)

    def _send(self, body: bytes) -> None:
        if not (self.hub.cuts and self.path.startswith("/lfs/")):
            self.wfile.write(body)
            return
        self.hub.cuts -= 1
        if self.hub.stops_after_cut:
            self.hub.stop()
        self.wfile.write(body[: len(body) // 2])

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        if self.hub.status:
            raise Refused(self.hub.status, None, "out of order")
        url = urlsplit(self.path)
        if match := API.fullmatch(url.path):
            repo_id, kind, revision = match.groups()
            return self._describe(repo_id, kind, unquote(revision or "main"), parse_qs(url.query))
        if match := FILE.fullmatch(url.path.removeprefix("/lfs")):
            return self._give(match[1], unquote(match[2]), unquote(match[3]), url.path.startswith("/lfs/"))
        raise Refused(404, None, "no such page")

    def _repository(self, repo_id: str) -> Repository:
        """The true hub tells nobody without a token whether a repository is there."""
        token = self.headers["Authorization"]
        if token and not token.startswith("Bearer hf_"):
            raise Refused(401, None, "Invalid credentials in Authorization header")
        if repo_id not in self.hub.repositories:
            if token:
                raise Refused(404, "RepoNotFound", "Repository not found")
            raise Refused(401, "RepoNotFound", "Invalid username or password.")
        return self.hub.repositories[repo_id]

    def _describe(self, repo_id: str, kind: str | None, revision: str, query: dict) -> tuple[int, dict, bytes]:
        repository = self._repository(repo_id)
        folder = repository.folder(revision)
        files = repository.files(folder)
        headers = {"Content-Type": "application/json"}
        if kind == "tree":
            first = int(query.get("cursor", ["0"])[0])
            if first + PAGE < len(files):
                more = urlencode({"recursive": "True", "cursor": first + PAGE})
                headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{more}>; rel="next"'
            content = [entry(name, data) for name, data in list(files.items())[first : first + PAGE]]
        else:
            siblings = [{"rfilename": name} for name in files]
            gated = "auto" if repository.gated else False
            content = dict(id=repo_id, modelId=repo_id, sha=repository.commit(folder), private=False, gated=gated)
            content |= dict(siblings=siblings, tags=[], downloads=0, likes=0)
        return 200, headers, json.dumps(content).encode()

    def _give(self, repo_id: str, revision: str, name: str, signed: bool) -> tuple[int, dict[str, str], bytes]:
        """A small file, where to get a large one, or (`signed`: the other host, which asks for no token) that one."""
        repository = self._repository(repo_id)
        if repository.gated and not signed and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 403 if self.headers["Authorization"] else 401
            raise Refused(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        folder = repository.folder(revision)
        commit = {"X-Repo-Commit": repository.commit(folder)}
        if not (folder / name).is_file():
            raise Refused(404, "EntryNotFound", "Entry not found", **commit)
        data = (folder / name).read_bytes()
        tag = f'"{etag(name, data)}"'
        if name.endswith(LARGE) and not signed:
            size = str(len(data))
            other = f"http://localhost:{self.hub.port}/lfs{self.path}"
            return 302, commit | {"Location": other, "X-Linked-ETag": tag, "X-Linked-Size": size}, b""
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            first = int(match[1])
            part = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            return 206, commit | part | {"ETag": tag}, data[first:]
        return 200, commit | {"ETag": tag}, data

    def log_message(self, *words: object) -> None:
        """Say nothing on stderr: `Hub.log` has it."""


def entry(name: str, data: bytes) -> dict:
    """A file in a listing of a repository."""
    large = dict(lfs=dict(oid=etag(name, data), size=len(data), pointerSize=134)) if name.endswith(LARGE) else {}
    return dict(type="file", path=name, size=len(data), oid=hashlib.sha1(data).hexdigest()) | large


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def connect(monkeypatch, hub: Hub, home: Path) -> None:
    """This process's client asks `hub` and keeps everything in `home`, as if it had been imported with them."""
    huggingface_hub.utils.close_session()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    settings = dict(
        ENDPOINT=hub.url,
        HUGGINGFACE_CO_URL_TEMPLATE=hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        HF_URL_HOSTS=frozenset({"127.0.0.1"}),
        HF_HUB_OFFLINE=False,
        HF_HUB_CACHE=str(home / "hub"),
        HF_TOKEN_PATH=str(home / "token"),
    )
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
