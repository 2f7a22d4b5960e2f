"""Hugging Face's hub: `hf:owner/name` where a checkpoint is named.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are obeyed. https://huggingface.co/docs/huggingface_hub
"""

import functools
import os
import re
from pathlib import Path

REPOSITORY = r"[\w.-]+/[\w.-]+"
WEIGHTS = "model.safetensors"
NAMES = (WEIGHTS, "last.pth")  # that are looked for where no file is named


class Unavailable(ValueError):
    """There is no such file, or it is not to be had."""


def is_remote(path: str | Path) -> bool:
    return str(path).startswith("hf:")


@functools.cache  # a run sees one revision, and asks once
def fetched(path: str) -> Path:
    """The local copy of `hf:owner/name`, `hf:owner/name/FILE`, either with `@REVISION`. Raises Unavailable."""
    match = re.fullmatch(rf"hf:({REPOSITORY})(?:/([^@]+))?(?:@(\S+))?", path)
    if not match:
        raise Unavailable("expected hf:owner/name or hf:owner/name/FILE, with @REVISION or without")
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise Unavailable("needs the package huggingface_hub (pip install huggingface_hub)") from None

    repository, file, revision = match.groups()
    endpoint = os.environ.get("HF_ENDPOINT")
    for name in [file] if file else NAMES:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, endpoint=endpoint))
        except LocalEntryNotFoundError as error:  # a kind of the next one
            raise Unavailable(f"neither in the cache nor to be reached: {error.__cause__ or error}") from None
        except EntryNotFoundError:
            pass
        except Exception as error:  # no such repository or revision, no access, a full disk
            raise Unavailable(str(error)) from None
    raise Unavailable(f"{repository} holds no {file or ' and no '.join(NAMES)}")
