"""The published LPIPS weights as the file that `models/perceptual.py` loads.

They come in two files: the trunk, torchvision's VGG16 (`vgg16-397923af.pth`), and the linear heads, `vgg.pth` of the LPIPS
package v0.1 or of taming-transformers. A training checkpoint of a CompVis autoencoder has both under `loss.perceptual_loss.`.
Nothing is downloaded.
"""

import os
import pathlib
import re
import tempfile

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.interop.checks import check_finite, check_sha256, sha256_of
from ldm_jax.interop.tensors import read_tensors
from ldm_jax.models.perceptual import STAGES, lpips_shapes

PREFIX = "loss.perceptual_loss."
PUBLISHED = {"trunk": "397923af", "heads": "a78928a0"}  # how the sha256 of the published files begin
IGNORED = (r"classifier\..*", r"scaling_layer\.(shift|scale)")  # VGG16's classifier; constants of our module
NAME_WITH_DIGEST = re.compile(r"-([0-9a-f]{8})\.pth$")  # torch.hub's promise: the digits are the sha256's first


def trunk_names() -> dict[str, str]:
    """The number of a layer in torchvision's VGG16 `features` -> our path: a ReLU follows each convolution, a pool each stage."""
    names, number = {}, 0
    for stage, (_, convolutions) in enumerate(STAGES, start=1):
        for i in range(1, convolutions + 1):
            names[str(number)] = f"vgg/conv{stage}_{i}"
            number += 2
        number += 1
    return names


def convert_lpips(trunk, heads, out, *, trunk_sha256: str = "", heads_sha256: str = "") -> dict:
    """Reads VGG16 and the LPIPS heads and writes our safetensors file, whole or not at all.

    Args:
      trunk: `.pth`, `.ckpt` or `.safetensors` with `features.N.weight` or `net.sliceK.N.weight`.
      heads: the same with `linK.model.1.weight`; "" if the trunk's file holds them.
      out: the file to write; must not exist.
      trunk_sha256, heads_sha256: the digests the files must have, or their first 8 or more digits.

    Returns:
      {"out", "parameters", "trunk_sha256", "heads_sha256", "published": whether both are the published files, "ignored"}.

    Raises:
      UserError: unreadable files, a tensor that is missing, unknown, of another shape, not finite, or in both files with
        different values; a negative head (a distance would be negative); a file name that promises another digest.
    """
    from safetensors.numpy import save_file

    out = pathlib.Path(out)
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or give another name")
    tensors, digests, ignored = {}, {}, []
    for role, path, sha256 in (("trunk", trunk, trunk_sha256), ("heads", heads or trunk, heads_sha256)):
        promised = NAME_WITH_DIGEST.search(str(path))
        if promised:
            check_sha256(path, promised.group(1))
        file = read_tensors(path, sha256=sha256)
        ignored += [] if role == "heads" and not heads else file.ignored
        for name, array in from_published(file.tensors, path).items():
            if name in tensors and not np.array_equal(tensors[name], array):
                raise UserError(f"{path}: {name} differs from the one in {trunk}")
            tensors[name] = array
        digests[role] = sha256_of(path)
    _check_whole(tensors, f"{trunk}" + (f" and {heads}" if heads else ""))
    published = all(digests[role].startswith(start) for role, start in PUBLISHED.items())
    facts = {"trunk_sha256": digests["trunk"], "heads_sha256": digests["heads"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"kind": "ldm_jax lpips", **facts})
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise
    return {"out": str(out), "parameters": sum(x.size for x in tensors.values()), "published": published,
            "ignored": tuple(ignored), **facts}


def from_published(found: dict[str, np.ndarray], path) -> dict[str, np.ndarray]:
    """Published names and layouts -> ours, float32: convolutions OIHW -> HWIO, heads [1, C, 1, 1] -> [C, 1].

    Raises:
      UserError: a name that is neither known nor in the list of those to ignore. Under a `loss.perceptual_loss.` prefix
        that holds for the names with the prefix; the rest of such a checkpoint is another model's.
    """
    if any(name.startswith(PREFIX) for name in found):
        found = {name.removeprefix(PREFIX): array for name, array in found.items() if name.startswith(PREFIX)}
    trunk, ours, unknown = trunk_names(), {}, []
    for name, array in found.items():
        layer = re.fullmatch(r"(?:features|net\.slice[1-5])\.(\d+)\.(weight|bias)", name)
        head = re.fullmatch(r"lin([0-4])\.model\.1\.weight|lins\.([0-4])\.model\.1\.weight", name)
        if layer and layer[1] in trunk:
            kernel = layer[2] == "weight"
            array = array.transpose(2, 3, 1, 0) if kernel and array.ndim == 4 else array
            ours[f"{trunk[layer[1]]}/{'kernel' if kernel else 'bias'}"] = _plain(array)
        elif head:
            array = array.reshape(-1, 1) if array.shape[:1] == (1,) else array
            ours[f"lin{int(head[1] or head[2]) + 1}/kernel"] = _plain(array)
        elif not any(re.fullmatch(pattern, name) for pattern in IGNORED):
            unknown.append(name)
    if unknown:
        raise UserError(f"{path}: {len(unknown)} tensors are not of VGG16 or LPIPS: {', '.join(unknown[:5])}")
    check_finite(ours, path)
    return ours


def _plain(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _check_whole(tensors: dict[str, np.ndarray], where: str) -> None:
    shapes = {name: tuple(leaf.shape) for name, leaf in paths(lpips_shapes())}
    missing = sorted(set(shapes) - set(tensors))
    if missing:
        heads = all(name.startswith("lin") for name in missing)
        raise UserError(f"{where}: {len(missing)} tensors are missing: {', '.join(missing[:5])}"
                        + ("; the linear heads are in a file of their own (vgg.pth of LPIPS v0.1)" if heads else ""))
    for name, array in tensors.items():
        if array.shape != shapes[name]:
            raise UserError(f"{where}: {name} is {list(array.shape)}, expected {list(shapes[name])}: another network than VGG16")
        if name.startswith("lin") and array.min() < 0:
            raise UserError(f"{where}: {name} has negative weights; the heads of LPIPS v0.1 have none")
