"""Checkpoints by `hf:owner/name`, and `--push_to_hub`, against a stand-in of the hub: no test asks the network."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import hub_server
import pytest
import torch
from conftest import QUICK, ROOT, weights

import models
import train_student
import train_teacher
import transfer_student
from helper import checkpoint, hub, publish

if find_spec("huggingface_hub") is None or find_spec("safetensors") is None:
    pytest.skip("huggingface_hub and safetensors are optional", allow_module_level=True)

import huggingface_hub.constants


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_server.running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        hub.fetched.cache_clear()
        yield server
    hub.fetched.cache_clear()


def student(path: str, save: Path, *more: str) -> Path:
    command = [*QUICK, "--path_t", path, "--model_s", "resnet8", "--epochs", "1", "--save_folder", str(save)]
    train_student.main([*command, "--run_name", "r", *more])
    return save / "student_model" / "r"


def refused(capsys, main, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and re.search(message, error) and error.count("\n") == 1, error


def test_a_teacher_from_the_hub(server, teacher, tmp_path, capsys):
    """By the default name, a file's, a commit's; each is the run that the local file gives."""
    old = server.commit("ann/nets", {"last.pth": teacher.read_bytes(), "more/x.pth": teacher.read_bytes()})
    server.commit("ann/nets", {"last.pth": b"broken"})
    expected = weights(student(str(teacher), tmp_path / "local") / "last.pth")
    for path in (f"hf:ann/nets@{old}", "hf:ann/nets/more/x.pth", f"hf:ann/nets/last.pth@{old}"):
        run = student(path, tmp_path / "save", "--resume", "never")
        found = weights(run / "last.pth")
        assert all(torch.equal(x, found[k]) for k, x in expected.items())
        assert json.loads((run / "options.json").read_text())["options"]["path_t"] == [path]
    hub.fetched.cache_clear()
    refused(capsys, train_student.main, [*QUICK, "--path_t", "hf:ann/nets", "--epochs", "1"], "not a checkpoint")


def test_it_is_probed_and_tested(server, teacher, tmp_path, capsys):
    server.commit("ann/nets", {"last.pth": teacher.read_bytes()})
    train_teacher.main(["--test_only", "hf:ann/nets", "--device", "cpu"])
    assert re.match(r"hf:ann/nets: loss .* top-1 ", capsys.readouterr().out)
    command = [*QUICK, "--path_s", "hf:ann/nets", "--epochs", "1", "--lr_decay_epochs", "", "--run_name", "r"]
    transfer_student.main([*command, "--save_folder", str(tmp_path)])
    assert (tmp_path / "transfer" / "r" / "summary.json").exists()


def test_a_finished_run_needs_no_hub(server, teacher, tmp_path, capsys):
    server.commit("ann/nets", {"last.pth": teacher.read_bytes()})
    student("hf:ann/nets", tmp_path)
    server.repositories.clear()
    hub.fetched.cache_clear()
    student("hf:ann/nets", tmp_path)
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf:ann", "expected hf:owner/name or"),
        ("hf:ann/../../nets/x", "hf:ann/../../nets/x: "),
        ("hf:bob/nets", "hf:bob/nets: .*401"),
        ("hf:ann/nets@none", "hf:ann/nets@none: .*404"),
        ("hf:ann/nets", "holds no model.safetensors and no last.pth"),
        ("hf:ann/nets/x.pth", "holds no x.pth"),
        ("hf:ann/nets/code.pth", "refused, its pickle asks for .*system; only tensors are loaded"),
        ("hf:ann/nets/facts.safetensors", "not a resnet8 .the file says resnet14"),
    ],
)
def test_what_is_not_there_or_not_safe(path, message, server, capsys, tmp_path):
    from safetensors.torch import save

    other = models.create_model("resnet20", 10).state_dict()
    code = tmp_path / "code.pth"
    torch.save(Code(), code)
    files = {"code.pth": code.read_bytes(), "facts.safetensors": save(other, {"distill": '{"model_name": "resnet14"}'})}
    server.commit("ann/nets", files)
    command = [*QUICK, "--path_t", path, "--model_t", "resnet8", "--epochs", "1", "--save_folder", str(tmp_path / "s")]
    refused(capsys, train_student.main, command, message)
    assert not (tmp_path / "s").exists()


class Code:
    def __reduce__(self):
        import os

        return os.system, ("true",)


def test_metadata_that_is_no_json(tmp_path):
    from safetensors.torch import save_file

    for text, message in {"{": "broken safetensors", "[" * 100000: "broken safetensors", "[1]": ""}.items():
        save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"distill": text})
        if message:
            with pytest.raises(checkpoint.UserError, match=message):
                checkpoint.load(tmp_path / "x.safetensors")
        else:
            assert list(checkpoint.load(tmp_path / "x.safetensors")) == ["x"]


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.fetched.cache_clear()
    command = [*QUICK, "--path_t", "hf:ann/nets", "--epochs", "1"]
    refused(capsys, train_student.main, command, r"hf:ann/nets: needs the package huggingface_hub \(pip install")


# ---- --push_to_hub ----


def test_a_student_goes_to_the_hub_and_comes_back(server, teacher, tmp_path, capsys):
    run = student(str(teacher), tmp_path, "--push_to_hub", "ann/small", "--distill", "kd", "--dataset", "digits")
    [files] = server.repositories["ann/small"].values()
    assert f"uploaded to {server.url}/ann/small" in capsys.readouterr().out
    assert set(files) == {"README.md", "model.safetensors", "options.json", "summary.json", "log.csv"}
    assert files["log.csv"] == (run / "log.csv").read_bytes()
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads(files["summary.json"]) == summary
    told = json.loads(files["options.json"])
    assert told["options"]["path_t"] == ["last.pth"] and str(tmp_path) not in files["options.json"].decode()
    text = files["README.md"].decode()
    for expected in (
        f"| accuracy, last epoch | {summary['last_acc']:.2f} % |",
        "| method | kd (-r 0.1 -a 0.9 -b 0.0) |",
        f"| teacher | resnet14 ({summary['teacher_acc']:.2f} %) |",
        "| data set | digits |",
        f"| commit | {told['commit']} |",
        "`python train_student.py --config options.json --path_t FILE`",
    ):
        assert expected in text, text
    assert huggingface_hub.ModelCard(text).data.eval_results[0].metric_value == round(summary["last_acc"], 2)

    # the file says what it is, and the same weights come back
    state = checkpoint.load("hf:ann/small")
    assert (state["model_name"], state["num_classes"]) == ("resnet8", 10)
    assert checkpoint.digest(state) == summary["weights"]
    train_student.main(["--test_only", "hf:ann/small", "--device", "cpu", "--limit_val", "50"])
    assert f"top-1 {summary['last_acc']:.2f} %" in capsys.readouterr().out
    (tmp_path / "options.json").write_bytes(files["options.json"])
    again = ["--config", str(tmp_path / "options.json"), "--path_t", str(teacher), "--save_folder", str(tmp_path / "a")]
    train_student.main(again)
    repeated = json.loads((tmp_path / "a" / "student_model" / "r" / "summary.json").read_text())
    assert repeated["weights"] == summary["weights"]


def test_equal_weights_are_equal_files(teacher, tmp_path):
    """The hub takes a file of other bytes for a new one."""
    state = checkpoint.load(teacher, "--path_t")
    for n in range(16):
        publish.save_weights(tmp_path / f"{n}.safetensors", state)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_finished_run_is_pushed_when_the_hub_is_there_again(server, tmp_path, capsys):
    command = [*QUICK, "--model", "resnet8", "--epochs", "1", "--run_name", "r", "--save_folder", str(tmp_path)]
    train_teacher.main(command)
    capsys.readouterr()
    push = [*command, "--push_to_hub", "ann/teacher"]
    server.token = "another"
    refused(capsys, train_teacher.main, push, "--push_to_hub ann/teacher: .*401.*; the run is finished; the same")
    server.token = "hf_stand_in"
    train_teacher.main(push)
    [files] = server.repositories["ann/teacher"].values()
    assert "`python train_teacher.py --config options.json`" in files["README.md"].decode()
    train_teacher.main(push)  # nothing is new
    assert len(server.repositories["ann/teacher"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--push_to_hub", "small"], "--push_to_hub small: expected owner/name"),
        (["--push_to_hub", "a/b", "--sweep", "none; kd"], "--push_to_hub a/b: takes one student"),
    ],
)
def test_what_cannot_be_pushed(arguments, message, server, teacher, capsys, tmp_path):
    command = [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--save_folder", str(tmp_path / "s")]
    refused(capsys, train_student.main, [*command, *arguments], message)
    assert not server.asked and not (tmp_path / "s").exists()


def test_no_token(server, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    command = [*QUICK, "--model", "resnet8", "--push_to_hub", "ann/x", "--save_folder", str(tmp_path / "s")]
    refused(capsys, train_teacher.main, command, "--push_to_hub ann/x: log in first")
    assert not (tmp_path / "s").exists()


def test_the_package_is_imported_only_for_the_hub():
    code = "import sys, train_teacher, train_student; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
