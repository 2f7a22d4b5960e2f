"""The sbatch scripts with stand-ins for Slurm's commands: stopped, queued again, and gone on from there."""

import os
import signal
import subprocess
import time

import pytest
from conftest import QUICK, ROOT
from test_resume import equal, results

SLURM = {
    # one node; srun's task is what scancel signals
    "srun": '[ "$1" = --kill-on-bad-exit=0 ] && shift\necho $$ >"$HERE/step"\nexec "$@"',
    "scancel": '[ "$*" = "--signal=TERM 17" ] && kill -TERM "$(cat "$HERE/step")"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$*" >>"$HERE/queued"; fi',
}
OPTIONS = "--distill crd --nce_k 64 --epochs 4 --sync_bn --export torchscript --run_name r"


@pytest.fixture
def slurm(python, tmp_path):
    """Starts a job as Slurm would: script, variables, arguments."""
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "one", "SLURM_NNODES": "1", "NPROC": "2", "HERE": tmp_path}
    variables |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": python, "RUN_LOG": tmp_path / "run.log"}

    def start(script: str, arguments: list, **more: str) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in (variables | more).items()}
        command = ["bash", ROOT / "scripts" / script, *QUICK, *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    return start


@pytest.fixture
def job(slurm, teacher, tmp_path):
    """Starts the job of a run of this name."""

    def start(name: str, *flags: str) -> subprocess.Popen:
        save = ["--save_folder", tmp_path / name]
        return slurm("slurm_distill.sbatch", ["--path_t", teacher, *OPTIONS.split(), *save, *flags])

    return start


def test_stopped_at_its_time_limit(job, tmp_path):
    """The job that is queued again ends as the one that was never stopped; its two processes export and test it."""
    whole = job("whole")
    said, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0 and not (tmp_path / "queued").exists(), said
    (tmp_path / "run.log").unlink()
    broken = job("broken")
    folder = tmp_path / "broken" / "student_model" / "r"
    while broken.poll() is None and not (folder / "log.csv").exists():
        time.sleep(0.02)
    broken.send_signal(signal.SIGUSR1)
    said, _ = broken.communicate(timeout=240)
    assert broken.returncode != 0, said
    assert (tmp_path / "queued").read_text() == "requeue 17\n", said
    assert not (folder / "summary.json").exists() and "SIGTERM: stopped after" in (tmp_path / "run.log").read_text()
    again = job("broken")
    assert "continuing" in again.communicate(timeout=240)[0] and again.returncode == 0
    assert (tmp_path / "queued").read_text() == "requeue 17\n"
    log = (tmp_path / "run.log").read_text()
    assert log.count("last epoch (4): ") == log.count("student.pt") == 1 and (folder / "student.pt").exists()
    loss = (folder / "log.csv").read_text().splitlines()[-1].split(",")[4]
    assert f"{folder}/last.pth: loss {float(loss):.4f}" in job("broken", "--test_only").communicate(timeout=240)[0]
    for found, expected in zip(results(folder), results(tmp_path / "whole" / "student_model" / "r"), strict=True):
        assert equal(found, expected)


def test_a_failure_is_not_queued_again(job, tmp_path):
    failed = job("failed", "--momentum", "-1")
    assert "--momentum: expected" in failed.communicate(timeout=240)[0]
    assert failed.returncode != 0 and not (tmp_path / "queued").exists()


def test_an_array_of_sweeps(slurm, teacher, tmp_path):
    """An element stopped at its limit is queued again by its own number, and ends as the one that was left alone."""
    pairs = f"{teacher}:resnet8 {teacher}:resnet14"
    arguments = ["--sweep", "none; kd", "--epochs", "4", "--save_folder"]

    def element(number: int, folder: str) -> subprocess.Popen:
        return slurm(
            "slurm_sweep.sbatch",
            [*arguments, tmp_path / folder],
            SLURM_ARRAY_TASK_ID=str(number),
            SEEDS="5 7",
            PAIRS=pairs,
        )

    whole = element(4, "whole")
    said, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, said
    folders = sorted((tmp_path / "whole" / "student_model").iterdir())
    assert [f.name.split("_")[0] + f.name[-2:] for f in folders] == ["S-resnet14_7"] * 2
    broken = element(4, "broken")
    while broken.poll() is None and not list((tmp_path / "broken").rglob("log.csv")):
        time.sleep(0.02)
    broken.send_signal(signal.SIGUSR1)
    said, _ = broken.communicate(timeout=240)
    assert broken.returncode != 0 and (tmp_path / "queued").read_text() == "requeue 17\n", said
    again = element(4, "broken")
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0 and "continuing" in said
    for folder in folders:
        other = tmp_path / "broken" / "student_model" / folder.name
        assert all(equal(a, b) for a, b in zip(results(other), results(folder), strict=True))


@pytest.mark.parametrize(
    ("number", "pairs", "message"),
    [(3, "", "--array: expected elements of 1 to 2, found 3"), (1, "resnet8", "PAIRS: expected TEACHER.pth:student")],
)
def test_elements_that_are_none(slurm, tmp_path, number, pairs, message):
    job = slurm("slurm_sweep.sbatch", ["--sweep", "none"], SLURM_ARRAY_TASK_ID=str(number), SEEDS="5 7", PAIRS=pairs)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 2 and message in said
