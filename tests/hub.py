"""A Hugging Face hub on this machine: repositories with commits and branches, which huggingface_hub can write to."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Lock
from urllib.parse import unquote

from servers import Loopback, sha256

TOKEN = "hf_token-of-the-tests"


@dataclass
class Repo:
    """One repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    closed: int = 0
    """The status for whoever shows no token: 401 of a private repository, 403 of a gated one; 0 of an open one."""
    created: dict[str, object] = field(default_factory=dict)
    """What it was made with."""

    @property
    def is_private(self) -> bool:
        return self.created.get("visibility") == "private" or self.created.get("private") is True

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add files to a branch; returns the commit."""
        commit = f"{len(self.commits) + 1:040x}"
        self.commits[commit] = self.commits.get(self.branches.get(branch, ""), {}) | files
        self.branches[branch] = commit
        return commit


class Hub(Loopback):
    """A hub; `HF_ENDPOINT` is to be its `root`."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        """Large files by their sha256, as they are sent."""
        self.seen: list[str] = []
        self.lock = Lock()

    def repo(self, name: str, files: dict[str, bytes], **facts) -> Repo:
        """A repository with one commit."""
        self.repos[name] = Repo(**facts)
        self.repos[name].commit(files)
        return self.repos[name]


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append(f"GET {self.path}")
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", self.path):
            return self._send(200, self.server.stored[match[1]])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.path):
            repo = self._repo(match[1])
            return repo and self._json(
                {"id": match[1], "sha": repo.branches.get("main"), "siblings": [], "private": repo.is_private}
            )
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo = self._repo(match[1]) if match else self._send(404)
        if not repo:
            return None
        commit = repo.branches.get(match[2], match[2])
        if match[3] not in repo.commits.get(commit, {}):
            return self._send(404, X_Error_Code="EntryNotFound")
        content = repo.commits[commit][match[3]]
        if not match[3].endswith(".safetensors"):
            return self._send(200, content, X_Repo_Commit=commit)
        digest = sha256(content)
        self.server.stored.setdefault(digest, content)
        where = f"{self.server.root}/cdn/{digest}"
        return self._send(302, Location=where, X_Repo_Commit=commit, X_Linked_Etag=f'"{digest}"')

    def do_PUT(self) -> None:
        self.server.stored[self.path.rpartition("/")[2]] = self._body()
        self._send(200)

    def do_POST(self) -> None:
        body = self._body()
        self.server.seen.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401)
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            is_new = name not in self.server.repos
            self.server.repos.setdefault(name, Repo(created=asked))
            return self._json({"url": f"{self.server.root}/{name}"}, 200 if is_new else 409)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            return self._json({"objects": [self._upload(each) for each in json.loads(body)["objects"]]})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/?]+).*", self.path)
        repo, revision = self.server.repos[match[1]], unquote(match[3])
        if match[2] == "branch":
            repo.branches.setdefault(revision, repo.branches.get("main", ""))
            return self._json({})
        if match[2] == "preupload":
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
            return self._json(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        return self._json(self._commit(match[1], repo, revision, body))

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> dict[str, str]:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        oid = repo.commit(files, branch)
        return {"commitUrl": f"{self.server.root}/{name}/commit/{oid}", "commitOid": oid}

    def _upload(self, asked: dict) -> dict:
        href = f"{self.server.root}/upload/{asked['oid']}"
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": {"href": href}}}

    def _repo(self, name: str) -> Repo | None:
        """The repository, where whoever asks may read it; else the answer is given."""
        repo = self.server.repos.get(name)
        may = repo and (not repo.closed or self.headers.get("Authorization") == f"Bearer {TOKEN}")
        return repo if may else self._send(repo.closed if repo else 401, X_Error_Code="RepoNotFound")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: object, code: int = 200) -> None:
        self._send(code, json.dumps(value).encode(), Content_Type="application/json")

    def _send(self, code: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
