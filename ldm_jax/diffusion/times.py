"""Which training times a batch sees: times(keys [B], examples [B], schedule) -> [B], int32 in 0 .. T-1, float32 where time is real.

A sampler may remember: `start` is its memory before the first step, a tree of arrays ({} for none) that is saved with the training state;
`update` is the memory after a batch; `share` is what each example of it counts, so that the mean is that over all times.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import uniform_for

REAL_BINS = 100  # parts of a schedule of real time, unless told otherwise


def bins_of(schedule, bins: int) -> int:
    """The number of equal parts of a schedule; 0 asks for one for each training time, or 100 where time is real."""
    return bins or schedule.steps or REAL_BINS


def bin_at(schedule, t, number: int):
    """The part 0 .. number-1, int32 [B], that times t [B] fall into."""
    if schedule.steps:
        return t // (schedule.steps // number)
    fraction = (t - schedule.first) / (schedule.last - schedule.first)
    return jnp.clip((fraction * number).astype(jnp.int32), 0, number - 1)


def check_bins(schedule, bins: int, where: str) -> None:
    """Raises UserError for a negative number of bins, or one that does not divide the training times."""
    if bins < 0 or schedule.steps and schedule.steps % bins_of(schedule, bins):
        raise UserError(f"{where}: bins={bins}: expected a divisor of the {schedule.steps} training times, or 0 for one each"
                        if schedule.steps else f"{where}: bins={bins}: expected a number above 0, or 0 for {REAL_BINS}")


@dataclasses.dataclass(frozen=True)
class Times:
    """What all samplers share; one that forgets changes nothing of it."""

    def check(self, batch: int) -> None:
        """Any batch will do."""

    def check_schedule(self, schedule) -> None:
        """Any schedule will do."""

    def start(self, schedule) -> dict:
        """No memory."""
        return {}

    def share(self, t, schedule, memory):
        """Ones [B]."""
        return jnp.ones(t.shape, jnp.float32)

    def update(self, t, losses, schedule, memory) -> dict:
        """The memory as it was."""
        return memory

    def told(self, memory) -> dict:
        """No metrics."""
        return {}


@dataclasses.dataclass(frozen=True)
class Uniform(Times):
    """Every time equally likely; example i's time comes from its own key alone (arXiv 2006.11239, algorithm 1)."""

    def __call__(self, keys, examples, schedule, memory=None):
        """Times [B] from keys [B]; `examples` is not read."""
        if schedule.steps:
            return jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.steps))(keys)
        return schedule.pick(uniform_for(keys))


@dataclasses.dataclass(frozen=True)
class Stratified(Times):
    """The schedule's times are cut into `strata` equal parts and example i draws from part (i mod strata).

    The time of example i depends on its own key and its global position in the batch only: not on the batch size, the
    hosts or its neighbours. Over a global batch that is a multiple of `strata` every time is equally likely and the
    loss varies less; over any other batch it would be biased, which `check` refuses.
    """

    strata: int = 8

    def check(self, batch: int) -> None:
        """Raises UserError unless the global batch is a multiple of `strata`."""
        if self.strata < 1 or batch % self.strata:
            raise UserError(f"stratified times: a batch of {batch} is not a multiple of strata={self.strata}")

    def __call__(self, keys, examples, schedule, memory=None):
        """Times [B] from keys [B] and global positions `examples` int [B]."""
        return schedule.pick((examples % self.strata + uniform_for(keys)) / self.strata)


@dataclasses.dataclass(frozen=True)
class Normal(Times):
    """What the two below share: a normal draw of this mean and deviation for each example, from its own key alone."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError(f"times: mean={self.mean}, std={self.std}: expected a finite mean and a std above 0")

    def drawn(self, keys):
        """mean + std * a standard normal draw, float32 [B]."""
        return self.mean + self.std * jax.vmap(jax.random.normal)(keys)


@dataclasses.dataclass(frozen=True)
class LogNormal(Normal):
    """ln(sigma / alpha) is normal (arXiv 2206.00364, table 1: P_mean, P_std). Draws beyond the schedule take its first or last time.

    Published for pixels of deviation 0.5: mean -1.2, std 1.2. As latents have deviation 1, ln 2 is added here: mean -0.5.
    """

    mean: float = -0.5
    std: float = 1.2

    def check_schedule(self, schedule) -> None:
        """Raises UserError if the median is not among the schedule's levels: most draws would be one time."""
        level = schedule.level_at(np.asarray([schedule.first, schedule.last]))
        with np.errstate(divide="ignore"):
            low, high = np.log(level.sigma / level.alpha)
        if not low < self.mean < high:
            raise UserError(f"log_normal times: mean={self.mean}: expected a number between {low:.4g} and {high:.4g}, "
                            "the ln(sigma/alpha) of this schedule")

    def __call__(self, keys, examples, schedule, memory=None):
        """Times [B] from keys [B]; the nearest training times where they are whole numbers."""
        return schedule.nearest(-self.drawn(keys))


@dataclasses.dataclass(frozen=True)
class LogitNormal(Normal):
    """The fraction of the schedule is the logistic function of a normal draw (arXiv 2403.03206, equation 19; published: 0, 1)."""

    def __call__(self, keys, examples, schedule, memory=None):
        """Times [B] from keys [B]."""
        return schedule.pick(jax.nn.sigmoid(self.drawn(keys)))


@dataclasses.dataclass(frozen=True)
class Importance(Times):
    """Times by the second moment of their losses, unbiased: p ~ sqrt(E[L^2]), and an example counts 1 / (number p) (arXiv 2102.09672,

    section 3.3). The last `remembered` losses of each time are kept; until every time has as many, all are equally likely.
    `floor` of the draws stay uniform, as in the published code (guided-diffusion, resample.py), so that no time is forgotten.

    bins: equal parts of the schedule that share a memory, uniform inside; 0 is one for each training time, or 100 where time is real.
    The memory is a function of the losses of the global batches so far, in the order of their examples: the same for every number
    of devices, up to the last bits of the losses. Example i's time depends on its own key and on that memory: here alone do earlier
    batches, though never its neighbours, have a say (the one exception to "example i is example i" in drawing).
    """

    remembered: int = 10
    floor: float = 0.001
    bins: int = 0

    def __post_init__(self):
        if self.remembered < 1 or not 0 < self.floor <= 1:
            raise UserError(f"importance times: remembered={self.remembered}, floor={self.floor}: expected at least 1, and a share of "
                            "the draws above 0 and at most 1")

    def check_schedule(self, schedule) -> None:
        """Raises UserError for bins that do not divide the schedule's times."""
        check_bins(schedule, self.bins, "importance times")

    def start(self, schedule) -> dict:
        """{"losses": float32 [bins, remembered], the newest over the oldest; "seen": int32 [bins], how many there were}."""
        number = bins_of(schedule, self.bins)
        return {"losses": jnp.zeros((number, self.remembered)), "seen": jnp.zeros(number, jnp.int32)}

    def chances(self, memory):
        """The probability of each bin, float32 [bins]; it sums to 1."""
        number = len(memory["seen"])
        size = jnp.sqrt(jnp.mean(jnp.square(memory["losses"]), axis=1))
        total = jnp.sum(size)
        known = jnp.all(memory["seen"] >= self.remembered) & (total > 0)
        chances = (1 - self.floor) * size / jnp.where(known, total, 1) + self.floor / number
        return jnp.where(known, chances, 1 / number)

    def __call__(self, keys, examples, schedule, memory=None):
        """Times [B] from keys [B]: one uniform draw each, through the inverse of the piecewise linear distribution function."""
        memory = self.start(schedule) if memory is None else memory
        chances, draw = self.chances(memory), uniform_for(keys)
        number, above = len(chances), jnp.cumsum(chances)
        at = jnp.minimum(jnp.searchsorted(above, draw * above[-1], side="right"), number - 1)
        inside = jnp.clip((draw * above[-1] - above[at] + chances[at]) / chances[at], 0, 1 - 2.0**-10)
        if schedule.steps:
            each = schedule.steps // number
            return (at * each + (inside * each).astype(jnp.int32)).astype(jnp.int32)
        return schedule.pick((at + inside) / number)

    def share(self, t, schedule, memory):
        """1 / (number p(t)), float32 [B]: its mean over draws is 1."""
        chances = self.chances(memory)
        return 1 / (len(chances) * chances[bin_at(schedule, t, len(chances))])

    def update(self, t, losses, schedule, memory) -> dict:
        """The memory with losses [B] at times t [B], in the order of the batch; of more than `remembered` at one time, the last."""
        number = len(memory["seen"])
        at = bin_at(schedule, t, number)
        same = at[:, None] == at[None, :]
        earlier, later = jnp.sum(jnp.tril(same, -1), axis=1), jnp.sum(jnp.triu(same, 1), axis=1)
        place = (memory["seen"][at] + earlier) % self.remembered
        row = jnp.where(later < self.remembered, at, number)  # a row that is not there is dropped
        return {"losses": memory["losses"].at[row, place].set(losses, mode="drop"), "seen": memory["seen"].at[at].add(1)}

    def told(self, memory) -> dict:
        """The share of the times that are known, and of those that are drawn in effect, 1 / (number sum p^2); both float32 []."""
        known = jnp.mean((memory["seen"] >= self.remembered).astype(jnp.float32))
        return {"times/known": known, "times/effective": 1 / (len(memory["seen"]) * jnp.sum(jnp.square(self.chances(memory))))}


TIMES = {"uniform": Uniform, "stratified": Stratified, "log_normal": LogNormal, "logit_normal": LogitNormal, "importance": Importance}
