"""Every sampler's error and order on data whose exact answer is known, in float64: docs/samplers.png and docs/samplers.md.

    python benchmarks/samplers.py     # about a minute on one core

Without noise: the largest error of 33 points of a two-Gaussian mixture, against its exact flow, which keeps quantiles.
With noise: the relative error of the result's variance on Gaussian data, whose rows are affine: no sampling is done.
The picture runs Stable Diffusion's levels, sigma/alpha from 14.6 to 0.029, in even steps of ln(alpha/sigma); the table
measures orders between the levels e^2 and e^-2, from 96 to 384 steps.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ldm_jax.core.errors import UserError  # noqa: E402
from ldm_jax.describe import method, options  # noqa: E402
from ldm_jax.diffusion.grids import log_snr  # noqa: E402
from ldm_jax.diffusion.methods import METHODS  # noqa: E402
from ldm_jax.diffusion.path import Path  # noqa: E402
from ldm_jax.diffusion.samplers import ABOUT, SAMPLERS  # noqa: E402
from ldm_jax.diffusion.schedule import scaled_linear  # noqa: E402
from ldm_jax.diffusion.table import Table, run_on_host  # noqa: E402

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
SD = scaled_linear()
SHARE, MEAN, STD = np.asarray([0.3, 0.7]), np.asarray([-1.2, 0.8]), np.asarray([0.4, 0.5])
COUNTS = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
MOST = 512  # evaluations shown
ORDER_COUNTS = (96, 144, 192, 288, 384)  # dpmpp_3s takes three steps at a time

# What the picture shows: panel -> sampler's label -> name and options. The grey line is of first order.
WITHOUT_NOISE = {
    "two or three evaluations a step": {"heun": ("heun", {}), "dpm_2": ("dpm_2", {}), "dpm_3": ("dpm_3", {}),
                                        "dpmpp_2s": ("dpmpp_2s", {})},
    "one, remembering the noise": {"plms": ("plms", {}), "lms": ("lms", {}), "dpm_2m": ("dpm_2m", {}), "dpm_3m": ("dpm_3m", {})},
    "one, remembering the data": {"dpmpp_2m": ("dpmpp_2m", {}), "dpmpp_3m": ("dpmpp_3m", {}), "dpmpp_3s": ("dpmpp_3s", {}),
                                  "unipc": ("unipc", {}), "unipc order 3": ("unipc", {"order": 3})},
}
WITH_NOISE = {
    "two evaluations a step": {"dpm_2 eta 1": ("dpm_2", {"eta": 1.0}), "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}),
                               "dpmpp_sde": ("dpmpp_sde", {}), "edm churn 2": ("edm", {"churn": 2.0, "noise": 1.0, "low": 0.0})},
    "one, first order": {"ddpm large": ("ddpm", {"variance": "large"}), "ddim eta 0.5": ("ddim", {"eta": 0.5})},
    "one, remembering the data": {"dpmpp_2m_sde": ("dpmpp_2m_sde", {}), "dpmpp_2m_sde heun": ("dpmpp_2m_sde", {"form": "heun"}),
                                  "dpmpp_3m_sde": ("dpmpp_3m_sde", {})},
}


def _parts(x, alpha, sigma):
    """((x - alpha mean) / spread [n, 2], spread [2]) of the two noisy Gaussians."""
    spread = np.sqrt(alpha**2 * STD**2 + sigma**2)
    return (x[:, None] - alpha * MEAN) / spread, spread


def denoise(x, alpha, sigma, time=None):
    """The exact (clean, noise) of the mixture, x [n]."""
    away, spread = _parts(x, alpha, sigma)
    weight = np.log(SHARE / spread) - away**2 / 2
    weight = np.exp(weight - weight.max(1, keepdims=True))
    clean = np.sum(weight * (MEAN + alpha * STD**2 / spread * away), 1) / weight.sum(1)
    return clean, (x - alpha * clean) / sigma


def quantile(x, level):
    """The share of noisy data below x [n] at a level."""
    from scipy.special import ndtr

    return ndtr(_parts(x, *level)[0]) @ SHARE


def points(shares, level):
    """x [n] at these shares, by bisection: the exact flow goes from points(shares, begin) to points(shares, end)."""
    reach = 6 * max(1.0, level[1])
    low, high = np.full_like(shares, -reach), np.full_like(shares, reach)
    for _ in range(70):
        middle = (low + high) / 2
        above = quantile(middle, level) > shares
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def flow_error(table: Table) -> float:
    """The largest error of a sampler without noise."""
    shares = np.linspace(0.02, 0.98, 33)
    wanted = points(shares, tuple(table.reach[-1]))
    return float(np.abs(run_on_host(table, denoise, points(shares, tuple(table.level[0]))) - wanted).max())


def variance_error(table: Table, std: float = 0.4) -> float:
    """|variance / exact - 1| of the result for data N(0, std^2): the state is its coefficients over the start and every draw."""
    def linear(x, alpha, sigma, time=None):
        noise = sigma * x / (alpha**2 * std**2 + sigma**2)
        return (x - sigma * noise) / alpha, noise

    (a, s), (b, t) = table.level[0], table.reach[-1]
    x = np.eye(1, table.rows + 1)[0] * np.hypot(a * std, s)
    return float(abs(np.sum(run_on_host(table, linear, x, np.eye(table.rows + 1)[1:]) ** 2) / np.hypot(b * std, t) ** 2 - 1))


def even_path(n: int, end: float = 2.0) -> Path:
    """n even steps of ln(alpha/sigma) from -end to end, alpha^2 + sigma^2 = 1."""
    lam = np.linspace(-end, end, n + 1)

    def at(ratio):
        return 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio), np.log(ratio)

    alpha, sigma, time = at(np.exp(-lam))
    return Path(alpha, sigma, time, at)


def picture_path(n: int) -> Path:
    """n even steps of ln(alpha/sigma) over Stable Diffusion's levels."""
    return log_snr(SD, n)


def curve(name: str, given: dict, error, path=picture_path, counts=COUNTS, most: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """(network evaluations, error) of a sampler over step counts; without those it refuses."""
    found = []
    for n in counts:
        try:
            table = SAMPLERS[name](path(n), **given)
        except UserError:
            continue
        if table.rows <= most:
            found.append((table.rows, error(table)))
    return tuple(np.asarray(found).T)


def order(name: str) -> float:
    """Measured: the slope of ln(error) against ln(steps)."""
    about = ABOUT[name]
    given = {key: False for key in ("lower_final",) if key in options(SAMPLERS[name])} | ({"noise": 1.0} if name == "edm" else {})
    evaluations, errors = curve(name, given, variance_error if about.noisy else flow_error, even_path, ORDER_COUNTS)
    return -np.polyfit(np.log(evaluations), np.log(errors), 1)[0]


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B")
GREY = "#9a9a9a"


def picture(file: pathlib.Path) -> None:
    """Small multiples, log-log: a row without noise, a row with; lines named at their ends, first order grey in each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(16, 9), sharex=True, sharey="row")
    for row, (panels, error, reference, told) in enumerate((
            (WITHOUT_NOISE, flow_error, "euler", "largest error of a sample"),
            (WITH_NOISE, variance_error, "ddpm", "relative error of the variance"))):
        grey = curve(reference, {}, error, most=MOST)
        for axis, (title, lines) in zip(axes[row], panels.items()):
            ends = [(*(float(v[-1]) for v in grey), {"euler": "euler, ddim", "ddpm": "ddpm, euler_ancestral"}[reference], GREY)]
            axis.plot(*grey, color=GREY, linewidth=1.5)
            for colour, (label, (name, given)) in zip(COLOURS, lines.items()):
                evaluations, errors = curve(name, given, error, most=MOST)
                axis.plot(evaluations, errors, color=colour, linewidth=2)
                ends.append((float(evaluations[-1]), float(errors[-1]), label, colour))
            _name(axis, ends, decades=(-7.3, 0.3) if row == 0 else (-5.0, 0.3))
            axis.set_title(title, loc="left", fontsize=12)
        axes[row, 0].set_ylabel(told, fontsize=11)
    for axis in axes[1]:
        axis.set_xlabel("network evaluations", fontsize=11)
    figure.text(0.012, 0.975, "Samplers without noise: two-Gaussian mixture, exact network", fontsize=13, weight="bold", va="top")
    figure.text(0.012, 0.5, "Samplers with noise: Gaussian data, exact network", fontsize=13, weight="bold", va="top")
    figure.subplots_adjust(left=0.055, right=0.885, top=0.9, bottom=0.06, hspace=0.32, wspace=0.55)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _name(axis, ends: list, decades: tuple[float, float]) -> None:
    """Axes of one panel, and each line's name beside its end, moved apart where they would overlap."""
    axis.set(xscale="log", yscale="log", xlim=(4, MOST), ylim=(10.0 ** decades[0], 10.0 ** decades[1]))
    axis.set_xticks([4, 8, 16, 32, 64, 128, 256, 512], [4, 8, 16, 32, 64, 128, 256, 512])
    axis.minorticks_off()
    axis.grid(color="#e4e4e4", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    gap = 0.058 * (decades[1] - decades[0])
    heights = []
    for _, error, *_ in sorted(ends, key=lambda end: end[1]):
        heights.append(max(np.log10(error), heights[-1] + gap if heights else -np.inf))
    for height, (_, error, label, colour) in zip(heights, sorted(ends, key=lambda end: end[1])):
        axis.annotate(label, (MOST, error), (MOST * 1.1, 10.0**height), color=colour if colour != GREY else "#6f6f6f", fontsize=10,
                      va="center", annotation_clip=False)


PAGE = """# Samplers

Made by `python benchmarks/samplers.py` from the code; a test fails when a row no longer says what the code does.

![Error against network evaluations](samplers.png)

Both halves run Stable Diffusion's levels, sigma/alpha from 14.6 to 0.029 in even steps of ln(alpha/sigma), in float64 with exact
networks. Above, the largest error of 33 samples of a mixture of two Gaussians against the exact flow; below, the error of the
result's variance for N(0, 0.4^2), computed from the table without drawing anything.

- evaluations: of the network per step of the grid. A step to clean data needs one.
- order: the slope of ln(error) from 96 to 384 steps between sigma/alpha = e^2 and e^-2, lower orders at the end and added noise off.
  A multistep method that starts with one step of order 1 tends to 2 in the end, whatever it reaches before.
- options: with their defaults; of a list the first is the default. For example `--sampler='{"name":"ddim","eta":0.5}'`.
- equals: with which settings others give the same numbers (diffusers 0.42, k-diffusion). tests/diffusion/test_parity_*.py run diffusers.

| sampler | evaluations | order | noise | options | paper | equals |
|---|---|---|---|---|---|---|
"""


def row(name: str, measured: str) -> str:
    """One line of the page's table."""
    about = ABOUT[name]
    told = ", ".join(f"`{option}`" for option in options(SAMPLERS[name]).replace("|", "/").split("  ") if option)
    paper = f"[{about.paper}](https://arxiv.org/abs/{about.paper})" if about.paper else ""
    return f"| {name} | {about.evaluations:g} | {measured} | {'yes' if about.noisy else 'no'} | {told} | {paper} | {about.equals} |"


METHODS_PAGE = """
Methods that no table of rows can say, with their defaults at 100 steps:

| method | evaluations | options | paper |
|---|---|---|---|
"""


def method_row(name: str) -> str:
    """One line of the second table."""
    _, evaluations, paper = method(name)
    told = ", ".join(f"`{option}`" for option in options(METHODS[name]).replace("|", "/").split("  ") if option)
    return f"| {name} | {evaluations} | {told} | [{paper}](https://arxiv.org/abs/{paper}) |"


def page(measured: dict[str, str]) -> str:
    """docs/samplers.md, with the measured orders."""
    return PAGE + "".join(row(name, told) + "\n" for name, told in measured.items()) + METHODS_PAGE + "".join(
        method_row(name) + "\n" for name in METHODS)


if __name__ == "__main__":
    (DOCS / "samplers.md").write_text(page({name: f"{order(name):.2f}" for name in ABOUT}))
    picture(DOCS / "samplers.png")
    print(DOCS / "samplers.md", DOCS / "samplers.png")
