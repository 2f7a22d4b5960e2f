"""What several tests share: quick runs of the scripts on the shipped digits."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from forks import write_client  # noqa: E402

import models  # noqa: E402

QUICK = "--dataset digits --limit_train 100 --limit_val 50 --batch_size 32 --device cpu".split()


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """last.pth of a resnet14 trained for one epoch on a few digits."""
    import train_teacher

    save = tmp_path_factory.mktemp("teacher")
    train_teacher.main([*QUICK, "--model", "resnet14", "--epochs", "1", "--save_folder", str(save), "--run_name", "t"])
    return save / "models" / "t" / "last.pth"


@pytest.fixture(scope="session")
def python(tmp_path_factory) -> Path:
    """A Python that has torch loaded already, and the training scripts."""
    here = tmp_path_factory.mktemp("python")
    command = [sys.executable, ROOT / "tests" / "forks.py", here / "socket"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as server:
        assert server.stdout.readline() == b"ready\n"
        write_client(here / "python", here / "socket")
        yield here / "python"
        server.terminate()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def plausible(name: str, num_classes: int, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights of an untrained network whose BatchNorm statistics fit `images`: features as large as a trained one's."""
    torch.manual_seed(0)
    network = models.create_model(name, num_classes)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # this one batch counts, and nothing before it
    network(images)
    return network.state_dict()
