"""A picture of what models of the shapes world were told and made: condition, samples, truth in rows, with what was measured below."""

from collections.abc import Sequence

import numpy as np

from ldm_jax.data.shapes_world import COLOUR_NAMES, COLOUR_VALUES, SHAPES, Scene
from ldm_jax.evals.shapes_judges import JUDGES
from ldm_jax.evals.shapes_reading import Held, Shown
from ldm_jax.evals.shapes_summary import MAIN

CELL, GAP, LINE = 112, 10, 14  # pixels: of a cell's side at least, between cells, of a line of text
MARKS = ("o", "#", "^", "+")  # of the shapes, in a layout's boxes
NO_PICTURE = {"text", "class", "unconditional"}
WORDS = {"all_right": ("right", "wrong"), "class_right": ("right", "wrong"), "valid": ("valid", "not valid"),
         "consistent": ("continues", "does not continue")}


def picture(samples: np.ndarray, held: Held, tasks: Sequence[str], title: str = "") -> np.ndarray:
    """uint8 [H, W, 3], a row for each of K records.

    Args:
      samples: uint8 [K, S, R, R, 3], S samples of what each record says.
      held: the K records.
      tasks: what the samples were told, names of JUDGES.
      title: the line above.
    """
    from PIL import Image, ImageDraw

    count, each, side = samples.shape[:3]
    cell = side * max(1, -(-CELL // side))
    told = [task for task in tasks if task != "unconditional"]
    heads = [_plain(task) for task in told] + ["samples"] + [""] * (each - 1) + (["truth"] if told else [])
    high, below = cell + (len(tasks) + 1) * LINE, 3 * LINE
    sheet = Image.new("RGB", (GAP + len(heads) * (cell + GAP), below + LINE + count * high + LINE), "white")
    draw = ImageDraw.Draw(sheet)
    write = _Writer(draw, _font())
    write((GAP, 4), title)
    notes = [_notes(samples[:, j], held, tasks) for j in range(each)]
    for column, head in enumerate(heads):
        write((GAP + column * (cell + GAP), 4 + LINE + 6), head)
    for i in range(count):
        top = below + LINE + i * high
        cells = [_told(task, held, i, cell) for task in told] + [_enlarged(image, cell) for image in samples[i]]
        cells += [_enlarged(held.images[i], cell)] if told else []
        below_each = [""] * len(told) + [notes[j][i] for j in range(each)]
        for column, image in enumerate(cells):
            left = GAP + column * (cell + GAP)
            sheet.paste(Image.fromarray(image), (left, top))
            draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=(150, 150, 150))
            if column < len(told) and told[column] in NO_PICTURE:
                write((left + 4, top + 4), _said(told[column], held.scenes[i]), cell - 8)
        for column, note in enumerate(below_each):
            write((GAP + column * (cell + GAP), top + cell + 2), note, cell + GAP)
    write((GAP, sheet.height - LINE - 4), _legend(tasks))
    return np.asarray(sheet)


class _Writer:
    """Writes text into a picture, broken into lines of a width."""

    def __init__(self, draw, font):
        self.draw, self.font = draw, font

    def __call__(self, place: tuple[int, int], text: str, width: int = 10**6) -> None:
        line, top = "", place[1]
        for word in text.replace("\n", " \n ").split(" "):
            longer = f"{line} {word}".strip()
            if word == "\n" or self.draw.textlength(longer, font=self.font) > width and line:
                self.draw.text((place[0], top), line, fill=(0, 0, 0), font=self.font)
                line, top = "" if word == "\n" else word, top + LINE
            else:
                line = longer
        self.draw.text((place[0], top), line, fill=(0, 0, 0), font=self.font)


def _font():
    from PIL import ImageFont

    return ImageFont.load_default(size=11)


def _notes(images: np.ndarray, held: Held, tasks: Sequence[str]) -> list[str]:
    """For each image what its tasks' main measures say of it."""
    shown, lines = Shown(images), [[] for _ in images]
    for task in tasks:
        name = MAIN[task]
        measure = JUDGES[task](shown, held)[name]
        weight = np.ones(len(images)) if measure.weight is None else measure.weight
        for line, value, counts in zip(lines, measure.value, weight):
            if not counts:
                line.append("nothing cut" if task == "inpainting" else "nothing there")
            elif name in WORDS and value in (0, 1):
                line.append(WORDS[name][0 if value else 1])
            else:
                line.append(f"{_unit(name)} {value:.2f}" if name != "psnr_gain_db" else f"{value:+.1f} dB")
    return ["\n".join(line) for line in lines]


def _unit(name: str) -> str:
    return {"mean_iou": "IoU", "object_right": "right:"}.get(name, _plain(name))


def _legend(tasks: Sequence[str]) -> str:
    marks = f"; boxes: {', '.join(f'{mark} {word}' for mark, word in zip(MARKS, SHAPES))}" if "layout" in tasks else ""
    return "below a sample: " + ", ".join(f"{_plain(MAIN[task])} ({_plain(task)})" for task in tasks) + ", by the oracle" + marks


def _said(task: str, scene: Scene) -> str:
    thing = scene.things[0]
    return scene.caption if task == "text" else f"{COLOUR_NAMES[thing.colour]} {SHAPES[thing.shape]} first"


def _told(task: str, held: Held, i: int, cell: int) -> np.ndarray:
    """What a record says for a task, as a picture uint8 [cell, cell, 3]; white for what is said in words."""
    match task:
        case "map":
            return _enlarged(_colours(np.asarray(held.fields["map"][i])), cell)
        case "layout":
            return _boxes(held.scenes[i], cell)
        case "super_resolution":
            small = np.clip(held.fields["low_res"][i], -1, 1)
            return _enlarged(np.rint((small + 1) * 127.5).astype(np.uint8), cell)
        case "inpainting":
            hole = np.asarray(held.fields["mask"][i])[..., None] >= 0.5
            return _enlarged(np.where(hole, np.uint8(255) - 40 * (np.indices(hole.shape[:2]).sum(0) % 2)[..., None], held.images[i])
                             .astype(np.uint8), cell)
        case "retrieval" if held.near:
            return _near(held.near[i], cell)
    return np.full((cell, cell, 3), 255, np.uint8)


def _colours(told: np.ndarray) -> np.ndarray:
    """A map's classes in the colours of the things, the shapes by their lightness; the ground black."""
    shape, colour = np.divmod(np.maximum(told - 1, 0), len(COLOUR_NAMES))
    light = 1 - 0.2 * shape
    return np.where(told[..., None] > 0, COLOUR_VALUES[colour] * light[..., None], 0).astype(np.uint8)


def _boxes(scene: Scene, cell: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (cell, cell), "white")
    draw = ImageDraw.Draw(sheet)
    for thing in scene.things:
        colour = tuple(int(x) for x in COLOUR_VALUES[thing.colour])
        draw.rectangle([x * cell for x in thing.box], outline=colour, width=3)
        draw.text((thing.x * cell, thing.y * cell), MARKS[thing.shape], fill=colour, font=_font(), anchor="mm")
    return np.asarray(sheet)


def _near(scenes: Sequence[Scene], cell: int) -> np.ndarray:
    """The neighbours' pictures, up to four, in a square."""
    from ldm_jax.data.shapes_world import draw as drawn

    sheet = np.full((cell, cell, 3), 255, np.uint8)
    half = cell // 2 - 1
    for k, scene in enumerate(scenes[:4]):
        top, left = (k // 2) * (half + 2), (k % 2) * (half + 2)
        sheet[top:top + half, left:left + half] = _enlarged(drawn(scene, 32)[0], half)
    return sheet


def _enlarged(image: np.ndarray, cell: int) -> np.ndarray:
    """The nearest pixel's colour."""
    return image[(np.arange(cell) * image.shape[0] // cell)[:, None], np.arange(cell) * image.shape[1] // cell]


def _plain(name: str) -> str:
    return name.replace("_", " ")
