"""The LPIPS converter on a VGG16 of random numbers, saved live by torch and by safetensors in every published form."""

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.interop.lpips import convert_lpips, trunk_names
from ldm_jax.models.perceptual import STAGES, load_lpips

torch = pytest.importorskip("torch")
WIDTHS = [width for width, convolutions in STAGES for _ in range(convolutions)]
NUMBERS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # torchvision's `features`, counted in its source
SLICES = [1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]  # the LPIPS package's `net`


@pytest.fixture(scope="module")
def weights():
    """One random network under torchvision's names and heads under the LPIPS package's."""
    torch.manual_seed(0)
    trunk, inputs = {}, 3
    for number, width in zip(NUMBERS, WIDTHS):
        trunk[f"features.{number}.weight"] = torch.randn(width, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
        trunk[f"features.{number}.bias"] = torch.randn(width) * 0.1
        inputs = width
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, (width, _) in enumerate(STAGES)}
    return trunk, heads


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    classifier = {"classifier.6.weight": torch.zeros(2, 2)}
    torch.save(weights[0] | classifier, folder / "vgg16.pth", _use_new_zipfile_serialization=False)
    torch.save(weights[1], folder / "vgg.pth")
    return folder


@pytest.fixture(scope="module")
def converted(files):
    facts = convert_lpips(files / "vgg16.pth", files / "vgg.pth", files / "lpips.safetensors")
    assert facts["parameters"] == 14_714_688 + 1_472 and not facts["published"]  # VGG16's 13 convolutions and the five heads
    return load_lpips(files / "lpips.safetensors")


def torch_lpips(trunk, heads, a, b):
    """LPIPS v0.1 in torch, from its definition: an oracle that shares no name or layout with ours."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = torch.cat([(torch.tensor(v) - shift) / scale for v in (a, b)]).permute(0, 3, 1, 2)
    total, stage = 0.0, 0
    for i, number in enumerate(NUMBERS):
        if i and SLICES[i] != SLICES[i - 1]:
            x = torch.nn.functional.max_pool2d(x, 2)
        x = torch.relu(torch.nn.functional.conv2d(x, trunk[f"features.{number}.weight"], trunk[f"features.{number}.bias"], padding=1))
        if i + 1 == len(NUMBERS) or SLICES[i + 1] != SLICES[i]:
            unit = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
            first, second = unit.chunk(2)
            total = total + torch.nn.functional.conv2d((first - second) ** 2, heads[f"lin{stage}.model.1.weight"]).mean((1, 2, 3))
            stage += 1
    return total.numpy()


def test_the_converted_network_measures_what_torch_measures(weights, converted):
    """Catches kernels turned the wrong way (all 3x3), layers or heads in another order, and a lost bias."""
    from ldm_jax.models.perceptual import Lpips

    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)
    found = np.asarray(Lpips().apply({"params": converted}, a, b))
    np.testing.assert_allclose(found, torch_lpips(*weights, a, b), rtol=2e-5)


def test_the_trunk_is_numbered_as_torchvision_does():
    assert [int(number) for number in trunk_names()] == NUMBERS


def same(left, right):
    import jax
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


@pytest.mark.parametrize("form", ["safetensors", "lpips package", "autoencoder checkpoint"])
def test_every_published_form_gives_the_same_file(weights, files, converted, tmp_path, form):
    """Catches a form whose names are read but put elsewhere."""
    trunk, heads = weights
    net = {name.replace("features.", f"net.slice{SLICES[NUMBERS.index(int(name.split('.')[1]))]}."): x for name, x in trunk.items()}
    whole = net | heads | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    if form == "safetensors":
        from safetensors.torch import save_file
        save_file(trunk, tmp_path / "t.safetensors")
        arguments = (tmp_path / "t.safetensors", files / "vgg.pth")
    elif form == "lpips package":
        torch.save(whole | {name.replace("lin", "lins.", 1): x for name, x in heads.items()}, tmp_path / "whole.pth")
        arguments = (tmp_path / "whole.pth", "")
    else:
        state = {f"loss.perceptual_loss.{name}": x for name, x in whole.items()} | {"encoder.conv_in.weight": torch.ones(2)}
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
        arguments = (tmp_path / "last.ckpt", "")
    convert_lpips(*arguments, tmp_path / "out.safetensors")
    assert same(load_lpips(tmp_path / "out.safetensors"), converted)


def broken(weights, what):
    trunk, heads = ({**part} for part in weights)
    if what == "missing":
        del trunk["features.28.bias"]
    elif what == "unknown":
        trunk["features.1.weight"] = torch.ones(3)
    elif what == "shape":
        trunk["features.0.weight"] = torch.ones(64, 3, 5, 5)
    elif what == "nan":
        trunk["features.5.bias"] = trunk["features.5.bias"] * float("nan")
    elif what == "negative":
        heads["lin2.model.1.weight"] = heads["lin2.model.1.weight"] - 0.5
    elif what == "no heads":
        heads = {}
    return trunk | heads


@pytest.mark.parametrize("what, match", [
    ("missing", "1 tensors are missing: vgg/conv5_3/bias"), ("unknown", "features.1.weight"), ("shape", "another network than VGG16"),
    ("nan", "not finite: vgg/conv2_1/bias"), ("negative", "negative weights"), ("no heads", "heads are in a file of their own"),
])
def test_a_wrong_file_is_refused_and_nothing_is_written(weights, tmp_path, what, match):
    torch.save(broken(weights, what), tmp_path / "x.pth")
    with pytest.raises(UserError, match=match):
        convert_lpips(tmp_path / "x.pth", "", tmp_path / "out.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_digests_and_existing_files(files, converted, tmp_path):
    """Catches a damaged download under its published name, and a file of the user's overwritten."""
    (tmp_path / "vgg16-397923af.pth").write_bytes((files / "vgg16.pth").read_bytes())
    with pytest.raises(UserError, match="expected 397923af"):
        convert_lpips(tmp_path / "vgg16-397923af.pth", files / "vgg.pth", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="another file"):
        convert_lpips(files / "vgg16.pth", files / "vgg.pth", tmp_path / "out.safetensors", heads_sha256="a78928a0")
    with pytest.raises(UserError, match="exists already"):
        convert_lpips(files / "vgg16.pth", files / "vgg.pth", files / "lpips.safetensors")
