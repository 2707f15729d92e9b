"""The patch discriminator and LPIPS against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.perceptual import STAGES, Lpips, load_lpips, lpips_shapes, unit_features
from tests.nn.parity import agree, from_torch, random_like, to_torch, torch_weights

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (3, 32, 24, 3)).astype(np.float32)
OTHER = np.clip(IMAGE + 0.3 * RNG.standard_normal(IMAGE.shape), -1, 1).astype(np.float32)


def torch_discriminator(w, width, layers):
    """The published stack, written with torch's own modules."""
    import torch
    from torch import nn

    stack, given = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)], width
    for i in range(1, layers + 1):
        out = width * min(2**i, 8)
        stack += [nn.Conv2d(given, out, 4, 2 if i < layers else 1, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
        given = out
    stack.append(nn.Conv2d(given, 1, 4, 1, 1))
    names = ["conv_0"] + [f"{kind}_{i}" for i in range(1, layers + 1) for kind in ("conv", "norm")] + ["conv_out"]
    with torch.no_grad():
        for name, module in zip(names, [m for m in stack if not isinstance(m, nn.LeakyReLU)]):
            module.weight.copy_(w[f"{name}/{'scale' if name.startswith('norm') else 'kernel'}"])
            if module.bias is not None:
                module.bias.copy_(w[f"{name}/bias"])
    return nn.Sequential(*stack)


@pytest.mark.parametrize("layers", [1, 3])
def test_discriminator(layers):
    """Mistake: XLA's padding, a stride too many, a bias before a norm, statistics per image, real and fake mixed."""
    torch = pytest.importorskip("torch")
    model = PatchDiscriminator(width=8, layers=layers)
    start = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    params = random_like(start["params"], 1)
    statistics = {name: {"mean": np.zeros(s["mean"].shape, np.float32), "var": np.ones(s["var"].shape, np.float32)}
                  for name, s in start["batch_stats"].items()}
    train = jax.jit(lambda v: model.apply(v, IMAGE, mutable=["batch_stats"]))
    logits, changed = train({"params": params, "batch_stats": statistics})
    theirs = torch_discriminator(torch_weights(params), 8, layers).train()
    out = theirs(to_torch(IMAGE))
    assert logits.shape[-1] == 1 and logits.dtype == jnp.float32
    agree("logits", logits, from_torch(out))
    norms = [m for m in theirs if isinstance(m, torch.nn.BatchNorm2d)]
    for i, norm in enumerate(norms, start=1):
        agree(f"running mean {i}", changed["batch_stats"][f"norm_{i}"]["mean"], norm.running_mean)
    for i, norm in enumerate(norms, start=1):  # running statistics: give torch ours, which are biased, and compare again
        norm.running_var.copy_(torch.tensor(np.array(changed["batch_stats"][f"norm_{i}"]["var"])))
    evaluate = jax.jit(lambda v: model.apply(v, IMAGE, train=False))
    agree("evaluation", evaluate({"params": params, **changed}), from_torch(theirs.eval()(to_torch(IMAGE))))


def test_discriminator_start_and_size():
    """Mistake: a start that is not pix2pix', or an image without a patch left."""
    @jax.jit
    def some():
        params = PatchDiscriminator(width=64).init(jax.random.key(0), IMAGE)["params"]
        return {name: params[name] for name in ("conv_2", "norm_3")}  # the network itself is not compiled

    start = some()
    assert float(start["conv_2"]["kernel"].std()) == pytest.approx(0.02, rel=0.02) and "bias" not in start["conv_2"]
    assert float(start["norm_3"]["scale"].mean()) == pytest.approx(1.0, abs=0.01) and not np.any(start["norm_3"]["bias"])
    shape = jax.eval_shape(lambda: PatchDiscriminator(width=8).init_with_output(jax.random.key(0), jnp.zeros((1, 256, 256, 3)))[0])
    assert shape.shape == (1, 30, 30, 1)
    with pytest.raises(UserError, match="sides of at least 24"):
        jax.eval_shape(PatchDiscriminator(width=8).init, jax.random.key(0), IMAGE[:, :16])


@pytest.fixture(scope="module")
def lpips():
    params = random_like(lpips_shapes(), 2)
    for stage in range(1, 6):
        params[f"lin{stage}"]["kernel"] = np.abs(params[f"lin{stage}"]["kernel"])
    return params


def torch_lpips(w, a, b):
    """The published distance in torch's functions."""
    import torch
    F = torch.nn.functional
    shift, scale = (torch.tensor(x).view(1, 3, 1, 1) for x in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    h, total = (torch.cat([to_torch(a), to_torch(b)]) - shift) / scale, 0.0
    for stage, (_, convolutions) in enumerate(STAGES, start=1):
        h = h if stage == 1 else F.max_pool2d(h, 2)
        for i in range(1, convolutions + 1):
            h = F.relu(F.conv2d(h, w[f"vgg/conv{stage}_{i}/kernel"], w[f"vgg/conv{stage}_{i}/bias"], padding=1))
        first, second = (h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)).chunk(2)
        total = total + F.conv2d((first - second) ** 2, w[f"lin{stage}/kernel"][:, :, None, None]).mean((1, 2, 3))
    return total.numpy()


def test_lpips(lpips):
    """Mistake: images in [0, 1], features after the pooling, a norm over space, or a bias in the heads."""
    pytest.importorskip("torch")
    ours = jax.jit(Lpips().apply)({"params": lpips}, IMAGE, OTHER)
    agree("LPIPS", ours, torch_lpips(torch_weights(lpips), IMAGE, OTHER))


def test_lpips_is_zero_and_smooth_at_equal_images(lpips):
    """Mistake: NaN gradients where images are equal or features are all zero."""
    dark = dict(lpips, vgg=dict(lpips["vgg"], conv1_2=dict(lpips["vgg"]["conv1_2"], bias=np.full(64, -1e3, np.float32))))

    def distance(a, params):
        return jnp.sum(Lpips().apply({"params": params}, a, IMAGE[:1, :16, :16]))

    for params in (lpips, dark):
        value, gradient = jax.jit(jax.value_and_grad(distance))(IMAGE[:1, :16, :16], params)
        assert abs(float(value)) < 1e-12 and np.isfinite(gradient).all()
    nothing = jnp.zeros((1, 2, 2, 4))
    assert np.isfinite(jax.grad(lambda x: jnp.sum(unit_features(x)))(nothing)).all()
    assert np.isfinite(jax.jvp(unit_features, (nothing,), (nothing + 1,))[1]).all()


def test_lpips_takes_grey_and_names_what_it_cannot(lpips):
    """Mistake: one channel read as three by a silent broadcast of something else."""
    grey = IMAGE[:1, :16, :16, :1], OTHER[:1, :16, :16, :1]
    apply = jax.jit(Lpips().apply)
    np.testing.assert_allclose(apply({"params": lpips}, *grey), apply({"params": lpips}, *(x.repeat(3, -1) for x in grey)), rtol=1e-6)
    with pytest.raises(UserError, match="1 or 3 channels"):
        apply({"params": lpips}, IMAGE[..., :2], OTHER[..., :2])
    with pytest.raises(UserError, match="at least 16"):
        apply({"params": lpips}, IMAGE[:, :8], OTHER[:, :8])


def test_lpips_file_is_read_strictly(lpips, tmp_path):
    """Mistake: a missing, extra, misshapen or damaged file that trains against rubbish."""
    from safetensors.numpy import save_file

    flat = {path: np.ascontiguousarray(leaf) for path, leaf in paths(lpips)}
    save_file(flat, tmp_path / "good.safetensors")
    read = load_lpips(tmp_path / "good.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(lpips)))
    bad = {"missing": {k: v for k, v in flat.items() if k != "lin3/kernel"}, "extra": flat | {"lin6/kernel": flat["lin1/kernel"]},
           "shape": flat | {"lin1/kernel": flat["lin2/kernel"]}, "nan": flat | {"lin1/kernel": np.full_like(flat["lin1/kernel"], np.nan)}}
    match = {"missing": "1 missing .lin3/kernel", "extra": "1 unknown .lin6/kernel", "shape": "lin1/kernel", "nan": "lin1/kernel"}
    for name, tensors in bad.items():
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(UserError, match=match[name]):
            load_lpips(tmp_path / "bad.safetensors")
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_lpips(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="no such file; make it with"):
        load_lpips(tmp_path / "none.safetensors")
