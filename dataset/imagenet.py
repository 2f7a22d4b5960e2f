"""ImageNet (ILSVRC2012): 1,281,167 training and 50,000 validation images, 1,000 classes.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015, https://www.image-net.org

`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, as torchvision's ImageFolder reads them; a part of the classes will do.
The published archive of the validation images has no folders: they must be moved into their classes' first.
Images of 224 pixels are random parts of their files in training, and the centre of the image resized to 256 in
validation, as published.
"""

from pathlib import Path

from .base import ImageSet, register
from .folder import IMAGENET, listing
from .storage import Storage


@register("imagenet")
def imagenet(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """`folder` holds train/ and val/; images of `image_size` or 224 pixels. Raises what `folder.listing` raises."""
    return listing(Path(folder)).at(image_size or 224, storage, **IMAGENET)
