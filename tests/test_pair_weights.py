"""configs/cifar100_pairs.csv: every row is one that train_student.py takes, and which of its values a run gets."""

import json
import pickle
import re

import pytest
import torch
from conftest import QUICK, plausible, weights

import models
import train_student
from distiller_zoo import chosen, find_method, method_names, method_options

ROWS = chosen.published_pairs()
STANDARD = "wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1 resnet56>resnet20 resnet110>resnet20 resnet110>resnet32 vgg13>vgg8 "
STANDARD += "resnet32x4>resnet8x4 vgg13>MobileNetV2 ResNet50>MobileNetV2 ResNet50>vgg8 resnet32x4>ShuffleV1 "
STANDARD += "resnet32x4>ShuffleV2 wrn_40_2>ShuffleV1"


def settled(*words: str):
    """The options after everything is filled in, and the keywords of the methods."""
    opt = train_student.parse(["--path_t", "t.pth", *words])
    found = train_student.settle(opt)
    chosen.check(opt, found)
    return opt, found


@pytest.mark.parametrize("key", ROWS, ids="-".join)
def test_every_row_is_taken(key, capsys) -> None:
    name, teacher, student = key
    assert name in method_names() and ROWS[key].keys() == set("method teacher student r a b options source".split())
    assert re.fullmatch(r"[\w.-]+/[\w.-]+ [0-9a-f]{7} \S+", ROWS[key]["source"])
    if (teacher, student) == ("*", "*"):
        teacher, student = "resnet56", "resnet20"
    assert f"{teacher}>{student}" in STANDARD.split() and models.sketch(teacher) and models.sketch(student)
    opt, found = settled("--distill", name, "--model_t", teacher, "--model_s", student)
    words = ROWS[key]["options"].split()
    given = train_student.parse(["--distill", name, *words])
    row = [float(ROWS[key][flag]) for flag in "rab"]
    assert [opt.gamma, opt.alpha, *opt.beta] == row
    own = {option: getattr(given, option) for option in method_options(find_method(name)) if option in given}
    assert len(own) == sum(word.startswith("--") for word in words) and found[name] == found[name] | own
    (line,) = capsys.readouterr().out.splitlines()
    weighed = f"-r {row[0]:g} -a {row[1]:g} -b {row[2]:g} {' '.join(words)}".strip()
    assert line == f"weights of {name} for {teacher} > {student}: {weighed} (configs/cifar100_pairs.csv)"


def test_no_row_is_there_twice_and_those_of_all_pairs_say_something_new() -> None:
    text = chosen.PAIRS.read_text().splitlines()
    assert len(ROWS) == len(text) - 1
    for (name, teacher, student), row in ROWS.items():
        assert (teacher == "*") == (student == "*")
        if teacher == "*":
            given = train_student.parse(["--distill", name, *row["options"].split()])
            own = {key: p.default for key, p in method_options(find_method(name)).items()}
            changed = {key for key in own if getattr(given, key, own[key]) != own[key]}
            assert changed or tuple(float(row[flag]) for flag in "rab") != find_method(name).weights


PAIR = "--model_t resnet56 --model_s resnet20".split()


@pytest.mark.parametrize(
    ("words", "expected", "beta"),
    [
        ("--distill dkd", (1.0, 0.0, [1.0]), 2.0),
        ("--distill dkd --dkd_beta 3", (1.0, 0.0, [1.0]), 3.0),
        ("--distill dkd -b 0.5", (1.0, 0.0, [0.5]), 2.0),
        ("--distill dkd -a 0.3", (1.0, 0.3, [1.0]), 2.0),
        ("--distill dkd --weights default", (1.0, 0.0, [1.0]), 8.0),
        ("--distill dkd --dataset cifar10", (1.0, 0.0, [1.0]), 8.0),
        ("--distill dkd --standardise", (1.0, 0.0, [1.0]), 8.0),
        ("--distill dkd --ea_weights", (1.0, 0.0, [1.0]), 8.0),
        ("--distill dkd,at", (1.0, 0.0, [1.0, 1000.0]), 8.0),
        ("--distill dkd --model_s resnet14", (1.0, 0.0, [1.0]), 8.0),
    ],
)
def test_what_is_typed_stands(words, expected, beta, capsys) -> None:
    opt, found = settled(*PAIR, *words.split())
    assert (opt.gamma, opt.alpha, opt.beta) == expected and found["dkd"]["dkd_beta"] == beta
    said = capsys.readouterr().out
    assert said.count("\n") == said.count("weights of dkd for resnet56 > resnet20: ") == (beta != 8.0)
    assert ("--dkd_beta 2" in said) == (beta == 2.0)


def test_several_teachers_have_no_row(capsys) -> None:
    words = "--path_t a b --model_t resnet56 resnet56 --model_s resnet20 --distill kdpp".split()
    opt = train_student.parse(words)
    train_student.settle(opt)
    assert (opt.gamma, opt.alpha, *opt.beta) == find_method("kdpp").weights and not capsys.readouterr().out


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A few images as CIFAR-100 stores them, and a teacher whose file says what it is."""
    here = tmp_path_factory.mktemp("cifar")
    folder = here / "cifar-100-python"
    folder.mkdir()
    pixels = torch.randint(0, 256, (100, 3072), dtype=torch.uint8).numpy()
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps({"data": pixels, "fine_labels": list(range(100))}))
    names = [f"class {n}" for n in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    state = plausible("resnet56", 100, torch.randn(4, 3, 32, 32))
    torch.save({"model": state, "model_name": "resnet56"}, here / "teacher.pth")
    return here


@pytest.fixture
def command(cifar, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # of the official files
    words = f"--data_folder {cifar} --path_t {cifar}/teacher.pth --model_s resnet20 --epochs 1 --batch_size 50"
    return [*words.split(), "--limit_val", "100", "--device", "cpu", "--save_folder", str(tmp_path)]


def told(folder):
    return json.loads((folder / "options.json").read_text())["options"]


def test_runs(command, tmp_path, capsys, monkeypatch) -> None:
    """The teacher's name is in its file. The row's values are the run's own, whatever becomes of the table."""
    students = tmp_path / "student_model"
    line = "weights of dkd for resnet56 > resnet20: -r 1 -a 0 -b 1 --dkd_beta 2 (configs/cifar100_pairs.csv)\n"
    train_student.main([*command, "--distill", "dkd", "--run_name", "a"])
    assert capsys.readouterr().out.count(line) == 1
    assert {"gamma": 1.0, "beta": [1.0], "dkd_beta": 2.0, "weights": "paper"}.items() <= told(students / "a").items()

    key = ("dkd", "resnet56", "resnet20")
    changed = ROWS | {key: ROWS[key] | {"options": "--dkd_beta 5"}}
    monkeypatch.setattr(chosen, "published_pairs", lambda: changed)
    with pytest.raises(SystemExit):
        train_student.main([*command, "--distill", "dkd", "--run_name", "a", "--epochs", "1"])
    assert "--dkd_beta was 2.0, is 5.0" in capsys.readouterr().err
    train_student.main(["--config", str(students / "a" / "options.json"), "--run_name", "b"])
    assert "weights of" not in capsys.readouterr().out and told(students / "b")["dkd_beta"] == 2.0
    for name, x in weights(students / "a" / "last.pth").items():
        assert torch.equal(x, weights(students / "b" / "last.pth")[name])


def test_each_student_of_a_sweep_has_its_own_row(command, tmp_path, capsys) -> None:
    items = "dkd; dkd --weights default --run_name d; reviewkd; reviewkd -b 3; kdpp"
    train_student.main([*command, "--sweep", items])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights of ")]
    assert [line.split(": ")[1].split(" (")[0] for line in said] == [
        "-r 1 -a 0 -b 1 --dkd_beta 2", "-r 1 -a 0 -b 0.6", "-r 1 -a 0", "-r 1 -a 1 -b 2",
    ]  # fmt: skip
    assert "weights of reviewkd for resnet56 > resnet20: -r 1 -a 0 (configs" in said[2]
    assert told(tmp_path / "student_model" / "d")["dkd_beta"] == 8.0
    assert len(list((tmp_path / "student_model").glob("*reviewkd_r-1.0_a-0.0_b-0.6_1"))) == 1


def test_wrong_options_come_before_any_file(capsys) -> None:
    with pytest.raises(SystemExit):
        train_student.main([*QUICK, "--path_t", "missing.pth", "--distill", "dkd", "-b", "1,2"])
    assert "error: -b: expected a weight for each of dkd, found 2" in capsys.readouterr().err
