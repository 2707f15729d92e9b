"""What a run says while it runs: JSON lines, TensorBoard events, preview pictures, and a line on stderr with rate and time left."""

import json
import math
import sys
import time
from typing import Any

import numpy as np
from etils import epath

from ldm_jax.checkpoint.digests import write_atomically
from ldm_jax.ops.images import make_grid, to_uint8, write_png


def clock(seconds: float) -> str:
    """"2h05m", "3m20s" or "12s"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def say(line: str) -> None:
    """One line on stderr, from process 0 only."""
    import jax

    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


class Report:
    """Writes metrics of process 0 under a workdir: `metrics.jsonl`, event files, `previews/`.

    Opened at the step a run starts from, it drops the lines of later steps, which a killed run may have left: a resumed run's
    file equals an undisturbed one's but for rates.
    """

    def __init__(self, workdir: epath.Path, start: int, steps: int, examples_per_step: int):
        import jax

        self.workdir, self.steps, self.examples = workdir, steps, examples_per_step
        self.active = jax.process_index() == 0
        self.mark, self.marked = None, start
        if self.active:
            from tensorboardX import SummaryWriter

            self.path = workdir / "metrics.jsonl"
            self._cut_after(start)
            self.file = self.path.open("a")
            self.events = SummaryWriter(str(workdir), purge_step=start + 1 if start else None)

    def _cut_after(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the torn last line of a killed run
        write_atomically(self.path, "".join(lines))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One JSON line {"step": step, name: value, ...} and the same numbers as events."""
        if not self.active:
            return
        self.file.write(json.dumps({"step": step} | values) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """The line a person reads, with steps and images a second, and the time left at that rate; the rate goes to the event files."""
        now = time.monotonic()
        line = f"step {step}/{self.steps}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.mark is not None and step > self.marked:
            rate = (step - self.marked) / (now - self.mark)
            line += f"  {rate:.3g} steps/s  {rate * self.examples:.3g} images/s  {clock((self.steps - step) / rate)} left"
            if self.active:
                self.events.add_scalar("steps_per_second", rate, step)
        self.mark, self.marked = now, step
        say(line)

    def resume_clock(self, step: int) -> None:
        """Leaves the time since the last line (an evaluation, a save) out of the rate."""
        self.mark, self.marked = time.monotonic(), step

    def pictures(self, step: int, name: str, images: dict[str, np.ndarray]) -> None:
        """previews/NAME_STEP.png: one row block for each entry. images: {label: [B, H, W, C] in [-1, 1]}."""
        if not self.active:
            return
        rows = [to_uint8(np.asarray(batch)) for batch in images.values()]
        columns = min(len(rows[0]), 8)
        blocks = [batch[i:i + columns] for i in range(0, len(rows[0]), columns) for batch in rows]
        blocks = [np.concatenate([b, np.zeros((columns - len(b), *b.shape[1:]), b.dtype)]) for b in blocks]
        grid = make_grid(np.concatenate(blocks), columns)
        write_png(self.workdir / "previews" / f"{name}_{step:08d}.png", grid)
        self.events.add_image(name, grid, step, dataformats="HWC")

    def close(self) -> None:
        if self.active:
            self.file.close()
            self.events.close()


def floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Device scalars as Python floats; waits for them."""
    return {name: float(value) for name, value in metrics.items()}
