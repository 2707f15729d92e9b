"""The loop through real runs in a folder: it stops well, reports once, starts from other models, traces on demand."""

import json

import numpy as np
import pytest

from ldm_jax import launch, loading
from ldm_jax.checkpoint.store import Store
from ldm_jax.core.errors import NumbersWentBad, UserError
from ldm_jax.train.report import Report, clock
from ldm_jax.train.sharding import make_mesh

CRASH = {"learning_rate": {"name": "constant", "peak": 1e18, "warmup": 1}, "clip_norm": 0.0, "run.save_every": 0}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_that_go_bad_stop_the_run(tmp_path, make_autoencoder_config):
    """Mistake: a bad update that is saved, a run that goes on, or a batch that nobody can find again. The first update has rate 0, the
    second one overflows."""
    with pytest.raises(NumbersWentBad, match=r"batch \(seed=0, k=(\d+)\)") as told:
        launch.train(make_autoencoder_config(**CRASH), str(tmp_path / "run"))
    assert told.value.status == 5
    with Store(tmp_path / "run" / "checkpoints") as store:
        step = store.newest_valid()
        assert f"k={step})" in str(told.value) and step == 1
        params = loading.Opened(tmp_path / "run").everything("raw", make_mesh())
    assert all(np.isfinite(leaf).all() for leaf in loading.jax.tree.leaves(params))


def test_a_bad_record_loses_no_step(tmp_path, make_autoencoder_config, monkeypatch):
    """Mistake: a corrupt image, met after hours, that ends the run without its last state."""
    from ldm_jax.data.digits import Digits

    read, config = Digits.__getitem__, make_autoencoder_config(**{"run.save_every": 0})

    def broken(self, i):
        if self.split == "train" and broken.reads > 45:
            raise UserError("this image is truncated")
        broken.reads += self.split == "train"
        return read(self, i)

    broken.reads = 0
    monkeypatch.setattr(Digits, "__getitem__", broken)
    with pytest.raises(UserError, match="truncated"):
        launch.train(config | {"run": config["run"] | {"reader_threads": 0}}, str(tmp_path / "run"))
    monkeypatch.undo()
    with Store(tmp_path / "run" / "checkpoints") as store:
        assert store.newest_valid() >= 3


def test_a_run_starts_from_another_model(tmp_path, make_autoencoder_config, trained_autoencoder, capsys):
    """Mistake: parameters that are matched loosely: what does not fit raises, what is new is listed, the rest is equal."""
    config = make_autoencoder_config(**{"init_from": str(trained_autoencoder), "learning_rate": {"name": "constant", "peak": 1e-12},
                                        "ema.decay": 0.0, "run.steps": 1})
    state = launch.train(config, str(tmp_path / "run"))
    assert "none new" in capsys.readouterr().err
    given = loading.Opened(trained_autoencoder).everything("ema", make_mesh())
    np.testing.assert_allclose(state.params["encoder"]["conv_in"]["kernel"], given["encoder"]["conv_in"]["kernel"], atol=1e-6)
    with pytest.raises(UserError, match="do not fit.*conv"):
        launch.train(make_autoencoder_config(**{"init_from": str(trained_autoencoder), "model.width": 16}), str(tmp_path / "other"))
    with pytest.raises(UserError, match="init_from"):
        launch.prepare(make_autoencoder_config(init_from=str(tmp_path / "nowhere")))


def test_a_network_that_means_another_thing_is_refused(make_ldm_config, trained_ldm, trained_autoencoder):
    """Mistake: a network of noise taken for one of v: every shape fits, and nothing says that the first samples will be mush."""
    for name, other in {"prediction": {"name": "noise"}, "time_input": {"name": "log_snr"}}.items():
        with pytest.raises(UserError, match=f"was trained with {name} .* write --config.{name}='"):
            launch.prepare(make_ldm_config(trained_autoencoder, **{name: other, "init_from": str(trained_ldm)}))


@pytest.mark.slow
def test_new_parameters_are_listed(tmp_path, make_autoencoder_config, trained_autoencoder, capsys):
    """Mistake: a part that starts at random without a word: here the attention that the other model has not."""
    launch.train(make_autoencoder_config(**{"init_from": str(trained_autoencoder), "model.middle_attention": True, "run.steps": 1}),
                 str(tmp_path / "run"))
    assert "new: decoder/mid/attn_1/k/bias" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trace_is_written(tmp_path, make_autoencoder_config):
    """Mistake: a profile that is never stopped, and so never written."""
    launch.train(make_autoencoder_config(**{"run.profile_steps": (1, 2), "run.steps": 3}), str(tmp_path / "run"))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_report_drops_what_a_killed_run_wrote_too_much(tmp_path):
    """Mistake: doubled or torn lines after a restart."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 1}\n{"step": 4, "lo')
    report = Report(tmp_path, 2, 5, 8)
    report.scalars(3, {"loss": 1.5})
    report.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 3), (2, 2), (3, 1.5)]


def test_evaluations_previews_and_the_last_step(tmp_path, make_autoencoder_config):
    """Mistake: an evaluation that is not due or is forgotten, a last step that is not saved, a preview that nobody can open."""
    from PIL import Image

    config = make_autoencoder_config(**{"run.steps": 5, "run.save_every": 0, "run.evaluate_every": 2, "run.preview_every": 5,
                                        "run.preview_images": 4})
    launch.train(config, str(tmp_path / "run"))
    assert [line["step"] for line in lines(tmp_path / "run") if "held_out/psnr" in line] == [2, 4, 5]
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5]
    assert Image.open(tmp_path / "run" / "previews" / "preview_00000005.png").size == (4 * 32 + 3 * 2, 2 * 32 + 2)
    with Store(tmp_path / "run" / "checkpoints") as store:
        assert store.newest_valid() == 5
        assert store.record(5, "data")["next"] == 5


@pytest.mark.parametrize("seconds, text", [(0.4, "0s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m"), (float("inf"), "?")])
def test_clock(seconds, text):
    assert clock(seconds) == text
