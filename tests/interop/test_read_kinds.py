"""A file of every kind of conditioner, from its names to our trees: small relatives of the published models, of zeros."""

import dataclasses

import numpy as np
import pytest

from ldm_jax import published
from ldm_jax.core.trees import paths
from ldm_jax.interop.conditioner_names import compvis_homes, numbered
from tests.interop.zoo_files import smaller

SMALL = {
    "sd1": smaller("sd1", 32, (1, 2), (1,)),
    "sd1-inpainting": smaller("sd1-inpainting", 32, (1, 2), (1,)),
    "sd2": smaller("sd2", 64, (1, 2), (1,)),
    "sd2-depth": smaller("sd2-depth", 64, (1, 2), (1,)),
    "sd2-x4-upscaler": smaller("sd2-x4-upscaler", 32, (1, 2, 2), (2, 4), text=48, levels=20),
    "sdxl": smaller("sdxl", 64, (1, 2), (2,), depth=(1, 2)),
    "sdxl-refiner": smaller("sdxl-refiner", 64, (1, 2), (2,), depth=2),
    "lsun-churches256": dataclasses.replace(smaller("lsun-churches256", 32, (1, 2), (1,)), scale_factor=0.25),
    "celeba256": smaller("celeba256", 32, (1, 2), (2,)),
    "cin256": smaller("cin256", 32, (1, 2), (1,)),
    "cin256-v2": smaller("cin256-v2", 32, (1, 2), (2,)),
    "text2img256": smaller("text2img256", 32, (1, 2), (2,)),
    "layout2img": smaller("layout2img", 32, (1, 2), (2,), depth=2),
    "semantic256": smaller("semantic256", 32, (1, 2), ()),
    "bsr-sr": smaller("bsr-sr", 32, (1, 2), (2,)),
    "inpainting-big": smaller("inpainting-big", 32, (1, 2), (2,)),
    "rdm-imagenet": smaller("rdm-imagenet", 32, (1, 2), (2,)),
}
QUICK = ("sd2-x4-upscaler", "cin256")


def tensors_of(described) -> dict:
    """name -> zeros of a CompVis file of a description, with what such files hold beside the parameters."""
    first, whole = published.configs_of(described, "raw")
    made = published.architecture(first, whole, published.units_of(described))
    homes = compvis_homes(made.whole.conditioner)
    linear = any(form == "openclip" for _, form in homes)
    options = {"proj": "linear" if linear else "conv", "vector": "text_time" if "model/network/vector_0/kernel" in made.shapes else ""}
    named, begins = numbered(homes)
    begins |= published.PREFIXES
    found = {"betas": np.zeros(1000, np.float32), "scale_factor": np.array(described.scale_factor, np.float32)}
    for place in made.places("compvis", options, named):
        for name, shape in place.shapes(made.shapes[place.ours].shape).items():
            part, _, inner = name.partition("/")
            found[begins[part] + inner] = np.zeros(shape, np.float32)
    return found


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k not in QUICK)) for k in SMALL])
def test_a_file_is_read_whole(kind, tmp_path):
    """Catches a part that is recognised under another prefix or form than it is read by, a table or a mapper without a place, and a
    class table with a row more than the file's."""
    from safetensors.numpy import save_file

    described = SMALL[kind]
    tensors = tensors_of(described)
    save_file(tensors, tmp_path / "x.safetensors")
    opened = published.open_published(tmp_path / "x.safetensors", kind if kind in ("sd2", "cin256", "cin256-v2") else "")
    found = opened.description
    assert (found.sections["network"], found.sections["conditioner"]) == (described.sections["network"], described.sections["conditioner"])
    assert (found.first_stage, found.classes) == (described.first_stage, described.classes)
    trees, manifest = published.as_bundle(opened)
    read = sum(int(np.prod(leaf.shape)) for _, leaf in paths({name: trees[name] for name in ("model", "first_stage")}))
    assert read == sum(array.size for name, array in tensors.items() if name not in ("betas", "scale_factor"))
    assert manifest.first_stage.latent_units["std"][0] == pytest.approx(1 / described.scale_factor)
