"""ImageNet (ILSVRC2012): 1,281,167 training and 50,000 validation images, 1,000 classes.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, https://www.image-net.org

`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, as for torchvision's ImageFolder; a subset of the classes works too. The
published archive of validation images has no folders: move the images into their classes' folders first. As published,
images of 224 pixels are random resized crops in training, and in validation the centre of the image resized to 256.
"""

from pathlib import Path

from .base import ImageSet, register
from .folder import IMAGENET, listing
from .storage import Storage


@register("imagenet")
def imagenet(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """`folder` holds train/ and val/. Images have `image_size` or 224 pixels. Raises as `folder.listing`."""
    return listing(Path(folder)).at(image_size or 224, storage, **IMAGENET)
