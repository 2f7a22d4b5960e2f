"""`--push_to_hub owner/name`: uploads a finished run to the Hugging Face hub: weights, options, log and a
model card.
"""

import importlib.util
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from . import checkpoint, hub
from .util import UserError

OF_THIS_MACHINE = {"data_folder", "save_folder", "cache_teacher", "run_log", "push_to_hub"}  # useless elsewhere
SCRIPTS = {"models": "train_teacher.py", "student_model": "train_student.py", "transfer": "transfer_student.py"}


def check(repository: str, several: bool) -> None:
    """Raises UserError for what would make `push` fail after the training. Does not use the network."""
    what = f"--push_to_hub {repository}"
    if not re.fullmatch(hub.REPOSITORY, repository):
        raise UserError(f"{what}: expected owner/name")
    if several:
        raise UserError(f"{what}: takes one student; give it to a finished run of the --sweep, with --config")
    for package in ("huggingface_hub", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{what}: needs the package {package} (pip install {package})")
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise UserError(f"{what}: log in first (hf auth login, or HF_TOKEN)")


def push(repository: str, folder: Path, state: dict[str, Any], summary: dict[str, Any]) -> str:
    """Uploads a finished run: weights, options, summary, log and a model card. Returns the address.

    state: the contents of last.pth. Raises UserError if the upload fails.
    """
    import huggingface_hub

    told = json.loads((folder / "options.json").read_text())
    told["options"] = public(told["options"])
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        save_weights(here / hub.WEIGHTS, state)
        (here / "options.json").write_text(json.dumps(told, indent=2) + "\n")
        (here / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (here / "log.csv").write_text(state["logs"]["log.csv"])
        (here / "README.md").write_text(card(repository, SCRIPTS[folder.parent.name], told, summary))
        try:
            api.create_repo(repository, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=here, commit_message=f"{summary['last_acc']:.2f} %")
        except Exception as error:
            again = "the run is finished; the same command tries again"
            raise UserError(f"--push_to_hub {repository}: {checkpoint.first_line(error)}; {again}") from None
    return f"{api.endpoint}/{repository}"


def public(options: dict[str, Any]) -> dict[str, Any]:
    """The options without folders of this machine. Of a weights file, only its name stays."""
    found = {key: value for key, value in options.items() if key not in OF_THIS_MACHINE}
    for key in ("path_t", "path_s"):
        if found.get(key):
            paths = [path if hub.is_remote(path) else Path(path).name for path in listed(found[key])]
            found[key] = paths if isinstance(found[key], list) else paths[0]
    return found


def save_weights(path: Path, state: dict[str, Any]) -> None:
    """Writes a safetensors file, whose metadata has what `checkpoint.load` needs beside the tensors."""
    from safetensors.torch import save

    data = {key: state["options"].get(key) for key in ("dataset", "image_size")}
    facts = {key: state[key] for key in checkpoint.TOLD if key in state} | {"options": data}
    tensors: dict[str, Tensor] = {key: x.contiguous().clone() for key, x in state["model"].items()}
    content = save(tensors, {"format": "pt", checkpoint.FACTS: json.dumps(facts)})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    # safetensors writes them in random order, which would be a new file to the hub
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def card(repository: str, script: str, told: dict[str, Any], summary: dict[str, Any]) -> str:
    """The repository's README.md."""
    options, accuracy = told["options"], summary["last_acc"]
    network = options.get("model_s") or options["model"]
    rows = {
        "network": f"{network}, {summary['parameters']:,} parameters",
        "data set": options["dataset"],
        "accuracy, last epoch": f"{accuracy:.2f} %",
        "accuracy, best epoch": f"{summary['best_acc']:.2f} % (chosen by looking at the test set)",
    }
    if options.get("distill"):
        weights = f"-r {options['gamma']} -a {options['alpha']} -b {','.join(map(str, options['beta']))}"
        rows["method"] = f"{', '.join(options['distill'])} ({weights})"
    if options.get("model_t"):
        accuracies = [f"{x:.2f} %" for x in listed(summary.get("teacher_acc", []))]
        rows["teacher"] = ", ".join(options["model_t"]) + (f" ({', '.join(accuracies)})" if accuracies else "")
    rows |= {"epochs": summary["epochs"], "seed": options["seed"], "commit": told["commit"]}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    given = [f"--{key} FILE" for key in ("path_t", "path_s") if options.get(key)]
    command = " ".join([f"python {script} --config options.json", *given])
    taught = f"--path_t hf:{repository} --dataset {options['dataset']} --model_s NETWORK --distill METHOD"
    return f"""---
library_name: pytorch
pipeline_tag: image-classification
tags: [knowledge-distillation, image-classification]
model-index:
- name: {json.dumps(repository.partition("/")[2])}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {options["dataset"]}, type: {options["dataset"]}}}
    metrics:
    - {{type: accuracy, value: {accuracy:.2f}}}
---
# {repository.partition("/")[2]}

| | |
|---|---|
{table}

Trained by `{command}`; every option is in `options.json`, every epoch in `log.csv`.
As a teacher: `python train_student.py {taught}`
"""


def listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]
