"""Stage 2 on a base that is frozen: the LoRA alone is trained. arXiv 2106.09685."""

import dataclasses

import jax

from ldm_jax.core.keys import key_for
from ldm_jax.models.lora import Lora, merge
from ldm_jax.train.diffusion_stage import DiffusionStage
from ldm_jax.train.state import new_state
from ldm_jax.train.steps import Stage, remembering

BASE = "base"  # the frozen tree of the base's parameters


@dataclasses.dataclass(frozen=True)
class LoraStage:
    """A DiffusionStage whose parameters are a LoRA of the base's, frozen["base"]: it sees the two merged.

    The gradient of a kernel is made whole and brought down to the rank; what is saved is the optimizer's memory and the average.
    """

    inner: DiffusionStage
    lora: Lora

    def build(self) -> Stage:
        return Stage(self.init, remembering(self.loss, self.inner.descent), self.evaluate, self.preview)

    def init(self, key: jax.Array):
        shapes = jax.eval_shape(self.inner.init_params, key)
        objective, descent = self.inner.objective, self.inner.descent
        memory = objective.times.start(objective.schedule)
        params = self.lora.start(shapes, key_for(key, "lora"))
        return new_state(params, descent.transform, descent.average, {"times": memory} if memory else {})

    def whole(self, params, frozen):
        """The parameters that the inner stage sees."""
        return merge(frozen[BASE], [(self.lora.whole(params), 1.0)])

    def loss(self, params, extra, frozen, batch, key, step):
        return self.inner.loss(self.whole(params, frozen), extra, frozen, batch, key, step)

    def evaluate(self, params, frozen, batch, key):
        return self.inner.evaluate(self.whole(params, frozen), frozen, batch, key)

    def preview(self, params, frozen, batch, key):
        return self.inner.preview(self.whole(params, frozen), frozen, batch, key)
