"""Do samples of the shapes world obey what they were told? A judge for each kind of condition, by the world's exact oracle.

A judge takes what is shown and what was held out, and gives measures by name. What the oracle reads wrongly counts against the
sample. The judge of a condition is found by the batch field that its conditioner reads: JUDGES.
"""

from collections.abc import Callable, Mapping

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.shapes_oracle import Seen, overlap, painted
from ldm_jax.data.shapes_world import CLASSES, COLOUR_NAMES, SHAPES, Thing, coverage
from ldm_jax.data.transforms import resize
from ldm_jax.evals.image_metrics import psnr
from ldm_jax.evals.shapes_reading import LOOSE, MISFIT, Held, Measure, Pooled, Shown, faults, matched

IOU = 0.7  # of a box in its place
CUT = (0.2, 0.8)  # the share of a thing that is seen beside the hole which cuts it: less says too little, more is nearly all
AGREES = 0.15  # see `_continues`

Judge = Callable[[Shown, Held], dict[str, Measure | Pooled]]


def text(shown: Shown, held: Held) -> dict:
    """The things that a caption names: their number, and how many of them have the right colour, shape, place and size word.

    "all_right": the share of images with the right number of things and colour, shape and place of each; the others are shares of
    the told things, each beside the thing that is most like it, in what it is before where it is (what is missing has nothing right),
    and "number" of images.
    """
    columns = np.zeros((len(held.scenes), 4))
    for i, (scene, seen) in enumerate(zip(held.scenes, shown.seen)):
        def score(told: Thing, found: Thing) -> float:
            _, colour, shape, place = _words_right(told, found)
            return 2 * colour + 2 * shape + place + overlap(told.box, found.box) / 2
        found = matched(scene.things, seen, score)
        columns[i] = np.mean([_words_right(t, s.thing) if s else (0, 0, 0, 0) for t, s in zip(scene.things, found)], axis=0)
    number, weight = _number_right(shown, held), np.array([len(scene.things) for scene in held.scenes])
    size, *rest = columns.T
    every = number & np.all([part == 1 for part in rest], axis=0)
    named = {name: Measure(part, weight) for name, part in zip(("colour", "shape", "place"), rest)}
    return {"all_right": Measure(every), "number": Measure(number), **named, "size_word": Measure(size, weight)}


def of_class(shown: Shown, held: Held) -> dict:
    """The class of the first thing in reading order, and its shape and colour; "valid": see `unconditional`."""
    told = [scene.things[0] for scene in held.scenes]
    first = [seen[0].thing if seen else None for seen in shown.seen]
    shares = {"class_right": lambda a, b: a.label == b.label, "shape": lambda a, b: a.shape == b.shape,
              "colour": lambda a, b: a.colour == b.colour}
    return {name: Measure(np.array([b is not None and right(a, b) for a, b in zip(told, first)])) for name, right in shares.items()} | {
        "valid": _valid(shown)}


def semantic_map(shown: Shown, held: Held) -> dict:
    """Intersection over union of the map that an image is read as with the map that was told, by classes; 0 is the ground.

    Read by `shapes_oracle.painted`: the class of a region by its reading, its pixels as they are. "mean_iou": the mean over the classes
    present in either, then over images; "mean_iou_things": without the ground; "dataset_iou": intersections and unions summed over all
    images, the mean over classes; "pixels": the share of pixels of the right class.
    """
    told, marks = np.asarray(held.fields["map"]), np.arange(CLASSES + 1)
    found = np.stack([painted(covers, len(image)) for image, covers in zip(shown.images, shown.covers)])
    if found.shape != told.shape:
        raise UserError(f"map: images of {list(found.shape[1:])}, and maps of {list(told.shape[1:])}; expected one size")
    hits = [np.stack([(a == mark).sum((1, 2)) for mark in marks], 1) for a in (told, found)]
    both = np.stack([((told == mark) & (found == mark)).sum((1, 2)) for mark in marks], 1)
    either = hits[0] + hits[1] - both
    iou, present = both / np.maximum(either, 1), either > 0
    things = present[:, 1:].sum(1)
    return {"mean_iou": Measure(iou.sum(1) / present.sum(1)),
            "mean_iou_things": Measure(iou[:, 1:].sum(1) / np.maximum(things, 1), things > 0),
            "dataset_iou": Pooled(both, either), "pixels": Measure((told == found).mean((1, 2)))}


def layout(shown: Shown, held: Held) -> dict:
    """Each told box and the box that is seen in its place (the matching of the largest sum of overlaps, intersection over union).

    "object_right": the share of boxes with an overlap of 0.7 or above and the right class; "box_iou": the mean overlap, 0 where
    nothing is seen; "box_iou_0.7": the share of 0.7 or above; "class_right": the share of boxes met by a thing of the right class;
    "number": the share of images with as many things as boxes.
    """
    rows = []
    for scene, seen in zip(held.scenes, shown.seen):
        found = matched(scene.things, seen, lambda told, thing: overlap(told.box, thing.box))
        pairs = [(overlap(t.box, s.thing.box), s.thing.label == t.label) if s else (0.0, False) for t, s in zip(scene.things, found)]
        ious, right = np.array([p[0] for p in pairs]), np.array([p[1] and p[0] > 0 for p in pairs])
        rows.append([(right & (ious >= IOU)).mean(), ious.mean(), (ious >= IOU).mean(), right.mean()])
    weight = np.array([len(scene.things) for scene in held.scenes])
    names = ("object_right", "box_iou", f"box_iou_{IOU}", "class_right")
    shares = {name: Measure(column, weight) for name, column in zip(names, np.array(rows).T)}
    return shares | {"number": Measure(_number_right(shown, held))}


def super_resolution(shown: Shown, held: Held) -> dict:
    """Against the small image that was told, enlarged by Pillow's bicubic filter, in dB of PSNR, means over images.

    "psnr_gain_db": the samples' less the enlarged image's, each against the true image ("psnr_db", "bicubic_db"); "consistency_db": the
    sample, made small again by the bicubic filter (antialiased), against what was told; of other degradations than that one, the
    truth's own column says what is to be expected. "scene_right": as "all_right" of the text.
    """
    small = np.rint((np.clip(held.fields["low_res"], -1, 1) + 1) * 127.5).astype(np.uint8)
    enlarged = np.stack([resize(image, *held.images.shape[1:3], "bicubic") for image in small])
    again = np.stack([resize(image, *small.shape[1:3], "bicubic") for image in shown.images])
    own, plain = psnr(shown.images, held.images), psnr(enlarged, held.images)
    return {"psnr_gain_db": Measure(own - plain), "psnr_db": Measure(own), "bicubic_db": Measure(plain),
            "consistency_db": Measure(psnr(again, small)), "scene_right": text(shown, held)["all_right"]}


def inpainting(shown: Shown, held: Held) -> dict:
    """What is filled in, against what is seen beside the hole.

    "consistent": of the true things of which a share from 0.2 to 0.8 is seen, the share that some thing of the image continues: of the
    same colour, one of the four shapes (misfit below 0.16), and covering the visible pixels as the true one does, to 0.15 of its visible
    area. Any shape will do that looks so beside the hole. "same_shape": the share continued by a thing of the true shape, for
    comparison. "known_pixels": the share of images whose pixels outside the hole are all the given ones. "valid": as of `unconditional`.
    """
    known = np.asarray(held.fields["mask"]) < 0.5
    exact = (np.where(known[..., None], shown.images, 0) == np.where(known[..., None], held.images, 0)).all((1, 2, 3))
    rows = np.zeros((len(known), 3))
    for i, (scene, seen) in enumerate(zip(held.scenes, shown.seen)):
        covers = [coverage(t.shape, t.x, t.y, t.size, len(known[i])) for t in scene.things]
        cut = [(t, cover) for t, cover in zip(scene.things, covers) if CUT[0] <= (cover * known[i]).sum() / cover.sum() <= CUT[1]]
        going = [[s for s in seen if _continues(s, t, cover, known[i])] for t, cover in cut]
        rows[i] = len(cut), sum(map(bool, going)), sum(any(s.thing.shape == t.shape for s in few) for (t, _), few in zip(cut, going))
    number, most = rows[:, 0], np.maximum(rows[:, 0], 1)
    return {"consistent": Measure(rows[:, 1] / most, number), "same_shape": Measure(rows[:, 2] / most, number),
            "known_pixels": Measure(exact), "valid": _valid(shown)}


def unconditional(shown: Shown, held: Held) -> dict:
    """The shares of images that are scenes of the world.

    "valid": 1 or 2 things, each one of the four shapes (misfit below 0.16) and of a size that the world has, boxes inside the image and
    apart, the ground grey; beside it the share that keeps each of these rules, and "valid_0.25", where misfits need only be below 0.25.
    "one_thing": the share of valid images with one thing (the world: half); "commonest_colour" and "commonest_shape": the largest
    share of one colour (1/6) and one shape (1/4) among all things.
    """
    broken = [faults(image, covers) for image, covers in zip(shown.images, shown.covers)]
    kept = {name: Measure(np.array([name not in one for one in broken])) for name in ("number", "shapes", "sizes", "places", "ground")}
    valid = np.array([not one for one in broken])
    single = np.array([len(covers) == 1 for covers in shown.covers])
    loosely = np.array([not faults(image, covers, LOOSE) for image, covers in zip(shown.images, shown.covers)])
    return {"valid": Measure(valid), f"valid_{LOOSE}": Measure(loosely), **kept, "one_thing": Measure(single & valid, valid),
            "commonest_colour": _commonest(shown, "colour", len(COLOUR_NAMES)), "commonest_shape": _commonest(shown, "shape", len(SHAPES))}


def retrieval(shown: Shown, held: Held) -> dict:
    """The share of an image's things whose class, colour, shape is among those of the neighbours it was told.

    "..._by_chance": the same things against another record's neighbours (those of the record before). Where the neighbours are not known,
    the record itself is taken for the only one. "valid": as of `unconditional`.
    """
    near = held.near or [[scene] for scene in held.scenes]
    sets = [[thing for scene in scenes for thing in scene.things] for scenes in near]
    result: dict = {}
    for name, attribute in (("class", "label"), ("colour", "colour"), ("shape", "shape")):
        for suffix, things in (("_among", sets), ("_by_chance", sets[-1:] + sets[:-1])):
            shares = [np.mean([getattr(s.thing, attribute) in {getattr(t, attribute) for t in some} for s in seen]) if seen else 0.0
                      for seen, some in zip(shown.seen, things)]
            result[name + suffix] = Measure(np.array(shares), np.array([max(len(seen), 1) for seen in shown.seen]))
    return result | {"valid": _valid(shown)}


JUDGES: Mapping[str, Judge] = {"text": text, "class": of_class, "map": semantic_map, "layout": layout, "super_resolution": super_resolution,
                               "inpainting": inpainting, "retrieval": retrieval, "unconditional": unconditional}
OF_FIELD = {"tokens": "text", "label": "class", "map": "map", "boxes_tokens": "layout", "low_res": "super_resolution",
            "mask": "inpainting", "embeddings": "retrieval"}
"""Which judge is for a conditioner that reads a field; `unconditional` for one that reads none."""


def _words_right(told: Thing, found: Thing) -> tuple[bool, ...]:
    """Size word, colour, shape, place."""
    return tuple(a == b for a, b in zip(told.words, found.words))


def _number_right(shown: Shown, held: Held) -> np.ndarray:
    return np.array([len(seen) == len(scene.things) for seen, scene in zip(shown.seen, held.scenes)])


def _valid(shown: Shown) -> Measure:
    return Measure(np.array([not faults(image, covers) for image, covers in zip(shown.images, shown.covers)]))


def _commonest(shown: Shown, attribute: str, kinds: int) -> Measure:
    counts = np.array([np.bincount([getattr(s.thing, attribute) for s in seen], minlength=kinds) for seen in shown.seen])
    most, number = counts[:, counts.sum(0).argmax()], counts.sum(1)
    return Measure(most / np.maximum(number, 1), number)


def _continues(seen: Seen, told: Thing, cover: np.ndarray, known: np.ndarray) -> bool:
    """Whether a thing has the colour of what is visible of another, is a shape, and covers the visible pixels as that one does."""
    thing = seen.thing
    if thing.colour != told.colour or seen.misfit > MISFIT:
        return False
    drawn = coverage(thing.shape, thing.x, thing.y, thing.size, len(known))
    return bool(np.abs(drawn - cover)[known].sum() <= AGREES * cover[known].sum())
