"""Small relatives of the published single files, with all that such files hold beside their parameters, opened as models of ours."""

import dataclasses

import numpy as np
import pytest

from ldm_jax import published
from ldm_jax.checkpoint.tensors_writer import Weights
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.interop.conditioner_names import compvis_homes, numbered
from ldm_jax.interop.folder_writer import write_file
from ldm_jax.interop.single_file import SCHEDULE, ema_name
from tests.interop.zoo_files import smaller

UPSCALER = smaller("sd2-x4-upscaler", 32, (1, 2, 2), (2, 4), text=48)
UPSCALER = dataclasses.replace(UPSCALER, sections=UPSCALER.sections | {"conditioner": UPSCALER.sections["conditioner"] | {
    "parts": (UPSCALER.sections["conditioner"]["parts"][0], dict(name="low_resolution", levels=20, width=128))}})
SMALL = {  # kind -> its relative, whether its transformers' ends are linear
    "sd2-x4-upscaler": (UPSCALER, "linear"), "inpainting-big": (smaller("inpainting-big", 32, (1, 2), ()), "conv"),
    "lsun-churches256": (smaller("lsun-churches256", 32, (1, 2), (1,), blocks=2), "conv"),
    "cin256": (smaller("cin256", 32, (1, 2), (2,)), "conv"), "text2img256": (smaller("text2img256", 32, (1, 2), (2,), blocks=2), "conv"),
    "sd1": (smaller("sd1", 32, (1, 2), (1,)), "conv"), "sdxl": (smaller("sdxl", 64, (1, 2), (2,), depth=(1, 2)), "linear"),
}
QUICK = ("sd2-x4-upscaler", "inpainting-big")


def content(kind):
    """(our arrays by path, the file's tensors): parameters by our tables, and what files hold besides by their grammar."""
    row, proj = SMALL[kind]
    described = dataclasses.replace(row, scale_factor=row.scale_factor or 0.5)
    first, whole = published.configs_of(described, "raw")
    made = published.architecture(first, whole, published.units_of(described))
    homes, prefixes = numbered(compvis_homes(made.whole.conditioner))
    prefixes |= published.PREFIXES
    rng, ours, file = np.random.default_rng(0), {}, {}
    for place in made.places("compvis", {"proj": proj, "vector": "text_time" if kind == "sdxl" else ""}, homes):
        ours[place.ours] = rng.normal(size=made.shapes[place.ours].shape).astype(np.float32)
        file |= {prefixes[part] + inner: array for (part, _, inner), array in
                 ((name.partition("/"), array) for name, array in place.write(ours[place.ours]).items())}
    network = [name for name in file if name.startswith("model.")]
    file |= {ema_name(name): file[name] for name in network} | {name: file[name] - 1 for name in network}
    file |= {name: np.ones(20, np.float32) for name in SCHEDULE} | {"model_ema.decay": np.array(0.9999, np.float32)}
    file |= {"scale_factor": np.array(0.5, np.float32)} if row.scale_factor == 0 else {}
    if kind == "inpainting-big":
        file |= {name.replace("first_stage_model", "cond_stage_model"): file[name] for name in file if name.startswith("first_stage")}
    if kind == "sd2-x4-upscaler":
        file |= {f"low_scale_model.{name}": np.ones(20, np.float32) for name in SCHEDULE}
    if kind.startswith("sd"):
        file["cond_stage_model.model.logit_scale" if kind != "sd1" else "cond_stage_model.transformer.text_model.embeddings.position_ids"
             ] = np.ones(())
    return ours, file


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK)) for kind in SMALL])
def test_a_file_with_all_that_such_files_hold(tmp_path, kind):
    """Catches a buffer, a second first stage, a table inside the network or an average that keeps a published file from opening, raw
    weights where the average was asked for, and an array in another's place."""
    ours, file = content(kind)
    write_file(tmp_path / "x.safetensors", Weights.of(file))
    opened = published.open_published(tmp_path / "x.safetensors")
    assert opened.weights == "ema" and opened.description.scale_factor == (SMALL[kind][0].scale_factor or 0.5)
    found = {f"{part}/{path}": leaf for part, tree in published.as_bundle(opened)[0].items() for path, leaf in paths(tree)}
    assert found.keys() == ours.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(np.asarray(found[path]), array, err_msg=path)
    if kind == "inpainting-big":
        raw = published.open_published(tmp_path / "x.safetensors", weights="raw")
        name = "out.2.bias"
        np.testing.assert_array_equal(raw.parts["network"][name], opened.parts["network"][name] - 1)
        file["control_model.zero_convs.0.0.weight"] = np.ones(2)
        write_file(tmp_path / "y.safetensors", Weights.of(file))
        with pytest.raises(UserError, match="y.safetensors: 1 tensors are of no part of the model: control_model"):
            published.open_published(tmp_path / "y.safetensors")
