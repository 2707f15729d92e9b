"""From an embedder's run to samples: load_clip, the database of it, and a model that is told neighbours or a picture's own embedding."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import ldm_jax as ldm
from ldm_jax import embedded, launch, output
from ldm_jax.config_file import plain
from ldm_jax.core.errors import UserError
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.embedding_choices import with_embedders
from ldm_jax.models.condition import ClassConditioner
from ldm_jax.ops.images import write_png
from ldm_jax.publishing import publish
from ldm_jax.retrieved import Retrieval, retrieval_of
from ldm_jax.said import Said
from tests import runs
from tests.conftest import tiny_embedding, tiny_ldm, updated
from tests.untrained import save_untrained

TEST = Shapes("test", 8, 40)
TEXTS = ("a red circle on the left", "a small blue cross at the top")
LEVELS = (dict(width=8, blocks=1, attention="none", heads=1, depth=1, down="conv"),
          dict(width=16, blocks=1, attention="transformer", heads=2, depth=1, down="none"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """The run of an embedder as it was drawn, its average not as its parameters."""
    folder = tmp_path_factory.mktemp("embedder") / "run"
    save_untrained(plain(tiny_embedding()), folder, noise=0.5)
    return folder


@pytest.fixture(scope="module")
def clip(embedder):
    return ldm.load_clip(embedder)


@pytest.fixture(scope="module")
def database(clip, embedder):
    folder = embedder.parent / "database"
    embedded.write_database(clip, plain(tiny_embedding()), folder, 5)
    return folder


@pytest.fixture(scope="module")
def config(database):
    """Of a model in pixels that is told three neighbours."""
    config = tiny_ldm("pixels", conditioner=dict(name="tokens", width=8, count=3, drop=0.1, into="tokens"))
    config.data = tiny_embedding().data
    config.data.fields = dict(embeddings=dict(name="neighbours", database=str(database), k=3, embedder=""))
    config.network.levels = LEVELS
    return config


@pytest.fixture(scope="module")
def model(config, clip):
    """As much of a model as retrieval looks at."""
    job = launch.prepare(plain(config))
    return SimpleNamespace(experiment=job.experiment, manifest=SimpleNamespace(config=with_embedders(job.config, job.fields)))


def shown(count: int) -> np.ndarray:
    return np.stack([TEST[i]["image"] for i in range(count)])


def test_a_database_is_refused_before_the_work(clip, embedder, tmp_path):
    """Mistake: a misspelt key passed over in the making of a database, one written to a folder named gs:; other layouts of an embedder."""
    config = plain(tiny_embedding())
    for changes, out, words in (({"sed": 1}, tmp_path / "a", "sed"), ({}, "gs://bucket/a", "--out=gs://bucket/a: remote paths")):
        with pytest.raises(UserError, match=words):
            embedded.write_database(clip, config | changes, out, 5)
    for form in ("diffusers", "compvis"):
        with pytest.raises(UserError, match="an embedder has no layout but our own: export it as a bundle"):
            publish(embedder, tmp_path / "x.safetensors", form)
    assert not list(tmp_path.iterdir())


def test_what_a_text_lost_is_told(clip, capsys):
    """Mistake: a long text cut in silence, so that its neighbours are those of its beginning."""
    clip.texts([TEXTS[0]])
    assert "too long" not in capsys.readouterr().err
    clip.texts([TEXTS[0] + " and a small blue cross at the bottom" * 9])
    assert "too long for the embedder, this was left out: '" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bundle_is_the_same_embedder(embedder, clip, tmp_path):
    """Mistake: a bundle without its tokenizer, or of another digest than its run's, whose databases it would be refused for."""
    publish(embedder, tmp_path / "bundle")
    again = ldm.load_clip(tmp_path / "bundle")
    assert again.digest == clip.digest
    np.testing.assert_array_equal(again.texts(TEXTS), clip.texts(TEXTS))


def test_a_run_is_loaded_as_a_clip_is(embedder, clip, tmp_path):
    """Mistake: the raw weights for the average, one encoder's parameters on the other, captions by another tokenizer, a
    traceback for what is none."""
    job = launch.prepare(plain(tiny_embedding()))
    tokens = np.stack([job.fields["tokens"]({"caption": text})["tokens"] for text in TEXTS])
    params = {place: clip.encoders[name][1] for name, place in (("text", "text_encoder"), ("vision", "image_encoder"))}
    params["log_scale"] = np.float32(0)
    pairs = jax.jit(job.experiment.network.apply)({"params": params}, shown(2) / np.float32(127.5) - 1, tokens)
    np.testing.assert_allclose(clip.images(shown(2)), pairs.images, atol=1e-5)
    np.testing.assert_allclose(clip.texts(TEXTS), pairs.texts, atol=1e-5)
    assert ldm.load_clip(embedder / "checkpoints" / "1", "raw").digest != clip.digest and clip.width == 8
    for call, words in ((lambda: ldm.load(embedder), "this is an embedder .* ldm.load_clip"),
                        (lambda: ldm.load_clip(tmp_path / "none"), "does not exist: expected a run of task embedding")):
        with pytest.raises(UserError, match=words):
            call()


def test_a_config_keeps_which_embedder_it_was_trained_with(config, clip):
    """Mistake: a run that goes on, or is sampled, with the embeddings of another embedder; a maker of other fields that is changed."""
    job = launch.prepare(plain(config))
    kept = with_embedders(job.config, job.fields | {"other": object()})
    assert kept["data"]["fields"]["embeddings"]["embedder"] == clip.digest and job.config["data"]["fields"]["embeddings"]["embedder"] == ""
    assert launch.prepare(kept).fingerprint == job.fingerprint and with_embedders(kept, {}) == kept


@pytest.mark.parametrize("change, words", [
    ({"conditioner.width": 16}, r"config.conditioner: embeddings: expected finite numbers \[B, k, 16\], got float32 \[1, 3, 8\]"),
    ({"data.fields.embeddings.embedder": "ab" * 32}, "its embeddings are of the embedder of digest .* and this one's is abababababab"),
    ({"data.fields.embeddings.database": "/nowhere"}, "database /nowhere: no database; expected a folder that"),
    ({"data.fields.embeddings.k": 6}, "k=6: the database .* keeps 5 neighbours"),
    ({"data.source.records": 41}, "it was made of other records than shapes's 41 of this split"),
])
def test_a_config_that_does_not_fit_its_database(config, change, words):
    """Mistake: found out in the middle of a run, or never."""
    with pytest.raises(UserError, match=words) as found:
        launch.prepare(plain(updated(config.copy_and_resolve_references(), change)))
    assert "\n" not in str(found.value)


def test_samples_are_told_the_neighbours_of_their_own_text(model, embedder, clip, database):
    """Mistake: image i told another's neighbours, neighbours by the image encoder of a text, records that samples.json names wrongly."""
    opened = ldm.open_database(database)
    found = ldm.neighbours(clip, opened, texts=TEXTS, k=3)
    np.testing.assert_array_equal(found.records, np.argsort(-(clip.texts(TEXTS) @ opened.embeddings["train"].T))[:, :3])
    np.testing.assert_array_equal(found.embeddings, opened.embeddings["train"][found.records])
    assert (found.records[0] != found.records[1]).any()
    near = Retrieval(str(embedder), str(database), texts=TEXTS, k=3)
    np.testing.assert_array_equal(near.told(model, 3), found.embeddings[[0, 1, 0]])
    assert near.page == {"embedder": clip.digest, "database": opened.digest}
    for i in range(3):
        entry = {"condition": {"label": None}}
        near.note(i, entry)
        assert entry["condition"] == {"label": None, "neighbours_of_prompt": TEXTS[i % 2], "neighbours": found.records[i % 2].tolist()}


def test_pictures_tell_their_neighbours_or_themselves(model, embedder, clip, database, tmp_path):
    """Mistake: a picture's own embedding where its neighbours are asked for, or the other way round; pictures of two sizes joined."""
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    write_png(tmp_path / "0.png", TEST[0]["image"])
    write_png(tmp_path / "1.png", Shapes("test", 12, 40)[1]["image"])
    own = clip.images(shown(1))
    near = Retrieval(str(embedder), str(database), images=tuple(files), k=2)
    varied = Retrieval(str(embedder), variations=tuple(files))
    train = ldm.open_database(database).embeddings["train"]
    told = near.told(model, 3)
    assert told.shape == (3, 2, 8)
    np.testing.assert_array_equal(told[0], train[ldm.open_database(database).nearest(own, 2)[0][0]])
    np.testing.assert_array_equal(told[0], told[2])
    assert varied.told(model, 3).shape == (3, 1, 8)
    np.testing.assert_allclose(varied.told(model, 3)[2, 0], own[0], atol=1e-6)
    assert varied.page.keys() == {"embedder", "variation_of_0", "variation_of_1"}
    entry = {}
    varied.note(1, entry)
    assert entry == {"condition": {"variation_of": "1.png"}}


def test_what_cannot_be_retrieved_is_told(model, embedder, database, trained_ldm, tmp_path):
    """Mistake: noise as a condition, from a model that reads none, another embedder's space, or a database that is not there."""
    save_untrained(plain(tiny_embedding(seed=1)), tmp_path / "other")
    told = dict(embedder=str(embedder), database=str(database), texts=TEXTS)
    narrow = SimpleNamespace(manifest=SimpleNamespace(config={"data": {}}),
                             experiment=SimpleNamespace(conditioner=model.experiment.conditioner.clone(width=4)))
    for change, of, words in (({"embedder": str(tmp_path / "other")}, model, "this model was trained on embeddings of the embedder of"),
                              ({"database": "/nowhere"}, model, "database /nowhere: no database"),
                              ({"k": 41}, model, "k=41: it has 40 records"),
                              ({"embedder": str(trained_ldm)}, model, "expected a model of task embedding, .* is of task diffusion"),
                              ({}, narrow, "its embeddings have 8 numbers, and this model reads 4"),
                              ({"texts": (), "images": ("/nowhere.png",)}, model, "--neighbours_of_image=/nowhere.png: no such file")):
        with pytest.raises(UserError, match=words) as found:
            Retrieval(**told | change).told(of, 2)
        assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="this model does not read embeddings; it reads label"):
        Retrieval(**told).check(SimpleNamespace(experiment=SimpleNamespace(conditioner=ClassConditioner(10, 8))))
    with pytest.raises(UserError, match="its embeddings are of the embedder"):
        ldm.neighbours(ldm.load_clip(tmp_path / "other"), ldm.open_database(database), texts=TEXTS)


@pytest.mark.parametrize("given, words", [
    (("", "", {"texts": ["a"]}, None), "--neighbours_of_prompt: give --embedder too"),
    (("e", "", {"images": ["a"]}, None), "--neighbours_of_image: give --database too"),
    (("e", "d", {"texts": ["a"], "variations": ["b"]}, None), "--neighbours_of_prompt and --variation_of: expected one of them"),
    (("e", "d", {"variations": ["b"]}, None), "--database: --variation_of tells the picture's own"),
    (("e", "", {"variations": ["b"]}, 3), "--k: --variation_of"), (("e", "", {}, None), "--embedder belongs to"),
    (("", "", {}, 4), "--k belongs to"), (("e", "d", {"texts": ["a"]}, 0), "--k=0: expected a number of neighbours"),
])
def test_flags_that_do_not_go_together(given, words):
    """Mistake: a flag that nothing reads, or one of two wishes that wins in silence."""
    with pytest.raises(UserError, match=words):
        retrieval_of(*given)
    assert retrieval_of("", "", {"texts": []}, None) is None


@pytest.mark.slow
def test_training_is_told_neighbours_and_samples_are(config, clip, embedder, database, tmp_path):
    """Mistake: fields that never reach the step, a run whose kept embedder its own config is refused by when it is resumed, flags that
    never reach the samples."""
    for steps in (1, 2):
        launch.train(plain(updated(config.copy_and_resolve_references(), {"run.steps": steps})), str(tmp_path / "run"))
    model = ldm.load(tmp_path / "run")
    assert model.manifest.config["data"]["fields"]["embeddings"]["embedder"] == clip.digest
    near = Retrieval(str(embedder), str(database), texts=TEXTS, k=3)
    request = output.Request(3, seed=4, batch_size=3, sampling={"steps": 2, "guidance": 2.0}, said=Said(retrieval=near))
    images = output.sample_to(model, request, str(tmp_path / "out"))
    told = model.condition(embeddings=near.told(model, 3))
    np.testing.assert_array_equal(images, model.sample(told, seeds=[4, 5, 6], batch_size=3, steps=2, guidance=2.0))
    page = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert page["embedder"] == clip.digest and page["images"][1]["condition"]["neighbours_of_prompt"] == TEXTS[1]


@pytest.mark.slow
def test_an_embedder_is_trained_measured_and_previewed(tmp_path):
    """Mistake: a stage that the loop cannot run: a preview that is no picture, an evaluation without its sums."""
    launch.train(plain(tiny_embedding(**{"run.steps": 2, "run.evaluate_every": 2, "run.preview_every": 2, "run.save_every": 2})),
                 str(tmp_path / "run"))
    assert {"held_out/loss", "held_out/found"} <= runs.lines(tmp_path / "run")[-1].keys()
    assert (tmp_path / "run" / "previews" / "preview_00000002.png").exists()
    assert ldm.load_clip(tmp_path / "run").texts(TEXTS).shape == (2, 8)
