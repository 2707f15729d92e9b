"""Picture files that a sample starts from or is told: read at their size, and named in samples.json by what they hold."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.sizes import Size


@dataclasses.dataclass(frozen=True)
class Pictures:
    """An image to start from, and where it is made anew: files of the size that the model makes.

    strength: the share of the steps that is run; None for all, with a mask. outpaint: pixels (left, top, right, bottom) that are made
    anew around the image, whose size is then that of the images less these.
    """

    init: str
    mask: str = ""
    strength: float | None = None
    outpaint: tuple[int, int, int, int] | None = None

    @property
    def size(self) -> Size | None:
        """(width, height) of the images that outpainting makes. Raises UserError: no picture."""
        if self.outpaint is None:
            return None
        image = any_picture(self.init, "--init_image", "")
        left, top, right, bottom = self.outpaint
        return image.shape[1] + left + right, image.shape[0] + top + bottom

    def wishes(self, model, size: Size | None = None) -> dict:
        """init, mask (white is made anew) and strength, as `Model.sample` takes them at this size; of a model that is told the mask (see
        `told`), what is pasted, and init with a strength only."""
        found = self._read(model, size)
        if "mask" in model.experiment.conditioner.fields:
            started = {} if self.strength is None else {"init": found["image"], "strength": self.strength}
            return started | ({"paste": (found["image"], found["mask"])} if "mask" in found else {})
        return {"init": found["image"], "strength": self.strength} | ({"mask": found["mask"][0]} if "mask" in found else {})

    def told(self, model, size: Size | None = None) -> dict:
        """image and mask as `Model.condition` takes them, of a model that is told them.

        Raises:
          UserError: there is no mask.
        """
        if not self.mask and not self.outpaint:
            raise UserError("--mask: this model fills in what is masked; give a picture that is white where it is made anew, "
                            "or --outpaint")
        return self._read(model, size)

    def _read(self, model, size: Size | None) -> dict:
        facts = model.experiment.facts
        size = size or (facts.resolution, facts.resolution)
        if self.outpaint:
            return self._grown(size, facts.channels)
        found = {"image": read_picture(self.init, "--init_image", size, facts.channels)[None]}
        return found | ({"mask": read_mask(self.mask, size)[None]} if self.mask else {})

    def _grown(self, size: Size, channels: int) -> dict:
        """The image with its border's pixels repeated outwards, and a mask of what they are."""
        left, top, right, bottom = self.outpaint
        image = read_picture(self.init, "--init_image", (size[0] - left - right, size[1] - top - bottom), channels)
        sides = ((top, bottom), (left, right))
        return {"image": np.pad(image, (*sides, (0, 0)), "edge")[None], "mask": np.pad(np.zeros(image.shape[:2], bool), sides,
                                                                                      constant_values=True)[None]}

    @property
    def page(self) -> dict:
        """For samples.json."""
        return named({"init_image": self.init, "mask": self.mask}) | {"strength": self.strength} | (
            {"outpaint": list(self.outpaint)} if self.outpaint else {})


def pictures_of(init: str, mask: str, strength: float | None, outpaint: str = "") -> Pictures | None:
    """What four flags say; None where they are empty.

    Raises:
      UserError: flags that do not go together.
    """
    if not init and (mask or strength is not None or outpaint):
        flag = "--mask" if mask else "--outpaint" if outpaint else "--strength"
        raise UserError(f"{flag} belongs to --init_image=FILE, the picture to start from")
    if init and not mask and strength is None and not outpaint:
        raise UserError("--init_image: give --strength too, above 0 and up to 1: how much of the way is run from it; or a --mask")
    if mask and outpaint:
        raise UserError("--mask and --outpaint: give one of them; a mask of the larger image says the borders too")
    return Pictures(init, mask, strength, parse_sides(outpaint)) if init else None


def parse_sides(text: str) -> tuple[int, int, int, int] | None:
    """"0,0,64,0" -> four whole numbers, not all 0; None for "".

    Raises:
      UserError: anything else.
    """
    found = re.fullmatch(r"\s*(\d{1,6})" + r"\s*,\s*(\d{1,6})" * 3 + r"\s*", text)
    sides = tuple(map(int, found.groups())) if found else ()
    if text and not any(sides):
        raise UserError(f"--outpaint={text}: expected LEFT,TOP,RIGHT,BOTTOM in pixels, one of them above 0, as --outpaint=0,0,64,0")
    return sides or None


def size_of(size: Size | None, pictures: Pictures | None) -> Size | None:
    """What --size says, or what outpainting makes.

    Raises:
      UserError: both, and they differ.
    """
    grown = pictures.size if pictures else None
    if size and grown and size != grown:
        raise UserError(f"--size={size[0]}x{size[1]}: --init_image with --outpaint is {grown[0]}x{grown[1]}; leave one of the two out")
    return grown or size


def read_mask(path: str, size: Size) -> np.ndarray:
    """bool [H, W], True where a picture of black and white is white.

    Raises:
      UserError: as of `read_picture`; grey pixels, and how many.
    """
    mask = read_picture(path, "--mask", size, 1)[..., 0]
    grey = int(np.sum((mask > 0) & (mask < 255)))
    if grey:
        raise UserError(f"--mask={path}: {grey} of {mask.size} pixels ({grey / mask.size:.2g} of all) are grey; expected black (stays) and "
                        "white (made anew) alone. Make it so by PIL's image.convert('L').point(lambda v: 255 * (v > 127)), saved as PNG")
    return mask == 255


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
    """A picture file of any size as PIL's mode says: "RGB" uint8 [H, W, 3], "L" uint8 [H, W], "F" float32 [H, W]; "" as it is.

    Raises:
      UserError: no file, or no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode) if mode else picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        told = "no such file" if isinstance(error, FileNotFoundError) else "not a picture that can be read"
        raise UserError(f"{where}={path}: {told}") from None


def named(files: Mapping[str, str | Sequence[str]]) -> dict:
    """For samples.json: the files' names without folders, and digests of what they hold, in a list of several; "" and () are no file."""
    def one(file: str) -> dict:
        return {"file": pathlib.Path(file).name, "sha256": hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()}

    return {name: one(file) if isinstance(file, str) else one(file[0]) if len(file) == 1 else [one(each) for each in file]
            for name, file in files.items() if file}
