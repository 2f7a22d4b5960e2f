"""What --save_predictions says of each image: class names, and of image files their paths."""

import csv
import os
from pathlib import Path

import pytest
from conftest import QUICK
from PIL import Image
from test_dataset import make_tree

import dataset
import train_teacher
from scripts import compare_predictions

TRAIN = "--model resnet8 --batch_size 4 --epochs 1 --device cpu --save_predictions --run_name r".split()


def trained(save: Path, *more: str) -> list[dict[str, str]]:
    train_teacher.main([*TRAIN, "--save_folder", str(save), *more])
    with open(save / "models" / "r" / "predictions.csv", newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("more", [[], ["--loader", "stream"], ["--limit_val", "3"], ["--val_split", "2"]])
def test_image_files(more: list[str], tmp_path, monkeypatch) -> None:
    make_tree(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    rows = trained(tmp_path, "--dataset", "folder", "--data_folder", "./data", *more)
    for row in rows:
        part, name, *_ = Path(row["path"]).parts
        assert (tmp_path / "data" / row["path"]).is_file() and (part, name) == ("val", row["label_name"])
        assert (row["label_name"], row["prediction_name"]) == tuple(
            ("ant", "bee")[int(row[key])] for key in ("label", "prediction")
        )
    assert len({row["path"] for row in rows}) == len(rows) == (3 if "--limit_val" in more else 4)


def test_names_of_all_kinds(tmp_path, capsys) -> None:
    """Commas, quotes, ends of lines and bytes that are no UTF-8, in the files and in the table of the classes."""
    names = sorted(['a,"b"\nc', os.fsdecode(b"\xff")])
    for part in ("train", "val"):
        for name in names:
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8), (i, 9, 9)).save(tmp_path / "data" / part / name / f"{i}.png")
    rows = trained(tmp_path, "--dataset", "folder", "--data_folder", str(tmp_path / "data"))
    assert [row["label_name"] for row in rows] == [name for name in names for _ in range(2)]
    assert all((tmp_path / "data" / row["path"]).is_file() for row in rows)
    capsys.readouterr()
    place, table = str(tmp_path / "models" / "r"), tmp_path / "table.csv"
    compare_predictions.main([place, place, "--per_class", "--csv", str(table)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and [line.split(" | ")[0] for line in lines[3:]] == ['| a,"b" c', "| \\udcff"]
    with open(table, newline="", errors="surrogateescape") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["all", *names]


def test_arrays_have_names_alone(tmp_path) -> None:
    rows = trained(tmp_path, *QUICK)
    assert list(rows[0]) == ["index", "label", "prediction", "confidence", "label_name", "prediction_name"]
    classes = dataset.load("digits", "").classes
    assert all(classes[int(row["label"])] == row["label_name"] for row in rows) and len(rows) == 50


def test_files_of_before_are_read(tmp_path, capsys) -> None:
    (tmp_path / "old.csv").write_text("index,label,prediction,confidence\n0,3,3,0.5\n1,7,3,0.5\n")
    compare_predictions.main([str(tmp_path / "old.csv")] * 2 + ["--per_class"])
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| all", "| 3", "| 7"]
