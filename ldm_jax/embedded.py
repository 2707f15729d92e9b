"""A database of embeddings made of a config's data: every record of both splits embedded, and its nearest training records found."""

import contextlib
import json
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from ldm_jax import data_choices
from ldm_jax.checkpoint.digests import hash_file, whole_folder
from ldm_jax.clip import Clip
from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import in_order
from ldm_jax.data.neighbours import CAPTIONS, FORMAT, PAGE, SPLITS, page_digest, search
from ldm_jax.data.transforms import describe
from ldm_jax.experiment import check_keys
from ldm_jax.workdir import refuse_remote

NEAR = 20  # kept of each record, as RDM does
BATCH = 64


def write_database(clip: Clip, config: Mapping, out, k: int = NEAR, progress=None) -> str:
    """Writes the database of a config's data, whole or not at all (see data/neighbours.py), and says what was written.

    Args:
      clip: of images; its digest is kept.
      config: its data is read: source, transforms (in their deterministic form) and resolution.
      out: a new folder.
      k: how many nearest records are kept of each.
      progress: as `cli.entry.progress`: (total, unit) -> a context whose value is called with the number done.

    Raises:
      UserError: a config with unknown keys, a CLIP of texts only, fewer records than k, a folder that is there, images that are not colour.
    """
    check_keys(config)
    refuse_remote(out, "--out")
    sources = {split: data_choices.open_source(config, split) for split in SPLITS}
    number = len(sources["train"])
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < number:
        raise UserError(f"k={k}: the data has {number} records to train on, itself left out {number - 1} to find: expected 1 to "
                        f"{number - 1}")
    if sources["train"].channels != 3:
        raise UserError(f"config.data: images have {sources['train'].channels} channel, and an embedder reads 3")
    if jax.process_count() > 1:
        raise UserError("a database is made by one process; start it alone")
    with whole_folder(pathlib.Path(out)) as folder:
        arrays, captions = _embedded(clip, config, sources, progress)
        arrays |= _searched(arrays, k, progress)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        if any(captions):
            (folder / CAPTIONS).write_text(json.dumps(captions), "utf-8")
        page = {"format": FORMAT, "embedder": {"digest": clip.digest, "width": clip.width}, "k": k,
                "sources": {split: source.fingerprint() for split, source in sources.items()},
                "transforms": [describe(t) for t in data_choices.transforms(config)], "resolution": config["data"]["resolution"],
                "files": {file.name: hash_file(file) for file in sorted(folder.iterdir())}}
        page = json.loads(json.dumps(page))
        (folder / PAGE).write_text(json.dumps(page | {"sha256": page_digest(page)}, indent=1) + "\n", "utf-8")
    return (f"{out}: {number:,} records of {clip.width} numbers and {len(sources['test']):,} held out, the {k} nearest of each; embedder "
            f"{clip.digest[:12]}")


class _Caption:
    """The field maker of what a picture is called."""

    gives = ("caption",)

    def __call__(self, record: Mapping, rng) -> dict[str, np.ndarray]:
        return {"caption": np.asarray(record.get("caption", ""))}


def _embedded(clip: Clip, config: Mapping, sources: Mapping, progress) -> tuple[dict, list[str]]:
    """({split: embeddings float32 [N, D]}, the captions of the training records)."""
    found, captions = {split: [] for split in sources}, []
    read = {"batch": BATCH, "resolution": config["data"]["resolution"], "fields": {"caption": _Caption()}}
    before = 0
    with _watched(progress, sum(map(len, sources.values())), "images") as done:
        for split, source in sources.items():
            for batch in in_order(source, data_choices.transforms(config), **read):
                there = batch["weight"] > 0
                found[split].append(clip.images(batch["image"])[there])
                captions += [str(text) for text in batch["caption"][there]] if split == "train" else []
                before += int(there.sum())
                done(before)
    return {split: np.concatenate(parts) for split, parts in found.items()}, captions


def _searched(arrays: Mapping, k: int, progress) -> dict[str, np.ndarray]:
    """{split_near: records int32 [N, k]} for both splits."""
    found, before = {}, 0
    with _watched(progress, sum(map(len, arrays.values())), "searches") as done:
        for split, queries in arrays.items():
            without = np.arange(len(queries)) if split == "train" else None
            found[f"{split}_near"], _ = search(arrays["train"], queries, k, without, lambda n, before=before: done(before + n))
            before += len(queries)
    return found


def _watched(progress, total: int, unit: str):
    return contextlib.nullcontext(lambda number: None) if progress is None else progress(total, unit)
