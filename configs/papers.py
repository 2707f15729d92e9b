"""Untried: the papers' tasks at paper size on their data sets, each a kind of configs/published.py with data, transforms and fields.

A first stage, and a diffusion model on it (a run of openimages-vq-f4, or that published first stage, converted):
  python train.py --config=configs/papers.py:openimages-vq-f4 --workdir=runs/vq-f4
  python train.py --config=configs/papers.py:imagenet --workdir=runs/imagenet --config.first_stage=runs/vq-f4

Rows of a data set of TensorFlow Datasets read what `tfds build NAME --file_format=array_record` prepared; the others want a folder
(--config.data.source.folder), and those that read text by a published vocabulary want that, too, as a folder of transformers'
bert-base-uncased (--config.data.fields.tokens.tokenizer.folder). FIRST_STAGES says which first stage a row's network is made for.

Numbers: arXiv 2112.10752, tables 12 to 15, where they differ from the published models'; everything else is as in configs/published.py,
and so is its list of what is not as published. Not as in the papers besides:
- Images are resized with antialiasing. Splits are those that the data sets have, or a hash's (folders); the authors' lists were their own.
- CelebA-HQ, FFHQ: which 5,000 and 10,000 images are held out. LSUN: its own validation images, 300 of a category.
- coco-layout: the width, the places of attention, the loss and the schedule are ours: 371 M parameters with the encoder of boxes, where the
  table says 345. openimages-layout: classes are the data set's, without group, occlusion and the like; the published model had a choice
  of them with these. No image is left out for its boxes, and both mirror images, which is ours.
- coco-captions: the paper trained on LAION alone; this is text2img256's network on captions that can be had. Of an image's five, training
  takes one at random. Words are learned from the captions, so that nothing else is needed.
- landscapes: the first stage is the published model's f4, where table 15 names f8. Maps of 182 classes must lie beside the images.
- places-inpainting: masks are ours by LaMa's sizes (data/masks.py), with borders and whole images among them; 256 x 256 is the data set's.
"""

from configs import published
from ldm_jax.core.errors import UserError
from ldm_jax.interop.families import Heads, Net
from ldm_jax.interop.zoo import FIRST_STAGES as STAGES
from ldm_jax.interop.zoo import STAGES as STAGE_OF

CENTRE, RANDOM = (dict(name="crop_resize", crop=crop, enlarge=True) for crop in ("centre", "random"))
FROM_384 = dict(name="square_crop", smallest=2 / 3, largest=2 / 3, filter="bicubic", enlarge=True)  # 256 of a shorter side of 384
HALF_TO_WHOLE = dict(name="square_crop", smallest=0.5, largest=1.0, filter="box", enlarge=True)
FLIP = dict(name="flip")
BOXES = dict(boxes_tokens=dict(name="boxes"))
BERT_WORDS = dict(name="captions", tokenizer=dict(name="folder", folder=""))
OWN_WORDS = dict(name="captions", tokenizer=dict(name="trained", vocabulary=16_384, records=100_000))
OWN_MARKS = dict(vocabulary=16_384, bos=2, eos=3, pad=0)


def prepared(dataset: str, test: str, train: str = "train", **more) -> dict:
    """config.data.source of a data set of TensorFlow Datasets."""
    return dict(name="tfds", dataset=dataset, data_dir="", train=train, test=test, image="image", label="", caption="", channels=3,
                boxes="", segmentation="") | more


def folder(held_out: float = 0.05, **more) -> dict:
    """config.data.source of a folder of images."""
    return dict(name="images", folder="", channels=3, labels="none", captions="", held_out=held_out, links="inside", maps="", boxes="",
                depths="") | more


IMAGENET = prepared("imagenet2012", "validation")
OPEN_IMAGES = prepared("open_images_v4/original", "validation")
ROWS = {  # name: (kind of configs/published.py, source, transforms, fields)
    "imagenet": ("cin256-v2", IMAGENET | dict(label="label"), (RANDOM,), {}),
    "imagenet-ldm8": ("cin256", IMAGENET | dict(label="label"), (RANDOM,), {}),
    "lsun-bedrooms": ("lsun-beds256", prepared("lsun/bedroom", "validation"), (CENTRE, FLIP), {}),
    "lsun-churches": ("lsun-churches256", prepared("lsun/church_outdoor", "validation"), (CENTRE, FLIP), {}),
    "celeba-hq": ("celeba256", prepared("celeb_a_hq/256", "train[25000:]", "train[:25000]"), (CENTRE,), {}),
    "ffhq": ("ffhq256", folder(held_out=1 / 7), (CENTRE,), {}),
    "coco-layout": ("layout2img", prepared("coco/2017", "validation", boxes="objects"), (RANDOM, FLIP), BOXES),
    "openimages-layout": ("layout2img", OPEN_IMAGES | dict(boxes="bobjects"), (RANDOM, FLIP), BOXES),
    "text-to-image": ("text2img-large", folder(captions="captions.txt"), (CENTRE,), dict(tokens=BERT_WORDS)),
    "coco-captions": ("text2img256", prepared("coco_captions/2014", "val", "train+restval", caption="captions/text"), (CENTRE,),
                      dict(tokens=OWN_WORDS)),
    "landscapes": ("semantic256", folder(maps="maps"), (FROM_384,), dict(map=dict(name="segmentation", other=-1))),
    "imagenet-sr": ("bsr-sr", IMAGENET, (HALF_TO_WHOLE,), dict(low_res=dict(name="bsr_light"))),
    "places-inpainting": ("inpainting-big", prepared("places365_small", "validation"), (CENTRE,), dict(mask=dict(name="mixed_mask"))),
} | {f"openimages-{kind}": (kind, OPEN_IMAGES, (FROM_384,), {}) for kind in STAGES if not kind.startswith("sd")}
NETS = {  # of the papers, where the published model has another, or there is none
    "coco-layout": Net(192, (1, 2, 4), (1, 2, 4), "transformer", Heads("width", 32), depth=2),
    "places-inpainting": Net(128, (1, 4, 8), (), "plain", Heads("count", 8)),
}
RATES = {  # name: (learning rate, images a step, steps)
    "coco-layout": (4.8e-5, 48, 170_000),
    "landscapes": (4.8e-5, 48, 360_000),
    "places-inpainting": (1e-6, 128, 360_000),
}
ARGUMENTS = tuple(ROWS)
FIRST_STAGES = {name: STAGE_OF.get(kind, "vq-f4") for name, (kind, *_) in ROWS.items() if kind not in STAGES} | {"coco-layout": "vq-f8"}


def get_config(row: str = ""):
    if row not in ROWS:
        raise UserError(f"--config=configs/papers.py:{row}: expected a row after the colon, one of {', '.join(ROWS)}")
    kind, source, transforms, fields = ROWS[row]
    config = published.get_config(kind)
    config.data.source = source
    config.data.transforms = transforms
    config.data.fields = fields
    if row in NETS:
        config.network = NETS[row].section()
    if row in RATES:
        peak, config.data.batch, config.run.steps = RATES[row]
        config.learning_rate = dict(name="constant", peak=peak, warmup=0)
    if row == "coco-layout":
        config.network.dropout = 0.1
    if row == "coco-captions":
        config.conditioner.update(OWN_MARKS)
    return config
