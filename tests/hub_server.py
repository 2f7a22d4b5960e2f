"""A stand-in of Hugging Face's hub: repositories in memory, by the few requests that huggingface_hub makes here."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub(ThreadingHTTPServer):
    """repositories: owner/name -> revisions (commit -> path -> content), the last one is main."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}  # uploaded beside the commit, by SHA-256
        self.asked: list[str] = []
        self.token = "hf_stand_in"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        revisions = self.repositories.setdefault(repository, {})
        files = {**(list(revisions.values())[-1] if revisions else {}), **files}
        name = hashlib.sha1(f"{len(revisions)} {sorted(files)}".encode()).hexdigest()
        revisions[name] = files
        return name


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str, status: int = 404) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def revision(self, repository: str, name: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None after a refusal."""
        revisions = self.server.repositories.get(repository)
        if revisions is None:
            return self.refuse("RepoNotFound", 401)
        if not revisions or name not in ("main", *revisions):
            return self.refuse("RevisionNotFound")
        return list(revisions.items())[-1] if name == "main" else (name, revisions[name])

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(f"{self.command} {path}")
        _, owner, name, *rest = path.split("/")
        if rest and rest[0] == "resolve":  # /owner/name/resolve/REVISION/FILE
            found = self.revision(f"{owner}/{name}", rest[1])
            if found:
                commit, files = found
                content = files.get("/".join(rest[2:]))
                if content is None:
                    return self.refuse("EntryNotFound")
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(200, content, ETag=etag, X_Repo_Commit=commit)
        elif owner == "api" and name == "models":  # /api/models/owner/name[/revision/REVISION]
            found = self.revision("/".join(rest[:2]), rest[3] if len(rest) > 3 else "main")
            if found:
                files = [{"rfilename": file} for file in found[1]]
                self.answer(200, {"id": "/".join(rest[:2]), "sha": found[0], "siblings": files})
        else:
            self.refuse("no such page")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.refuse("InvalidToken", 401)
        parts = self.path.partition("?")[0].split("/")
        if self.path == "/api/repos/create":
            told = json.loads(body)
            repository = f"{told['organization']}/{told['name']}"
            status = 409 if repository in self.server.repositories else 200
            self.server.repositories.setdefault(repository, {})
            self.answer(status, {"url": f"{self.server.url}/{repository}", "id": repository})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[-2:-1] == ["preupload"]:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [("lfs" if file.endswith(".safetensors") else "regular") for file in files]
            told = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(files, modes, strict=True)]
            here = list(self.server.repositories["/".join(parts[3:5])].values())
            for one in told:  # by which the client sees what is there already
                content = here[-1].get(one["path"]) if here else None
                if content is not None and one["uploadMode"] == "lfs":
                    one["oid"] = hashlib.sha256(content).hexdigest()
                elif content is not None:
                    one["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self.answer(200, {"files": told})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif parts[-2:-1] == ["commit"]:
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
            repository = "/".join(parts[3:5])
            commit = self.server.commit(repository, files)
            url = f"{self.server.url}/{repository}/commit/{commit}"
            self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "pullRequestUrl": None})
        else:
            self.refuse("no such page")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
