"""Bad maps, boxes, masks and small pictures, to models that read them: exit status 2, one clear line, nothing written."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.untrained import save_untrained

PARTS = (dict(name="semantic_map", classes=25, halvings=0, channels=2, drop=0.0), dict(name="low_resolution"), dict(name="inpainting"),
         dict(name="bert_text", reads="boxes_tokens", width=8, layers=1, heads=1, vocabulary=100, length=8, bos=-1, eos=-1, logits=False))
FIELDS = dict(map=dict(name="segmentation"), boxes_tokens=dict(name="boxes"), low_res=dict(name="bsr_light"), mask=dict(name="mixed_mask"))
LEVELS = (dict(width=8, blocks=1, attention="transformer", heads=1, depth=1, down="none"),)


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_ldm_config):
    """A run that is told everything that can be drawn, and files that are right."""
    folder = tmp_path_factory.mktemp("drawn")
    config = make_ldm_config("pixels", **{"conditioner": {"name": "several", "parts": PARTS}, "network.levels": LEVELS})
    config["data"] |= {"source": {"name": "shapes", "resolution": 16, "records": 64, "world": 0}, "resolution": 16, "fields": FIELDS}
    config["sampling"]["guidance"] = 1.0
    save_untrained(config, folder / "run")
    files = {"map": np.zeros((16, 16)), "small": np.zeros((16, 16, 3)), "picture": np.zeros((16, 16, 3)), "large": np.zeros((32, 32, 3)),
             "mask": np.eye(16) * 255, "unknown": np.full((16, 16), 31), "tiny": np.zeros((4, 4)), "soft": np.full((16, 16), 99)}
    for name, pixels in files.items():
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
    for name, box in {"boxes": [0, 0, 0.5, 1], "outside": [0, 0, 20, 16], "flat": [0.5, 0, 0.5, 1]}.items():
        (folder / f"{name}.json").write_text(json.dumps({"boxes": [box], "labels": [3]}))
    return folder


BAD = {
    "map with unknown classes": ({"map": "unknown.png"}, ["map 0: class 31 in 256 of 256 pixels: expected 0 to 24"]),
    "map of another size": ({"map": "tiny.png"}, ["tiny.png: it is 4x4; this model makes images of 16x16"]),
    "box outside": ({"boxes": "outside.json"}, ["boxes[0][0]=(0.0, 0.0, 20.0, 16.0): it is outside of the image"]),
    "box without area": ({"boxes": "flat.json"}, ["boxes[0][0]=(0.5, 0.0, 0.5, 1.0): it has no area"]),
    "mask of another size": ({"mask": "tiny.png"}, ["--mask=", "tiny.png: it is 4x4; this model makes images of 16x16"]),
    "mask that is soft": ({"mask": "soft.png"}, ["--mask=", "256 of 256 pixels (1 of all) are grey; expected black"]),
    "small picture of another size": ({"low_res": "large.png"}, ["large.png: it is 32x32; this model makes images of 16x16 from 16x16"]),
    "no map": ({"map": None}, ["map: this model must be told it", "--map to sample.py"]),
    "no small picture": ({"low_res": None}, ["low_res: this model must be told it", "--low_res to sample.py"]),
    "no mask": ({"mask": None}, ["--init_image: give --strength too", "or a --mask"]),
}
RIGHT = {"map": "map.png", "low_res": "small.png", "init_image": "picture.png", "mask": "mask.png", "boxes": "boxes.json"}


@pytest.mark.slow  # what is said of each file is also tests/test_layouts.py's; this run takes as long to make as all of that
@pytest.mark.parametrize("what", BAD)
def test_what_is_drawn_wrongly_is_refused(what, command, run, tmp_path):
    """Catches a traceback, and pictures that were made all the same of something else than was meant."""
    changes, words = BAD[what]
    flags = [f"--{name}={run / file}" for name, file in (RIGHT | changes).items() if file]
    command("sample.py", f"--model={run / 'run'}", f"--out={tmp_path / 'out'}", *flags).refused(*words)
    assert not (tmp_path / "out").exists()
