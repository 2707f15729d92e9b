"""Stage 1's evaluation against numbers worked out by hand, over padded batches."""

import numpy as np
import pytest

from ldm_jax.core.errors import NumbersWentBad, UserError
from ldm_jax.evals.image_metrics import psnr
from ldm_jax.evals.reconstruction import reconstruction
from ldm_jax.ops.images import to_uint8

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (10, 16, 16, 3)).astype(np.float32)


def batches(size=4):
    """10 records in batches of 4, the last one padded by repetition."""
    for start in range(0, 10, size):
        rows = np.minimum(np.arange(start, start + size), 9)
        yield {"image": IMAGES[rows], "record": rows, "weight": (np.arange(start, start + size) < 10).astype(np.float32)}


def blurred(batch):
    """A reconstruction whose error grows with the record, so that a padded row counted twice shows."""
    error = 0.02 * (1 + batch["record"])[:, None, None, None]
    return batch["image"] + error.astype(np.float32), {"kl": batch["record"] * 10.0}


def test_padded_rows_do_not_count():
    """Catches a mean that counts the padding, or a mean of batch means (the last batch is half empty)."""
    result = reconstruction(blurred, batches(), dimensions=5)
    expected = psnr(to_uint8(IMAGES + 0.02 * np.arange(1, 11)[:, None, None, None]), to_uint8(IMAGES))
    assert result["images"] == 10
    np.testing.assert_allclose(result["psnr_db"], expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(result["psnr_db_sd"], expected.std(), rtol=1e-5)
    np.testing.assert_allclose(result["l1"], 0.02 * 5.5, rtol=1e-5)
    assert (result["kl_nats"], result["kl_nats_per_dimension"]) == (45.0, 9.0)


def test_batch_size_does_not_matter():
    one, four = (reconstruction(blurred, batches(size)) for size in (1, 4))
    assert one.keys() == four.keys()
    np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=1e-12)


def test_codebook_use_and_perplexity_over_the_split():
    """Catches a mean of the batches' use (each batch sees fewer codes than the split) and padding counted as use."""
    def quantised(batch):
        indices = np.where(batch["weight"] > 0, batch["record"] // 5, 7)  # padding would add code 7
        return batch["image"], {"indices": indices[:, None, None] * np.ones((1, 2, 2), int), "commitment": batch["record"] * 1.0}

    result = reconstruction(quantised, batches(), codes=8)
    assert result["codebook_use"] == 2 / 8
    np.testing.assert_allclose(result["codebook_perplexity"], 2.0, rtol=1e-12)
    assert result["identical_images"] == 10 and result["psnr_db"] == 100.0
    assert result["commitment"] == 4.5 and "kl_nats" not in result


def test_what_is_not_per_example_is_passed_over():
    """The whole of a bottleneck's report may be handed on: absent parts and latents are no measures."""
    result = reconstruction(lambda b: (b["image"], {"kl": None, "indices": None, "latent": np.zeros((4, 2, 2, 3))}), batches())
    assert "latent" not in result and "kl" not in result and "codebook_use" not in result


@pytest.mark.parametrize("wrong, match", [
    (lambda b: (b["image"] * np.nan, {}), "not finite"),
    (lambda b: (b["image"], {"indices": np.full((4, 2, 2), 9)}), "outside a codebook"),
])
def test_doors(wrong, match):
    with pytest.raises((UserError, NumbersWentBad), match=match):
        reconstruction(wrong, batches(), codes=8)


def test_an_empty_split_is_an_error():
    with pytest.raises(UserError, match="no images"):
        reconstruction(blurred, iter(()))
