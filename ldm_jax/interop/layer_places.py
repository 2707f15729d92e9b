"""The places of one layer: our names kernel, scale and bias, torch's weight and bias."""

from ldm_jax.interop.places import LINEAR, SAME, Layout, Place


def linear(ours: str, theirs: str, layout: Layout = LINEAR, bias: bool = True) -> tuple[Place, ...]:
    """A linear map or a convolution."""
    kernel = Place(f"{ours}/kernel", (f"{theirs}.weight",), layout)
    return (kernel, Place(f"{ours}/bias", (f"{theirs}.bias",), SAME)) if bias else (kernel,)


def norm(ours: str, theirs: str) -> tuple[Place, ...]:
    """A group or layer normalisation."""
    return Place(f"{ours}/scale", (f"{theirs}.weight",)), Place(f"{ours}/bias", (f"{theirs}.bias",))


def joined(ours: str, theirs: tuple[str, ...], layout: Layout = LINEAR) -> tuple[Place, ...]:
    """Linear maps that stand one by one in theirs and side by side in ours, with biases."""
    return (Place(f"{ours}/kernel", tuple(f"{name}.weight" for name in theirs), layout),
            Place(f"{ours}/bias", tuple(f"{name}.bias" for name in theirs)))
