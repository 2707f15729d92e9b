"""Picture files that a sample starts from or is told: read at their size, and named in samples.json by what they hold."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.sizes import Size


@dataclasses.dataclass(frozen=True)
class Pictures:
    """An image to start from, and where it is made anew: files of the size that the model makes.

    strength: the share of the steps that is run; None for all, with a mask.
    """

    init: str
    mask: str = ""
    strength: float | None = None

    def wishes(self, model, size: Size | None = None) -> dict:
        """init, mask (white, from 128 on, is made anew) and strength, as `Model.sample` takes them at this size; of a model that is told
        the mask (see `told`), init with a strength only."""
        if "mask" in model.experiment.conditioner.fields:
            return {} if self.strength is None else {"init": self._read(model, size)["image"], "strength": self.strength}
        found = self._read(model, size)
        return {"init": found["image"], "strength": self.strength} | ({"mask": found["mask"][0]} if self.mask else {})

    def told(self, model, size: Size | None = None) -> dict:
        """image and mask as `Model.condition` takes them, of a model that is told them.

        Raises:
          UserError: there is no mask.
        """
        if not self.mask:
            raise UserError("--mask: this model fills in what is masked; give a picture that is white where it is made anew")
        return self._read(model, size)

    def _read(self, model, size: Size | None) -> dict:
        facts = model.experiment.facts
        size = size or (facts.resolution, facts.resolution)
        found = {"image": read_picture(self.init, "--init_image", size, facts.channels)[None]}
        return found | ({"mask": read_picture(self.mask, "--mask", size, 1)[None, ..., 0] >= 128} if self.mask else {})

    @property
    def page(self) -> dict:
        """For samples.json."""
        return named({"init_image": self.init, "mask": self.mask}) | {"strength": self.strength}


def pictures_of(init: str, mask: str, strength: float | None) -> Pictures | None:
    """What three flags say; None where they are empty.

    Raises:
      UserError: flags that do not go together.
    """
    if not init and (mask or strength is not None):
        raise UserError(f"{'--mask' if mask else '--strength'} belongs to --init_image=FILE, the picture to start from")
    if init and not mask and strength is None:
        raise UserError("--init_image: give --strength too, above 0 and up to 1: how much of the way is run from it; or a --mask")
    return Pictures(init, mask, strength) if init else None


def read_picture(path: str, where: str, size: Size, channels: int) -> np.ndarray:
    """A picture file as uint8 [H, W, channels], size = (W, H); grey becomes colour, and colour grey.

    Raises:
      UserError: no file, no picture, or one of another size.
    """
    image = any_picture(path, where, "L" if channels == 1 else "RGB")
    found = (image.shape[1], image.shape[0])
    if found != tuple(size):
        raise UserError(f"{where}={path}: it is {found[0]}x{found[1]}; this model makes images of {size[0]}x{size[1]}, and others by "
                        "--size=WIDTHxHEIGHT")
    return image.reshape(*image.shape[:2], channels)


def any_picture(path: str, where: str, mode: str) -> np.ndarray:
    """A picture file of any size as PIL's mode says: "RGB" uint8 [H, W, 3], "L" uint8 [H, W], or "F" float32 [H, W].

    Raises:
      UserError: no file, or no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except (OSError, ValueError) as error:
        told = "no such file" if isinstance(error, FileNotFoundError) else "not a picture that can be read"
        raise UserError(f"{where}={path}: {told}") from None


def named(files: Mapping[str, str]) -> dict:
    """For samples.json: the files' names without folders, and digests of what they hold; "" is no file."""
    return {name: {"file": pathlib.Path(file).name, "sha256": hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()}
            for name, file in files.items() if file}
