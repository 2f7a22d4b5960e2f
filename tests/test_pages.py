"""Every command of README and pages names scripts, options and variables that there are; test_translation runs many."""

import re
import shlex

import pytest
from conftest import ROOT

import evaluate_kd
import train_student
import train_teacher
import transfer_student

PARSE = {
    "train_teacher.py": train_teacher.parse,
    "train_student.py": train_student.parse,
    "transfer_student.py": transfer_student.parse,
    "evaluate_kd.py": evaluate_kd.parse,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "from_other_projects.md")  # test_translation runs its commands
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)]
INLINE = [
    command for page in PAGES for command in re.findall(r"`((?:python|bash|torchrun|sbatch) [^`]*)`", page.read_text())
]
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
COMMANDS = list(dict.fromkeys(c for c in [*COMMANDS, *INLINE] if "…" not in c and "--help" not in c))


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    words = shlex.split(command, comments=True)
    variables = [words.pop(0) for _ in range(next(i for i, word in enumerate(words) if "=" not in word))]
    script = next((word for word in words if word.endswith((".py", ".sh", ".sbatch"))), None)
    if script is None:
        assert words[0] in ("python", "pip", "uv", "docker", "source") or words[:1] == ["sbatch"]
        return
    assert (ROOT / script).is_file() or script.startswith("..")
    text = (ROOT / script).read_text()
    for variable in variables:
        name = variable.split("=")[0]
        assert name == "PYTHON" or re.search(rf"\b{name}\b", text), f"{script} does not read {name}"
    arguments = words[words.index(script) + 1 :]
    if script in PARSE and "..." not in arguments and not any(word.startswith("--mine") for word in arguments):
        arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
        PARSE[script](arguments)
