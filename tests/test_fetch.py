"""The scripts that fetch teachers and TinyImageNet, from a server on this machine with made-up archives."""

import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_more_datasets import make_tinyimagenet

import dataset
import models
import train_teacher
from helper import checkpoint


class Server(ThreadingHTTPServer):
    """Serves `files` (name -> bytes), from the middle too; of those in `cut` half of what is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[tuple[str, int]] = []  # name and first byte

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        if self.connection.recv(1, socket.MSG_PEEK) != b"\x16":  # what https begins with: hang up
            super().handle()

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        if name not in self.server.files:
            return self.send_error(404)
        content = self.server.files[name]
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.server.asked.append((name, start))
        if 0 < len(content) <= start:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.cut else content)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def call(script: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "no_proxy": "*"} | variables
    return subprocess.run(["bash", ROOT / "scripts" / script], env=environment, capture_output=True, text=True)


def tar(files: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if link:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# ---- teachers ----


def saved(name: str, classes: int = 100) -> bytes:
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save({"epoch": 240, "model": models.create_model(name, classes).state_dict()}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: saved(name) for name in ("resnet8", "resnet14")}


def in_folders(top: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{top}{name}_vanilla/ckpt_epoch_240.pth": content for name, content in files.items()}


def fetch(save: Path, *mirrors: str, teachers: str = "resnet8 resnet14") -> subprocess.CompletedProcess:
    return call("fetch_pretrained_teachers.sh", TEACHERS=teachers, SAVE=str(save), MIRRORS="\n".join(mirrors))


def place(save: Path, name: str) -> Path:
    return save / "models" / f"{name}_vanilla" / "ckpt_epoch_240.pth"


def names(save: Path) -> list[str]:
    """All files below `save`."""
    return sorted(str(path.relative_to(save)) for path in save.rglob("*") if path.is_file())


def release(server: Server, files: dict[str, bytes]) -> str:
    """A release whose files are named as nobody knows: one bare checkpoint, one archive, and one that is not wanted."""
    server.files["resnet8.pth"] = files["resnet8"]
    server.files["cifar.zip"] = zipped({"models/resnet14_best.pth": files["resnet14"], "models/README": b""})
    assets = [{"name": n, "browser_download_url": server.url(n)} for n in ("resnet8.pth", "cifar.zip", "ImageNet.zip")]
    server.files["repos/releases/tags/models"] = json.dumps({"assets": assets}).encode()
    return server.url("repos/releases/tags/models")


def one_by_one(server: Server, files: dict[str, bytes]) -> str:
    server.files |= in_folders("repo/", files)
    return server.url("repo/%s_vanilla/ckpt_epoch_240.pth")


def archive(name: str, content: bytes, server: Server) -> str:
    server.files[name] = content
    return server.url(name)


@pytest.mark.parametrize(
    "mirror",
    [
        lambda server, files: archive("cifar_teachers.tar", tar(in_folders("cifar_teachers/", files)), server),
        lambda server, files: archive("cifar_ckpts.zip", zipped(in_folders("cifar_ckpts/", files)), server),
        release,
        one_by_one,
    ],
    ids=["tar", "zip", "release", "files"],
)
def test_every_layout(mirror, server, files, tmp_path):
    result = fetch(tmp_path, mirror(server, files))
    assert result.returncode == 0, result.stderr
    assert names(tmp_path) == [f"models/{name}_vanilla/ckpt_epoch_240.pth" for name in ("resnet14", "resnet8")]
    assert all(place(tmp_path, name).read_bytes() == content for name, content in files.items())
    assert not any("ImageNet" in name for name, _ in server.asked)


def test_what_is_there_is_passed_over(server, files, tmp_path):
    place(tmp_path, "resnet8").parent.mkdir(parents=True)
    place(tmp_path, "resnet8").write_bytes(files["resnet8"])
    place(tmp_path, "resnet14").parent.mkdir()
    place(tmp_path, "resnet14").write_bytes(files["resnet14"][:1000])  # as a download that broke off leaves it
    result = fetch(tmp_path, one_by_one(server, files))
    assert result.returncode == 0, result.stderr
    assert "resnet14_vanilla/ckpt_epoch_240.pth: truncated" in result.stderr
    assert [name for name, _ in server.asked] == ["repo/resnet14_vanilla/ckpt_epoch_240.pth"]
    assert place(tmp_path, "resnet14").read_bytes() == files["resnet14"]
    old = place(tmp_path, "resnet14").with_suffix(".pth.old")
    assert old.read_bytes() == files["resnet14"][:1000]  # it may have been somebody's own
    server.asked.clear()
    result = fetch(tmp_path, one_by_one(server, files))
    assert result.returncode == 0 and not server.asked and result.stdout.count("is there") == 2


def test_bad_mirrors_are_passed_over(server, files, tmp_path):
    good = tar(in_folders("cifar_teachers/", files))
    save = tmp_path / "save"
    server.cut.add("cut.tar")
    bad = {
        "cut.tar": good,
        "half.tar": good[: len(good) // 2],
        "up.tar": tar({"../../../stolen": b"1"} | in_folders("", files)),
        "absolute.zip": zipped({f"{tmp_path}/stolen": b"1"} | in_folders("", files)),
        "link.tar": tar({"link/stolen": b"1"} | in_folders("", files), link=str(tmp_path)),
        "page.tar": b"<html>moved</html>",
        "empty.zip": zipped({"README": b""}),
    }
    mirrors = [archive(name, content, server) for name, content in bad.items()]
    result = fetch(save, server.url("missing.tar"), *mirrors, archive("good.tar", good, server))
    assert result.returncode == 0, result.stderr
    for text in (
        r"not to be had \(curl: 22\): .*missing.tar",
        r"not to be had \(curl: 18\): .*cut.tar",
        r"half.tar: unexpected end of data",
        r"up.tar: refused, \.\./\.\./\.\./stolen leads out of the folder",
        rf"absolute.zip: refused, {tmp_path}/stolen leads out of the folder",
        r"link.tar: refused, link is neither file nor folder",
        r"page.tar: File is not a zip file",
    ):
        assert re.search(text, result.stderr), (text, result.stderr)
    assert not list(tmp_path.rglob("stolen*"))
    kept, *there = names(save)
    assert there == [f"models/{name}_vanilla/ckpt_epoch_240.pth" for name in ("resnet14", "resnet8")]
    assert re.fullmatch(r"models/\.downloads/\d+-cut\.tar\.part", kept)  # to go on from, should it be asked for again


def test_a_download_goes_on(server, files, tmp_path):
    mirror = archive("teachers.tar", tar(in_folders("", files)), server)
    server.cut.add("teachers.tar")
    result = fetch(tmp_path, mirror)
    assert result.returncode == 1 and "no mirror gave resnet8 resnet14" in result.stderr
    server.cut.clear()
    assert fetch(tmp_path, mirror).returncode == 0
    half = len(server.files["teachers.tar"]) // 2
    assert server.asked == [("teachers.tar", 0), ("teachers.tar", half)]
    assert place(tmp_path, "resnet14").read_bytes() == files["resnet14"] and len(names(tmp_path)) == 2


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


def test_what_is_not_that_teacher_is_refused(server, files, tmp_path):
    of_no_use = {
        "resnet8": saved("resnet8", 10),
        "resnet14": files["resnet8"],
        "resnet20": pickle.dumps({"model": Malicious()}, protocol=2),
        "resnet32x4": files["resnet8"],
    }
    mirror = archive("teachers.zip", zipped(in_folders("", of_no_use)), server)
    result = fetch(tmp_path, mirror, teachers=" ".join(of_no_use))
    assert result.returncode == 1 and names(tmp_path) == []
    for text in (
        "resnet8_vanilla/ckpt_epoch_240.pth: has 10 classes, the data set has 100",
        "resnet14_vanilla/ckpt_epoch_240.pth: not a resnet14",
        "resnet20_vanilla/ckpt_epoch_240.pth: .*only tensors|resnet20_vanilla/ckpt_epoch_240.pth: truncated",
        "resnet32x4_vanilla/ckpt_epoch_240.pth: expected the SHA-256 22aa12e2b632.*, found ",
    ):
        assert re.search(f"passed over: .*{text}", result.stderr), (text, result.stderr)


def test_no_mirror_answers(tmp_path):
    result = fetch(tmp_path, "http://127.0.0.1:9/teachers.tar", "http://127.0.0.1:9/%s.pth")
    assert result.returncode == 1 and names(tmp_path) == []
    assert result.stderr.count("(curl: 7)") == 2  # a host that is not there is asked once
    first, second = (line.split() for line in result.stderr.splitlines() if "train_teacher.py" in line)
    options = train_teacher.parse(first[2:])
    assert (options.model, options.save_folder, options.run_name) == ("resnet8", str(tmp_path), "resnet8_vanilla")
    assert "resnet14" in second


def test_a_teacher_as_repdistiller_wrote_it(server, tmp_path):
    """PyTorch's format of 2019; the schedule leaves a numpy number as the optimiser's rate, under numpy 1's name."""
    network = models.create_model("resnet8", 100)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    optimizer.param_groups[0]["lr"] = 0.05 * 0.1 ** np.int64(3)
    state = {"epoch": 240, "model": network.state_dict(), "accuracy": torch.ones(1)}
    state["optimizer"] = optimizer.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\nscalar\n" in content
    result = fetch(tmp_path, one_by_one(server, {"resnet8": content}), teachers="resnet8")
    assert result.returncode == 0, result.stderr
    found = checkpoint.load(place(tmp_path, "resnet8"))["model"]
    assert all(torch.equal(found[k], v) for k, v in network.state_dict().items())


# ---- TinyImageNet ----


def test_tinyimagenet(server, tmp_path):
    made = make_tinyimagenet(tmp_path / "made")
    content = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    variables = {"DATA": str(tmp_path / "data"), "URL": server.url("tiny.zip"), "SHA256": ""}

    result = call("get_tinyimagenet.sh", **variables)
    assert result.returncode == 1 and re.search(r"not to be had: .*tiny.zip \(status 22\)", result.stderr)
    server.files["tiny.zip"] = zipped({"../stolen": b"1"} | content)
    result = call("get_tinyimagenet.sh", **variables)
    assert result.returncode == 1 and "is not the data set" in result.stderr and "leads out of" in result.stderr
    assert names(tmp_path / "data") == [] and not (tmp_path / "stolen").exists()

    server.files["tiny.zip"] = zipped(content)
    server.cut.add("tiny.zip")
    assert call("get_tinyimagenet.sh", **variables).returncode == 1
    assert names(tmp_path / "data") == ["tiny-imagenet-200.zip.part"]
    server.cut.clear()
    server.asked.clear()
    result = call("get_tinyimagenet.sh", **variables)
    assert result.returncode == 0, result.stderr
    assert server.asked == [("tiny.zip", len(server.files["tiny.zip"]) // 2)]
    assert "tiny-imagenet-200: 3 classes, 12 + 6 images" in result.stdout
    assert names(tmp_path / "data") == sorted(content)
    assert len(dataset.load("tinyimagenet", tmp_path / "data").val_images) == 6

    server.asked.clear()
    assert call("get_tinyimagenet.sh", **variables).returncode == 0 and not server.asked
    (tmp_path / "data" / "tiny-imagenet-200" / "wnids.txt").unlink()
    result = call("get_tinyimagenet.sh", **variables)
    assert result.returncode == 1 and "is not whole; move it away" in result.stderr
