"""`--loader dali`: NVIDIA DALI decodes and resizes on the GPU. https://docs.nvidia.com/deeplearning/dali

Order, crops and flips are those of `Streamed`. Pixels differ because the decoders do.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .augment import Augment, Steps
from .cuts import Plain, ResizedCrop
from .files import Unreadable, opened
from .storage import Files


class Dali(Augment):
    """Views of images in files.

    Each call of `pixels` builds a pipeline, so that no epoch depends on the previous one.
    """

    def __init__(
        self,
        files: Files,
        cut: ResizedCrop | Plain,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
    ) -> None:
        super().__init__(files.shape, mean, std, device)
        self.files, self.cut = files, cut
        self.draw, self.outcomes = cut.draw, cut.outcomes

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """As `Augment.pixels`. Raises Unreadable for an image that cannot be decoded."""
        from nvidia.dali.plugin.pytorch import DALIGenericIterator

        index, view = index.cpu(), view.cpu()
        largest = max((len(index[step]) for step in steps), default=1)
        with ThreadPoolExecutor(self.files.storage.workers) as pool:
            source = (self.inputs(pool, index[step], view[step]) for step in steps)
            try:
                for (found,) in DALIGenericIterator(self.pipeline(source, largest), ["pixels"]):
                    yield found["pixels"]
            except RuntimeError as error:
                raise Unreadable(f"--loader dali: {error}") from error

    def inputs(self, pool: ThreadPoolExecutor, index: Tensor, view: Tensor) -> tuple[Any, ...]:
        """The pipeline's inputs for a batch: encoded images, and for each where to crop.

        For `Plain`, the sizes [B, 2] to resize to and the crops' corners [B, 2]. For `ResizedCrop`, the crops' corners
        and sizes [B, 2], and which are flipped [B].
        """
        paths = self.files[index].names()
        encoded = list(pool.map(encoded_image, paths))
        if isinstance(self.cut, Plain):
            sizes = np.array(list(pool.map(self.resized, paths)), np.float32)  # as `resize` wants them
            return encoded, sizes, np.rint((sizes - self.shape[2:]) / 2).astype(np.int32)
        boxes, flips = zip(*pool.map(self.box, paths, view.tolist()), strict=True)
        boxes = np.array(boxes, np.int32)
        corners, sizes = boxes[:, :2].copy(), boxes[:, 2:].copy()  # DALI needs contiguous arrays
        return encoded, corners, sizes, np.array(flips, np.int32)

    def resized(self, path: str) -> tuple[int, int]:
        """Height and width after resizing. torchvision's Resize rounds the longer side down; DALI would round it to the
        nearest.
        """
        with opened(path) as image:
            width, height = image.size
        short, size = min(width, height), self.cut.resized
        return size * height // short, size * width // short

    def box(self, path: str, seed: int) -> tuple[tuple[int, int, int, int], bool]:
        with opened(path) as image:
            return self.cut.box(*image.size, seed)

    def pipeline(self, source: Iterator[tuple[Any, ...]], batch_size: int) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        gpu, size = self.device.type == "cuda", list(self.shape[2:])
        decoder = {"device": "mixed" if gpu else "cpu", "output_type": types.RGB, "adjust_orientation": False}
        device_id = torch.empty(0, device=self.device).device.index if gpu else None

        @pipeline_def(batch_size=batch_size, num_threads=self.files.storage.workers, device_id=device_id)
        def graph() -> Any:
            if isinstance(self.cut, Plain):
                encoded, whole, corner = fn.external_source(source, num_outputs=3)
                image = fn.resize(fn.decoders.image(encoded, **decoder), size=whole)
                return fn.slice(image, start=corner, shape=size, axis_names="HW")
            encoded, corner, shape, flip = fn.external_source(source, num_outputs=4)
            image = fn.decoders.image_slice(encoded, start=corner, shape=shape, axis_names="HW", **decoder)
            return fn.flip(fn.resize(image, size=size), horizontal=flip)

        return graph()


def encoded_image(path: str) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise Unreadable(f"{path}: {error}") from error
