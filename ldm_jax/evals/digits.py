"""Stage 2 on the demo's digits: are samples the digit they were asked to be, as varied as real ones, and not copies?

Samples that were asked for no digit are judged without one: are they digits at all, of all kinds, varied, and not copies?

Everything is measured on 64 numbers an image, the 8x8 pixels of the digits' own scale 0..16 that the images were
enlarged from. Samples and real digits are reduced by one function, after the same enlarging. A sample set passes by
its accuracy and its Frechet distance together; the distance to the nearest training digit and the spread within each
class stand beside them because copying the training set, or one good image a class, would pass the first and either.
"""

import math
from collections.abc import Mapping

import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.data.digits import CLASSES, reduce_digits
from ldm_jax.evals.frechet import frechet_distance

GAMMA, PENALTY = 0.001, 10.0  # 5-fold accuracy on the training split 98.9 %; within 0.2 % of it from C = 1 to 100 and gamma 0.0005 to 0.002
BUMPS, SHARPNESS = 300, 100.0  # log-loss on the held-out digits 0.048; 0.061 to 0.095 with a bump at every training digit
QUANTILE = 0.1
SUSPICION = 0.5  # a median or a spread below half of the held-out digits' own is called out in "warnings"

Split = tuple[np.ndarray, np.ndarray]


def evaluate_digits(samples: np.ndarray, labels: np.ndarray | None, train: Split, held_out: Split, *,
                    settings: Mapping | None = None) -> dict:
    """Compares samples with the training and the held-out digits.

    Args:
      samples: uint8 [N, 32, 32, 1].
      labels: int [N], the digit each sample was asked to be; None where none was asked for.
      train, held_out: (images uint8 [M, 32, 32, 1], labels int [M]) of the real splits.
      settings: how the samples were made (seeds, sampler, steps, guidance ...), copied into the result.

    Returns:
      A JSON-able dict; entries with two numbers are dicts {"samples": ..., "held_out": ...}:
      "accuracy": share given its intended class by an SVC fitted on the training split (held_out: the SVC's own);
      "confident": share above the 10th percentile of held-out digits' confidence (held_out: 0.9 by definition);
      "frechet_distance": squared units of 0..16 pixels, to the held-out digits (held_out: from the training digits);
      "frechet_ratio": the first over the second;
      "nearest_training_distance": median over images of the Euclidean distance to the nearest training digit;
      "copies": share nearer to a training digit than every held-out digit is (held_out: 0 by definition);
      "spread_within_class": mean over classes of the mean distance between two different images of the class;
      "warnings": a line each for copying and for collapse; "n", "classifier", "settings".
      Without labels there is no accuracy, and in the place of the spread within classes stand
      "spread": mean distance between two different images;
      "classes": e to the entropy of the shares of the SVC's classes, 10 where all digits come equally often;
      "rarest_class", "commonest_class": the smallest and the largest share.

    Raises:
      UserError: counts that differ, or an empty set.
    """
    _check(samples, labels, "samples")
    _check(*train, "train")
    _check(*held_out, "held_out")
    pixels = {"samples": _features(samples), "train": _features(train[0]), "held_out": _features(held_out[0])}
    truth = {"train": np.asarray(train[1]), "held_out": np.asarray(held_out[1])}
    nearest = {name: nearest_distance(pixels[name], pixels["train"]) for name in ("samples", "held_out")}
    distance = {"samples": frechet_distance(pixels["samples"], pixels["held_out"]),
                "held_out": frechet_distance(pixels["train"], pixels["held_out"])}
    found = _classes_found(pixels, truth["train"])
    asked = None if labels is None else {"samples": np.asarray(labels), "held_out": truth["held_out"]}
    result = {} if asked is None else {"accuracy": {name: float(np.mean(found[name] == asked[name])) for name in found}}
    result |= {
        "confident": _confident(pixels, truth["train"]),
        "frechet_distance": distance,
        "frechet_ratio": distance["samples"] / distance["held_out"] if distance["held_out"] > 0 else float("inf"),
        "nearest_training_distance": {name: float(np.median(value)) for name, value in nearest.items()},
        "copies": {name: float(np.mean(value < nearest["held_out"].min())) for name, value in nearest.items()},
    }
    result |= _variety(pixels, found) if asked is None else _variety_within(pixels, asked)
    return result | {
        "warnings": _warnings(result),
        "n": {name: int(len(value)) for name, value in pixels.items()},
        "classifier": {"name": "sklearn.svm.SVC", "kernel": "rbf", "gamma": GAMMA, "C": PENALTY, "features": "8x8 pixels, 0..16"},
        "settings": dict(settings or {}),
    }


def nearest_distance(points: np.ndarray, to: np.ndarray, block: int = 256) -> np.ndarray:
    """Euclidean distance [N] of each of points [N, D] to its nearest row of to [M, D]."""
    def of(part):
        return np.sqrt(np.min(np.sum((part[:, None] - to[None]) ** 2, axis=-1), axis=1))
    return np.concatenate([of(points[i : i + block]) for i in range(0, len(points), block)])


def spread(points: np.ndarray, labels: np.ndarray, classes) -> float:
    """Mean over classes of the mean Euclidean distance between two different points of the class.

    Pairs are unbiased in the number of points, which differs between the sets. Classes with one point are left out.
    """
    found = []
    for label in classes:
        own = points[labels == label]
        if len(own) > 1:
            distances = np.sqrt(np.sum((own[:, None] - own[None]) ** 2, axis=-1))
            found.append(distances.sum() / (len(own) * (len(own) - 1)))
    return float(np.mean(found)) if found else float("nan")


def _features(images: np.ndarray) -> np.ndarray:
    return np.asarray(reduce_digits(images), np.float64).reshape(len(images), -1)


def _classes_found(pixels: Mapping[str, np.ndarray], truth: np.ndarray) -> dict[str, np.ndarray]:
    """The SVC's classes of the samples and the held-out digits."""
    from sklearn.svm import SVC

    classifier = SVC(kernel="rbf", gamma=GAMMA, C=PENALTY).fit(pixels["train"], truth)
    return {name: classifier.predict(pixels[name]) for name in ("samples", "held_out")}


def _confident(pixels: Mapping[str, np.ndarray], truth: np.ndarray) -> dict[str, float]:
    """The shares above the 10th percentile of the held-out digits' confidence."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    bumps = Nystroem(gamma=GAMMA, n_components=min(BUMPS, len(truth)), random_state=0)
    classifier = make_pipeline(bumps, LogisticRegression(C=SHARPNESS, max_iter=3000)).fit(pixels["train"], truth)
    confidence = {name: classifier.predict_proba(pixels[name]).max(1) for name in ("samples", "held_out")}
    bar = np.quantile(confidence["held_out"], QUANTILE)
    return {name: float(np.mean(value > bar)) for name, value in confidence.items()}


def _variety_within(pixels: Mapping[str, np.ndarray], asked: Mapping[str, np.ndarray]) -> dict:
    classes = sorted(set(asked["samples"].tolist()))
    return {"spread_within_class": {name: spread(pixels[name], asked[name], classes) for name in asked}}


def _variety(pixels: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict:
    result: dict = {"spread": {name: spread(pixels[name], np.zeros(len(value)), (0,)) for name, value in found.items()}}
    shares = {name: np.bincount(value, minlength=CLASSES) / len(value) for name, value in found.items()}
    entropy = {name: -sum(p * math.log(p) for p in value if p > 0) for name, value in shares.items()}
    return result | {"classes": {name: float(math.exp(value)) for name, value in entropy.items()},
                     "rarest_class": {name: float(value.min()) for name, value in shares.items()},
                     "commonest_class": {name: float(value.max()) for name, value in shares.items()}}


def _warnings(result: Mapping) -> list[str]:
    lines = []
    near = result["nearest_training_distance"]
    name, of = ("spread", "samples") if "spread" in result else ("spread_within_class", "samples of a class")
    wide = result[name]
    if near["samples"] < SUSPICION * near["held_out"]:
        lines.append(f"copies: the median sample is {near['samples']:.1f} from a training digit, held-out digits {near['held_out']:.1f}")
    if not wide["samples"] >= SUSPICION * wide["held_out"]:
        lines.append(f"collapse: {of} are {wide['samples']:.1f} apart, held-out digits {wide['held_out']:.1f}")
    if "classes" in result and result["classes"]["samples"] < SUSPICION * result["classes"]["held_out"]:
        lines.append(f"collapse: the samples are of {result['classes']['samples']:.1f} classes, held-out digits of "
                     f"{result['classes']['held_out']:.1f}")
    return lines


def _check(images, labels, where: str) -> None:
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) < 2:
        raise UserError(f"{where}: expected at least 2 uint8 images [N, 32, 32, 1], got {images.dtype} {list(images.shape)}")
    if labels is not None and np.shape(labels) != (len(images),):
        raise UserError(f"{where}: {len(images)} images but labels of shape {list(np.shape(labels))}: one label an image")
