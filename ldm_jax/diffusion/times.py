"""Which training times a batch sees: times(keys [B], examples [B], schedule) -> [B], int32 in 0 .. T-1, float32 where time is real."""

import dataclasses

import jax

from ldm_jax.core.errors import UserError
from ldm_jax.core.keys import uniform_for


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every time equally likely; example i's time comes from its own key alone (arXiv 2006.11239, algorithm 1)."""

    def check(self, batch: int) -> None:
        """Any batch will do."""

    def __call__(self, keys, examples, schedule):
        """Times [B] from keys [B]; `examples` is not read."""
        if schedule.steps:
            return jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.steps))(keys)
        return schedule.pick(uniform_for(keys))


@dataclasses.dataclass(frozen=True)
class Stratified:
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

    def __call__(self, keys, examples, schedule):
        """Times [B] from keys [B] and global positions `examples` int [B]."""
        return schedule.pick((examples % self.strata + uniform_for(keys)) / self.strata)


TIMES = {"uniform": Uniform, "stratified": Stratified}
