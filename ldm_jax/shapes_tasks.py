"""A diffusion model of the shapes world against held-out records of it: told what they say, does it draw what they show?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from ldm_jax import data_choices
from ldm_jax.asked import prepare, told_to_guide
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.data.batches import in_order
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.evals.shapes_judges import OF_FIELD
from ldm_jax.evals.shapes_picture import picture
from ldm_jax.evals.shapes_reading import Held
from ldm_jax.evals.tables import EVALS
from ldm_jax.ops.images import to_uint8, write_png
from ldm_jax.output import Request
from ldm_jax.pipeline import Model
from ldm_jax.tokenized import by_field
from ldm_jax.told import told_fields

NUMBER = 256  # of samples, where nobody says how many
READ = 64  # records at a time
READ_BACK = ("text/all_right", "map/mean_iou", "layout/box_iou", "unconditional/valid", "unconditional/valid_0.25")  # of reconstructions
ROWS, SAMPLES = 6, 4  # of a picture


def evaluate(model: Model, request: Request, progress=None) -> dict:
    """`evaluate_shapes` of samples, image i of what held-out record i says, with seed i of the request."""
    trial = prepared(model, request.number)
    images = trial.sample(request, request.sampling, progress)
    return EVALS["shapes"](images, trial.held, trial.tasks, trial.reconstructed, settings=trial.settings)


def sweep(model: Model, request: Request, scales: Sequence[float], guide: Model | None = None, progress=None) -> dict:
    """`sweep_shapes` over weights of guidance, of the model's own condition or by a guide.

    Raises:
      UserError: before anything is made, a model that is told nothing and has no guide, or as `Model.sample`.
    """
    if guide is None and not model.experiment.conditioner.fields:
        raise UserError("--scales: this model is told nothing that could be weighed; name a classifier of its latents by --guide")
    trial = prepared(model, request.number, guide)
    ways = [request.sampling | trial.guided(request, scale, guide) for scale in scales]
    for way in ways:
        prepare(model, trial.condition, request.number, way)
    done = iter(range(len(scales)))

    def sample(scale):
        i = next(done)
        return trial.sample(request, ways[i], progress and (lambda number: progress(i * request.number + number)))

    settings = trial.settings | ({} if guide is None else {"guide": f"{guide.experiment.task} {guide.digest[:12]}"})
    return EVALS["shapes_sweep"](sample, scales, trial.held, trial.tasks, trial.reconstructed, settings=settings)


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A model made ready to be tried on `held`: what it is told of it, and by which judges it is measured."""

    model: Model
    held: Held
    condition: object
    tasks: tuple[str, ...]
    reconstructed: np.ndarray
    settings: Mapping

    def sample(self, request: Request, way: Mapping, progress: Callable | None = None) -> np.ndarray:
        """Images uint8 [N, H, W, C]; of an inpainting model, the known pixels pasted back, as its published script does."""
        images = self.model.sample(self.condition, seeds=request.seeds, batch_size=request.batch_size, progress=progress, **way)
        return self.held.pasted(images)

    def guided(self, request: Request, scale: float, guide: Model | None) -> dict:
        """How samples are guided at a scale, the weight of a section or alone."""
        given = request.sampling.get("guidance")
        told = {"guidance": dict(given) | {"weight": scale} if isinstance(given, Mapping) else scale}
        labels = [scene.things[0].label for scene in self.held.scenes]
        return told | ({} if guide is None else {"guide": guide, "guide_condition": told_to_guide(guide, labels)})



def of_first_stage(model: Model) -> dict:
    """What the oracle reads in a first stage's reconstructions of test records.

    The share that has every thing right, that of scenes of the world, the overlap of maps and boxes (see shapes_judges.py). A model of
    its latents is not expected to do better.
    """
    source = data_choices.open_source(from_json(model.manifest.config), "test")
    records = [source[i] for i in range(min(NUMBER, len(source)))]
    images = np.stack([record["image"] for record in records])
    held = Held([source.scene(i) for i in range(len(records))], images, {"map": np.stack([record["segmentation"] for record in records])})
    found = EVALS["shapes"](_through(model, images), held, ("text", "map", "layout", "unconditional"))
    return {f"oracle/{name}": found[name]["samples"] for name in READ_BACK}


def _through(model: Model, images: np.ndarray) -> np.ndarray:
    """The images encoded and decoded."""
    return np.concatenate([model.decode(model.encode(images[low:low + READ])) for low in range(0, len(images), READ)])


def prepared(model: Model, number: int, guide: Model | None = None) -> Trial:
    """Reads the records, makes the condition and the reconstructions.

    Raises:
      UserError: pictures that are not as the world draws them, or a conditioner that reads what cannot be judged.
    """
    held, told = held_out(model, number)
    conditioner = model.experiment.conditioner
    tasks = tuple(dict.fromkeys(OF_FIELD[name] for name in conditioner.fields if name in OF_FIELD))
    if guide is not None:
        tasks = tuple(dict.fromkeys((*tasks, "class")))
    if conditioner.fields and not tasks:
        raise UserError(f"this model is told {', '.join(conditioner.fields)}, and the shapes have a measure of {', '.join(OF_FIELD)} only")
    condition = told_fields(model, held.fields, number) if conditioner.fields else None
    return Trial(model, held, condition, tasks or ("unconditional",), held.pasted(_through(model, held.images)), told)


def default_number(model: Model) -> int:
    """How many records are measured where nobody says it: NUMBER, or as many as the test split has."""
    return min(NUMBER, len(data_choices.open_source(from_json(model.manifest.config), "test")))


def held_out(model: Model, number: int) -> tuple[Held, dict]:
    """The first records of the test split with the fields that the model's own makers give, and what to say of them.

    Of a model that is told how much its small image is noised, the level is 0 here: no more than it was told.

    Raises:
      UserError: more than there are; transforms that change the test pictures: the oracle knows the world's own.
    """
    config, experiment = from_json(model.manifest.config), model.experiment
    source = data_choices.open_source(config, "test")
    if number > len(source):
        raise UserError(f"--num_samples={number}: a sample is made of each record, and the test split has {len(source)}; expected 1 to "
                        f"{len(source)}")
    makers = data_choices.fields_of(config, experiment.conditioner, experiment.autoencoder.factor, by_field(model))
    batches = in_order(source, data_choices.transforms(config), batch=min(READ, number), count=number, fields=makers,
                       resolution=config["data"]["resolution"])
    rows = list(batches)
    fields = {name: np.concatenate([row[name] for row in rows])[:number] for name in rows[0]}
    images = to_uint8(fields["image"])
    if any(not np.array_equal(images[i], source[i]["image"]) for i in range(number)):
        raise UserError("samples of the shapes are measured on test pictures as the world draws them: config.data.transforms may only "
                        "change those of training, and config.data.resolution must be the source's")
    told = {"records": f"0..{number - 1} of the test split"}
    if "noise_level" in fields:
        fields["noise_level"], told["noise_level"] = np.zeros_like(fields["noise_level"]), 0
    return Held([source.scene(i) for i in range(number)], images, fields, _near(makers, config, number)), told


def _near(makers: Mapping, config: Mapping, number: int) -> list | None:
    """The scenes of the neighbours whose embeddings each record is told, where its maker takes them from a database."""
    maker = makers.get("embeddings")
    if not hasattr(maker, "k"):
        return None
    train = data_choices.open_source(config, "train")
    return [[train.scene(int(i)) for i in near[:maker.k]] for near in maker.opened.near["test"][:number]]


def write_picture(model: Model, request: Request, path: str, title: str) -> None:
    """A PNG of what the first records say, samples of each, and the truth; the first sample of record i has the seed that it is measured
    with. Process 0 writes.

    Raises:
      UserError: as `prepared`, or a place that cannot be written.
    """
    rows = np.repeat(np.arange(min(ROWS, request.number)), SAMPLES)
    trial = prepared(model, int(rows.max()) + 1)
    told = told_fields(model, trial.held.part(rows).fields, len(rows)) if trial.condition is not None else None
    seeds = [request.seed + int(row) + i % SAMPLES * request.number for i, row in enumerate(rows)]
    images = model.sample(told, seeds=seeds, batch_size=request.batch_size, **request.sampling)
    images = trial.held.part(rows).pasted(images).reshape(-1, SAMPLES, *images.shape[1:])
    made = picture(images, trial.held, trial.tasks, title)
    if jax.process_index() == 0:
        try:
            write_png(path, made)
        except OSError as error:
            raise UserError(f"--picture={path} cannot be written: {error}") from None


def check_picture(path: str) -> None:
    """Raises UserError, before the long work, if a picture could not be written to `path`."""
    if path and (epath.Path(path).is_dir() or not epath.Path(path).parent.is_dir() or not path.endswith(".png")):
        raise UserError(f"--picture={path}: expected a .png file in a folder that exists, as --picture=obeys.png")


def is_shapes(model: Model) -> bool:
    """Whether a model was trained on the shapes."""
    return from_json(model.manifest.config)["data"]["source"]["name"] == Shapes.name
