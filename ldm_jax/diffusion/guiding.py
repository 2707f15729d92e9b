"""Guidance as a config says it: a program (guidance.py) and its weights, which are columns over the rows of a table.

A choice of GUIDANCE is a frozen object: `program`, hashable and static, and columns(ratios), one array [n] a term of the
program for rows of these sigma / alpha. Columns are made on the host: weights, intervals and ramps share one program.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.diffusion.guidance import OFF, Autoguidance, Classifier, ClassifierFree, EachPart, Perturbed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight over the rows: on a ramp inside an interval, off (1) outside of it (arXiv 2404.07724, equation 5).

    Fields:
      weight: the weight; of a ramp, at the last row.
      low, high: it acts where low < sigma / alpha <= high; None is no bound.
      begin, stop: it acts at rows r of n with begin <= r / n < stop.
      ramp: "constant", or from `start` at the first row to `weight` at the last: "linear", or "cosine" (half a wave: slow at both
        ends). Rising ones are those of arXiv 2404.13040.
      start: of a ramp; 1 unless told (0 for classifier guidance): off.

    Raises:
      UserError: bounds out of order or range, a start without a ramp.
    """

    weight: float
    low: float = 0.0
    high: float | None = None
    begin: float = 0.0
    stop: float = 1.0
    ramp: Literal["constant", "linear", "cosine"] = "constant"
    start: float | None = None

    off: ClassVar[float] = 1.0
    needs: ClassVar[str] = "nothing"
    """Of the condition: "nothing" more, a "null", the "parts" of both, or a "guide" (a second network)."""

    def __post_init__(self):
        if not (self.low >= 0 and (self.high is None or self.low < self.high)):
            raise UserError(f"low={self.low}, high={self.high}: expected 0 <= low < high, in sigma/alpha")
        if not 0 <= self.begin < self.stop <= 1:
            raise UserError(f"begin={self.begin}, stop={self.stop}: expected 0 <= begin < stop <= 1, as shares of the rows")
        if self.start is not None and self.ramp == "constant":
            raise UserError(f"start={self.start}: a constant weight has no start; set ramp to linear or cosine")
        if not all(math.isfinite(x) for x in (self.weight, self._start)):
            raise UserError(f"weight {self.weight} is not finite; {self.off:g} is off, above it strengthens the condition")

    @property
    def _start(self) -> float:
        return self.off if self.start is None else self.start

    @property
    def never(self) -> bool:
        """Whether the weight is off at every row."""
        return self.weight == self.off and (self.ramp == "constant" or self._start == self.off)

    def column(self, ratios) -> np.ndarray:
        """The weight at each row, float64 [n], of rows at sigma / alpha = ratios [n], infinite where alpha is 0."""
        ratios = np.asarray(ratios, np.float64)
        n = len(ratios)
        share = np.arange(n) / max(n - 1, 1) if n > 1 else np.ones(1)
        rise = {"constant": np.ones(n), "linear": share, "cosine": (1 - np.cos(np.pi * share)) / 2}[self.ramp]
        inside = (ratios > self.low) & (ratios <= (math.inf if self.high is None else self.high))
        rows = np.arange(n) / n
        inside &= (rows >= self.begin) & (rows < self.stop)
        return np.where(inside, self._start + rise * (self.weight - self._start), self.off)

    def columns(self, ratios) -> tuple[np.ndarray, ...]:
        """One column a term of the program."""
        return () if self.program is OFF else (self.column(ratios),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescaled(Weight):
    """A weight, and phi to rescale with (`guidance.rescale`; published: 0.7, 0 is none).

    Raises:
      UserError: also for a phi outside 0 .. 1.
    """

    rescale: float = 0.0
    prediction: Any = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.rescale <= 1:
            raise UserError(f"rescale={self.rescale}: expected a number from 0 (none) to 1")

    @property
    def _space(self):
        return self.prediction if self.rescale else None

    def columns(self, ratios) -> tuple[np.ndarray, ...]:
        """One column a term of the program: the weight, and phi where it rescales."""
        return super().columns(ratios) + ((np.full(len(ratios), self.rescale),) if self.rescale and self.program is not OFF else ())


@dataclasses.dataclass(frozen=True)
class Unguided:
    """No guidance: one evaluation a row."""

    needs: ClassVar[str] = "nothing"
    never: ClassVar[bool] = True
    program: ClassVar[Any] = OFF

    def columns(self, ratios) -> tuple:
        """None."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromNull(Rescaled):
    """Classifier-free guidance: null + weight (condition - null)."""

    needs: ClassVar[str] = "null"

    @property
    def program(self):
        return OFF if self.never else ClassifierFree(rescaled=self._space)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromGuide(Rescaled):
    """Autoguidance: guide + weight (model - guide). `guide` is a second denoiser, given by the caller.

    Raises:
      UserError: also without a guide.
    """

    guide: Callable | None = None
    needs: ClassVar[str] = "guide"

    def __post_init__(self):
        super().__post_init__()
        _need_guide(self.guide, "autoguidance", "a weaker diffusion model")

    @property
    def program(self):
        return OFF if self.never else Autoguidance(rescaled=self._space, guide=self.guide)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromPerturbed(Rescaled):
    """Perturbed-attention guidance: perturbed + weight (model - perturbed), the self-attention maps of `places` the identity.

    Fields:
      places: of the U-Net: "middle", "down_0", "up_1" ... (published for Stable Diffusion: the middle).
      perturbed: places -> the denoiser so disturbed, given by the caller.

    Raises:
      UserError: also without places.
    """

    places: tuple[str, ...] = ("middle",)
    perturbed: Callable | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.places:
            raise UserError("places=(): expected at least one place, as ('middle',)")

    @property
    def program(self):
        return OFF if self.never else Perturbed(rescaled=self._space, perturbed=self.perturbed(self.places))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByClassifier(Weight):
    """Classifier guidance, weight times the classifier's gradient: 0 is off, 1 the exact posterior. `free` is the weight of
    classifier-free guidance below it, over all rows; 1 is none. `guide` is log_probability, given by the caller.

    Raises:
      UserError: also without a guide.
    """

    free: float = 1.0
    guide: Callable | None = None
    off: ClassVar[float] = 0.0

    def __post_init__(self):
        super().__post_init__()
        _need_guide(self.guide, "classifier guidance", "a classifier of noisy data")
        if not math.isfinite(self.free):
            raise UserError(f"free={self.free}: expected a finite weight; 1 is off")

    @property
    def needs(self) -> str:
        """Of "guide", where the weight is on, and "null", where `free` is."""
        return " and ".join(["guide"] * (not self.never) + ["null"] * (self.free != 1)) or "nothing"

    @property
    def program(self):
        under = OFF if self.free == 1 else ClassifierFree()
        return under if self.never else Classifier(self.guide, under)

    def columns(self, ratios) -> tuple[np.ndarray, ...]:
        """The classifier's weight where it is on, then that of `free` where that is."""
        free = () if self.free == 1 else (np.full(len(ratios), self.free),)
        return free if self.never else (self.column(ratios), *free)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromParts:
    """Classifier-free guidance of several conditions, each by its own weight, in the order of the conditioner's parts that are dropped.

    With c_0 = nothing, "chain" is null + sum_i w_i (c_1 .. c_i - c_1 .. c_{i-1}) (arXiv 2211.09800, equation 3): the later are steered by
    given the earlier; equal weights are plain classifier-free guidance, all 1 is off. "sum" is null + sum_i w_i (c_i alone - null) (arXiv
    2206.01714), for conditions that are independent of each other given the data. As many more evaluations a row as parts.

    Fields:
      weights: one a part, kept as a tuple. low, high, begin, stop: as of `Weight`, of all; where they do not act, they are 1. For a
        chain alone: a sum of weights 1 is not off.

    Raises:
      UserError: weights that are not finite numbers, an unknown form, bounds as of `Weight`, a sum inside of bounds.
    """

    weights: Any
    form: Literal["chain", "sum"] = "chain"
    low: float = 0.0
    high: float | None = None
    begin: float = 0.0
    stop: float = 1.0
    needs: ClassVar[str] = "parts"

    def __post_init__(self):
        given = self.weights
        if not isinstance(given, tuple | list) or not given or any(isinstance(w, bool) or not isinstance(w, int | float) for w in given):
            raise UserError(f"weights={given!r}: expected a number for each condition, as (3.0, 1.5)")
        if self.form not in FORMS:
            raise UserError(f"form={self.form!r}: expected one of {', '.join(FORMS)}")
        object.__setattr__(self, "weights", tuple(given))  # a JSON's list cannot be hashed
        self._each()
        if self.form == "sum" and (self.low, self.high, self.begin, self.stop) != (0, None, 0, 1):
            raise UserError(f"form='sum' with low={self.low}, high={self.high}, begin={self.begin}, stop={self.stop}: a sum has no weights "
                            "that are off outside of an interval; expected none of these keys, or form='chain'")

    def _each(self) -> list[Weight]:
        return [Weight(weight=w, low=self.low, high=self.high, begin=self.begin, stop=self.stop) for w in self.weights]

    @property
    def never(self) -> bool:
        """Whether it changes nothing: a chain, or one weight, of 1."""
        return all(w == 1 for w in self.weights) and (self.form == "chain" or len(self.weights) == 1)

    @property
    def program(self):
        return OFF if self.never else EachPart(len(self.weights))

    def columns(self, ratios) -> tuple[np.ndarray, ...]:
        """k of the program: of a sum the weights, of a chain each less the next: c_1 .. c_i stands in two of its terms."""
        own = [weight.column(ratios) for weight in self._each()]
        if self.never or self.form == "sum":
            return () if self.never else tuple(own)
        return tuple(w - after for w, after in zip(own, [*own[1:], np.zeros_like(own[-1])]))


FORMS = ("chain", "sum")
GUIDANCE = {"off": Unguided, "classifier_free": FromNull, "each": FromParts, "autoguidance": FromGuide, "perturbed": FromPerturbed,
            "classifier": ByClassifier}


def choice(value, where: str = "guidance", **given):
    """The choice that a number (classifier-free, 1 is off) or a section of GUIDANCE says.

    Args:
      **given: prediction, guide, perturbed: what the model and its guide are.

    Raises:
      UserError: anything else, or as the choice.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Mapping):
        raise UserError(f"{where}={value!r}: expected a number, 1 for off, or a section, as "
                        '{"name":"classifier_free","weight":2.0}')
    section = value if isinstance(value, Mapping) else {"name": "classifier_free", "weight": value}
    return choose(GUIDANCE, section, where, **given)


def _need_guide(guide, who: str, what: str) -> None:
    if guide is None:
        raise UserError(f"{who} needs a guide, {what}: sample.py --guide=PATH, or model.sample(guide=...)")
