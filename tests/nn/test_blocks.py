"""Every block against torch, in the published arithmetic, on small inputs so that a wrong eps shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from ldm_jax.nn.attention import PlainAttention, SpatialAttention, TokenAttention  # noqa: E402
from ldm_jax.nn.layers import Dense, GroupNorm, compute_dtype  # noqa: E402
from ldm_jax.nn.resample import FIRST_STAGE_PADDING, UNET_PADDING, Downsample, Upsample  # noqa: E402
from ldm_jax.nn.residual import ResBlock, TimeResBlock  # noqa: E402
from ldm_jax.nn.transformer import SpatialTransformer  # noqa: E402
from tests.nn.parity import agree, from_torch, random_like, shapes_of, to_torch, torch_weights  # noqa: E402

SMALL = 3e-3  # variance 1e-5: an eps of 1e-5 in place of 1e-6 changes a norm by a third


def draw(*shape, scale=1.0, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def made(module, *args, seed=1):
    """Random parameters, our output, and torch's weights by path."""
    params = random_like(shapes_of(module, *args), seed)
    return jax.jit(module.apply)({"params": params}, *args), torch_weights(params)


def norm(w, name, x, eps, groups=None):
    return F.group_norm(x, groups or min(32, x.shape[1] // 4), w[f"{name}/scale"], w[f"{name}/bias"], eps)


def conv(w, name, x, **kwargs):
    return F.conv2d(x, w[f"{name}/kernel"], w[f"{name}/bias"], **({"padding": 1} | kwargs))


def dense(w, name, x):
    return F.linear(x, w[f"{name}/kernel"], w.get(f"{name}/bias"))


def pointwise(w, name, x):
    """A linear map of the channels of [B, C, H, W]."""
    return dense(w, name, x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("padding", [FIRST_STAGE_PADDING, UNET_PADDING], ids=["first stage", "unet"])
def test_downsample_pads_as_its_lineage(padding):
    """Mistake: XLA's SAME, or one lineage's padding for the other: the map is shifted by a pixel."""
    x = draw(2, 8, 6, 8)
    ours, w = made(Downsample(padding), x)
    padded = F.pad(to_torch(x), (0, 1, 0, 1) if padding == FIRST_STAGE_PADDING else (1, 1, 1, 1))
    agree("downsample", ours, from_torch(conv(w, "conv", padded, stride=2, padding=0)))


def test_upsample_is_nearest():
    """Mistake: height and width exchanged, or values interleaved instead of repeated."""
    x = draw(2, 3, 5, 8)
    ours, w = made(Upsample(), x)
    agree("upsample", ours, from_torch(conv(w, "conv", F.interpolate(to_torch(x), scale_factor=2.0, mode="nearest"))))


@pytest.mark.parametrize("width", [32, 64])
def test_first_stage_block(width):
    """Mistake: the U-Net's eps, norm and activation exchanged, or a skip that is not mapped."""
    x = draw(2, 6, 5, 32, scale=SMALL)
    ours, w = made(ResBlock(width), x)
    x = to_torch(x)
    h = conv(w, "conv1", F.silu(norm(w, "norm1", x, 1e-6)))
    h = conv(w, "conv2", F.silu(norm(w, "norm2", h, 1e-6)))
    agree("block", ours, from_torch((x if width == 32 else pointwise(w, "nin_shortcut", x)) + h))


@pytest.mark.parametrize("resample", ["none", "up", "down"])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_time_block(resample, scale_shift):
    """Mistake: the first stage's eps, scale and shift exchanged, the resampling after the convolution or not on the skip."""
    x, time = draw(2, 6, 4, 32, scale=SMALL), draw(2, 24, seed=2)
    ours, w = made(TimeResBlock(64, resample, scale_shift), x, time)
    x, time = to_torch(x), to_torch(time)
    move = {"none": lambda y: y, "up": lambda y: F.interpolate(y, scale_factor=2.0), "down": lambda y: F.avg_pool2d(y, 2)}[resample]
    h = conv(w, "conv1", move(F.silu(norm(w, "norm1", x, 1e-5))))
    told = dense(w, "time", F.silu(time))[:, :, None, None]
    if scale_shift:
        scale, shift = told.chunk(2, dim=1)
        h = norm(w, "norm2", h, 1e-5) * (1 + scale) + shift
    else:
        h = norm(w, "norm2", h + told, 1e-5)
    agree("time block", ours, from_torch(pointwise(w, "skip", move(x)) + conv(w, "conv2", F.silu(h))))


def heads_of(x, heads):
    """[B, T, n d] -> [B, n, T, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q, k, v, heads, mask=None):
    mask = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(*(heads_of(x, heads) for x in (q, k, v)), attn_mask=mask).transpose(1, 2).flatten(2)


def tokens_of(x):
    return x.flatten(2).transpose(1, 2)


def test_first_stage_attention():
    """Mistake: several heads, a scale that is not c^-1/2, or the U-Net's eps."""
    x = draw(2, 5, 3, 32, scale=SMALL)
    ours, w = made(SpatialAttention(), x)
    h = tokens_of(norm(w, "norm", to_torch(x), 1e-6))
    h = dense(w, "proj_out", attend(*(dense(w, name, h) for name in "qkv"), 1))
    agree("spatial attention", ours, x + h.numpy().reshape(x.shape))


def test_plain_attention():
    """Mistake: heads interleaved with q, k, v, or the first stage's eps."""
    x = draw(2, 5, 3, 64, scale=SMALL)
    ours, w = made(PlainAttention(4), x)
    q, k, v = dense(w, "qkv", tokens_of(norm(w, "norm", to_torch(x), 1e-5))).chunk(3, dim=-1)
    agree("plain attention", ours, x + dense(w, "proj_out", attend(q, k, v, 4)).numpy().reshape(x.shape))


def test_spatial_transformer():
    """Mistake: GEGLU halves exchanged, tanh GELU, LayerNorm eps 1e-6, context given to the self-attention, mask not read."""
    x, tokens = draw(2, 4, 3, 64, scale=SMALL), draw(2, 7, 24, seed=3)
    mask = np.arange(7)[None] < np.array([[7], [4]])
    ours, w = made(SpatialTransformer(4, depth=2), x, tokens, mask)
    context, allowed = to_torch(tokens), torch.from_numpy(mask)
    h = dense(w, "proj_in", tokens_of(norm(w, "norm", to_torch(x), 1e-6)))
    for k in range(2):
        b = {path.removeprefix(f"block_{k}/"): leaf for path, leaf in w.items() if path.startswith(f"block_{k}/")}

        def layer(name, y, b=b):
            return F.layer_norm(y, y.shape[-1:], b[f"{name}/scale"], b[f"{name}/bias"], 1e-5)

        y = layer("norm1", h)
        q, key, v = (dense(b, f"attn1/{name}", y) for name in ("to_q", "to_k", "to_v"))
        h = h + dense(b, "attn1/to_out", attend(q, key, v, 4))
        q, key, v = dense(b, "attn2/to_q", layer("norm2", h)), dense(b, "attn2/to_k", context), dense(b, "attn2/to_v", context)
        h = h + dense(b, "attn2/to_out", attend(q, key, v, 4, allowed))
        value, gate = dense(b, "ff/proj", layer("norm3", h)).chunk(2, dim=-1)
        h = h + dense(b, "ff/out", value * F.gelu(gate))
    agree("transformer", ours, x + dense(w, "proj_out", h).numpy().reshape(x.shape))


def test_layer_norm_has_eps_1e_5():
    """Mistake: flax' default of 1e-6, which only small activations show."""
    from ldm_jax.nn.layers import LayerNorm

    x = draw(2, 3, 16, scale=SMALL)
    ours, w = made(LayerNorm(), x)
    agree("layer norm", ours, F.layer_norm(to_torch(x), (16,), w["scale"], w["bias"], 1e-5))


@pytest.mark.parametrize(("width", "groups"), [(960, 32), (128, 32), (96, 16), (64, 16), (32, 8), (24, 4), (20, 4), (7, 1), (3, 1)])
def test_group_norm_of_any_width(width, groups):
    """Mistake: a width that 32 does not divide fails or is grouped over the edge; or a variance from mean squares, which cancels."""
    x = 100.0 + draw(2, 4, 3, width)
    ours, w = made(GroupNorm(1e-6), x)
    w = {f"n/{path}": leaf.double() for path, leaf in w.items()}
    theirs = from_torch(norm(w, "n", to_torch(x).double(), 1e-6, groups))
    agree("group norm", ours, theirs, limit=5e-5)  # the mean of numbers near 100 is only known to 1e-5


@pytest.mark.parametrize("module", [PlainAttention(2), SpatialTransformer(2), TimeResBlock(32)], ids=lambda m: type(m).__name__)
def test_branches_start_at_zero(module):
    """Mistake: a residual branch that does not start as nothing, as the published U-Nets' do."""
    x = jnp.asarray(draw(1, 4, 4, 32))
    more = {"SpatialTransformer": (draw(1, 2, 8),), "TimeResBlock": (draw(1, 16),)}.get(type(module).__name__, ())
    start = module.init(jax.random.key(0), x, *more)
    assert jnp.array_equal(module.apply(start, x, *more), x)


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    """Mistake: a compute dtype that leaks into parameters, or a norm whose mean is taken in bfloat16."""
    x = (256.0 + draw(1, 16, 16, 32)).astype(jnp.bfloat16)
    module = GroupNorm(1e-6, "bfloat16")
    params = module.init(jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    out = module.apply(params, x)
    assert out.dtype == jnp.bfloat16
    agree("bfloat16 norm", out.astype(np.float32), GroupNorm(1e-6).apply(params, x.astype(np.float32)), limit=5e-3)
    dense_params = Dense(8, dtype="bfloat16").init(jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(dense_params))


def test_unknown_dtype_is_named():
    """Mistake: a misspelt dtype that is taken for float32."""
    with pytest.raises(ValueError, match="float32, bfloat16"):
        compute_dtype("fp16")


def test_token_attention_ignores_masked_tokens():
    """Mistake: a mask with its meaning reversed, or added where it should replace."""
    x, tokens = draw(2, 3, 16), draw(2, 5, 8, seed=4)
    module = TokenAttention(2)
    params = {"params": random_like(shapes_of(module, x, tokens), 5)}
    mask = np.array([[True, True, True, False, False]] * 2)
    masked = module.apply(params, x, np.where(mask[..., None], tokens, 1e4), mask)
    agree("mask", masked, module.apply(params, x, tokens[:, :3]), limit=1e-6)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_small_blocks_hear_the_time(width):
    """Mistake: groups of one channel (32 groups of a width of 32), whose norm takes away the time that was just added."""
    x, time = draw(2, 4, 4, width), draw(2, 16, seed=6)
    module = TimeResBlock(width)
    params = {"params": random_like(shapes_of(module, x, time), 7)}
    apply = jax.jit(module.apply)
    assert np.abs(apply(params, x, time) - apply(params, x, -time)).max() > 0.1
