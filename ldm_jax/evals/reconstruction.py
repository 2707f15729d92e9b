"""Stage 1 over a whole split: how near the reconstruction is, and what the code costs."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.evals.image_metrics import PSNR_CAP, l1, psnr, ssim
from ldm_jax.ops.images import to_uint8

Reconstruct = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, Mapping[str, np.ndarray]]]


def reconstruction(reconstruct: Reconstruct, batches: Iterable[Mapping[str, np.ndarray]], *,
                   dimensions: int = 0, codes: int = 0) -> dict:
    """Measures an autoencoder on every record of a split, once.

    Args:
      reconstruct: a batch -> (images [B, H, W, C] in [-1, 1], not clamped; per-example arrays). Of the arrays, "kl" [B]
        (nats, summed over the latent) and "indices" [B, h, w] (int codes) are read where they stand, any other of shape
        [B] is averaged under its own name, and the rest (None, latents) is passed over.
      batches: dicts with "image" [B, H, W, C] in [-1, 1] and, where a batch is padded, "weight" [B], 1 or 0.
      dimensions: elements of one latent (h w c), for the KL of one dimension.
      codes: size of the codebook, for its use.

    Returns:
      A JSON-able dict. "psnr_db" and "psnr_db_sd" (per image on uint8, then mean and standard deviation over images;
      identical images count as 100 dB and are counted), "ssim" (on uint8), "l1" (units of [-1, 1], not rounded);
      "kl_nats", "kl_nats_per_dimension"; "codebook_use" (codes seen in the split, as a share of all),
      "codebook_perplexity" (exp of the entropy of the split's code counts); "images".

    Raises:
      UserError: no images; codes outside the codebook.
      NumbersWentBad: an image that is not finite.
    """
    rows: dict[str, list[np.ndarray]] = {}
    counts = np.zeros(codes, np.int64)
    for batch in batches:
        clean = np.asarray(batch["image"])
        kept = np.asarray(batch.get("weight", np.ones(len(clean)))) > 0
        images, aux = reconstruct(batch)
        found = _measure(np.asarray(images)[kept], clean[kept])
        for name, value in aux.items():
            if name == "indices" and value is not None:
                counts += _count(np.asarray(value)[kept], codes)
            elif np.ndim(value) == 1:
                found[name] = np.asarray(value, np.float64)[kept]
        for name, value in found.items():
            rows.setdefault(name, []).append(value)
    if not rows or not sum(map(len, rows["l1"])):
        raise UserError("reconstruction: the split has no images")
    return _summary({name: np.concatenate(parts) for name, parts in rows.items()}, counts, dimensions)


def _measure(images: np.ndarray, clean: np.ndarray) -> dict[str, np.ndarray]:
    seen, reference = to_uint8(images), to_uint8(clean)
    return {"psnr_db": psnr(seen, reference), "ssim": ssim(seen, reference), "l1": l1(images, clean)}


def _count(indices: np.ndarray, codes: int) -> np.ndarray:
    if codes < 1:
        raise UserError("reconstruction: code indices came without the size of the codebook (codes=...)")
    if indices.size and (indices.min() < 0 or indices.max() >= codes):
        raise UserError(f"reconstruction: code {indices.min()}..{indices.max()} outside a codebook of {codes}")
    return np.bincount(indices.reshape(-1), minlength=codes)


def _summary(rows: dict[str, np.ndarray], counts: np.ndarray, dimensions: int) -> dict:
    result = {"psnr_db": float(rows["psnr_db"].mean()), "psnr_db_sd": float(rows["psnr_db"].std()),
              "ssim": float(rows["ssim"].mean()), "l1": float(rows["l1"].mean()),
              "identical_images": int((rows["psnr_db"] >= PSNR_CAP).sum())}
    if "kl" in rows:
        result["kl_nats"] = float(rows["kl"].mean())
        if dimensions:
            result["kl_nats_per_dimension"] = result["kl_nats"] / dimensions
    if counts.sum():
        share = counts[counts > 0] / counts.sum()
        result["codebook_codes"] = int(len(counts))
        result["codebook_use"] = float(np.mean(counts > 0))
        result["codebook_perplexity"] = float(np.exp(-np.sum(share * np.log(share))))
    told = {"psnr_db", "ssim", "l1", "kl"}
    result |= {name: float(value.mean()) for name, value in rows.items() if name not in told}
    return result | {"images": int(len(rows["l1"]))}
