"""Runs on captions: the tokenizer that a run keeps, and text encoders of others in a new run. Each test says which mistake it catches."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ldm_jax as ldm
from ldm_jax import choices, data_choices, launch, vocabularies
from ldm_jax.checkpoint.store import Store
from ldm_jax.config_file import plain
from ldm_jax.config_tree import from_json
from ldm_jax.core.errors import UserError
from ldm_jax.core.trees import paths
from ldm_jax.data.byte_tokenizer import ByteTokenizer
from ldm_jax.data.captions_field import captions
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.data.tokenizers import trained_tokenizer
from ldm_jax.interop.diffusers_texts import write_bert
from ldm_jax.interop.places import write
from ldm_jax.interop.text_names import bert_places
from ldm_jax.loading import Opened
from ldm_jax.models.bert_text import BertSpec
from ldm_jax.publishing import publish
from ldm_jax.text_encoders import encoders_of, open_encoders
from ldm_jax.tokenized import by_field, open_tokenizers
from ldm_jax.train.sharding import make_mesh
from tests.conftest import tiny_ldm
from tests.data.vocabularies import clip_folder

WORDS = dict(name="bert_text", width=16, layers=1, heads=2, head_width=8, vocabulary=160, length=20, bos=2, eos=3, pad=0, logits=False,
             trained=False, drop=0.1)
LEVELS = (dict(width=8, blocks=1, attention="transformer", heads=2, depth=1, down="none"),)
PROMPTS = ["a red circle at the top", "a small cross"]


def text_config(encoder, tokenizer=None, **changes):
    """A tiny model of the shapes' captions, in pixels. encoder: a folder."""
    fields = dict(tokens=dict(name="captions", tokenizer=tokenizer or dict(name="trained", vocabulary=160, records=50)))
    data = {"data.source": dict(name="shapes", resolution=8, records=64, world=0), "data.resolution": 8, "data.fields": fields}
    return plain(tiny_ldm("pixels", **{"conditioner": WORDS, "network.levels": LEVELS, "run.steps": 1,
                                       "text_encoders": str(encoder)} | data | changes))


def no_steps(patch):
    """Runs save the state that they begin with, as if they had made a step."""
    def run(stage, state, frozen, job):
        state = dataclasses.replace(state, step=state.step + 1)
        job.save(state, int(state.step), {})
        return state

    patch.setattr(launch.loop, "run", run)


@pytest.fixture
def unstepped(monkeypatch):
    no_steps(monkeypatch)


def encoder_folder(folder, section, seed=0):
    """A folder of diffusers' LDMBertModel with random numbers for a section's encoder, and its tree in our names."""
    encoder = next(encoder for _, encoder in encoders_of(choices.conditioner(section, "here", 0, 1)))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), np.zeros((1, 3), np.int32)))["params"]
    rng = np.random.default_rng(seed)
    tree = {path: rng.normal(0, 0.05, leaf.shape).astype(np.float32) for path, leaf in paths(shapes)}
    folder.mkdir()
    theirs = {name: np.ascontiguousarray(array) for name, array in write(bert_places(encoder, "ldmbert"), tree)}
    save_file(theirs, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(write_bert(dataclasses.asdict(encoder.spec))))
    return tree


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the folder of a run with a tokenizer of its own captions and an encoder of a folder that is gone, the encoder's arrays)."""
    base = tmp_path_factory.mktemp("text")
    tree = encoder_folder(base / "bert", WORDS)
    with pytest.MonkeyPatch.context() as patch:
        no_steps(patch)
        launch.train(text_config(base / "bert"), str(base / "run"))
    shutil.rmtree(base / "bert")
    return base / "run", tree


def test_a_run_keeps_its_tokenizer(trained, unstepped, monkeypatch, tmp_path):
    """Mistakes: a resumed run whose tokenizer is made anew; one that is not in the data's fingerprint; a model, a bundle or a moved run
    that does not know its own words; an evaluation on other ids than the training's.
    """
    run, _ = trained
    kept = json.loads((run / "tokenizer" / "kept.json").read_text())
    model = ldm.load(run)
    record = Store(run / "checkpoints", read_only=True).record(1, "data")["fingerprint"]["fields"]["tokens"]
    assert model.tokenizers[0].digest == kept["digest"] == record["digest"] and model.tokenizers[0].length == WORDS["length"]
    assert 1 not in model.tokenizers[0].ids("a red circle at the top left")

    def never(*args, **more):
        raise AssertionError("a tokenizer is made anew")

    monkeypatch.setitem(vocabularies.TOKENIZERS, "trained", never)
    shutil.copytree(run, tmp_path / "moved")
    config = json.loads((run / "config.json").read_text())
    launch.train(from_json(config) | {"run": from_json(config["run"]) | {"steps": 2}}, str(tmp_path / "moved"))
    assert publish(tmp_path / "moved", tmp_path / "bundle")
    for folder in (tmp_path / "moved", tmp_path / "bundle"):
        assert open_tokenizers(model.experiment.conditioner, Opened(folder).tokenizers) == model.tokenizers
    told = model.condition(prompts=PROMPTS)
    assert np.abs(told.given.tokens - told.null.tokens).max() > 1e-3
    maker = data_choices.fields_of(from_json(config), model.experiment.conditioner, 1, by_field(model))["tokens"]
    assert maker.describe() == record


def test_an_encoder_is_that_of_its_folder(trained):
    """Mistakes: parameters that stay as they were drawn, in the model or in its average; a resumed run (above) that reads the folder
    again.
    """
    run, tree = trained
    for weights in ("ema", "raw"):
        found = dict(paths(Opened(run).everything(weights, make_mesh())["conditioner"]))
        assert found.keys() == {f"encoder/{path}" for path in tree}
        assert all(np.array_equal(found[f"encoder/{path}"], array) for path, array in tree.items())


def test_a_run_that_never_finished_a_save_reads_its_encoder(unstepped, tmp_path):
    """Mistake: a run that was killed in its first save begins again with an encoder as it was drawn, and keeps that frozen."""
    section = WORDS | dict(bos=256, eos=257, pad=258, vocabulary=259)
    tree = encoder_folder(tmp_path / "bert", section)
    (tmp_path / "run" / "checkpoints" / "1.unfinished").mkdir(parents=True)
    launch.train(text_config(tmp_path / "bert", dict(name="bytes"), conditioner=section), str(tmp_path / "run"))
    found = dict(paths(Opened(tmp_path / "run").everything("ema", make_mesh())["conditioner"]))
    assert all(np.array_equal(found[f"encoder/{path}"], array) for path, array in tree.items())


@pytest.mark.parametrize("named, change, match", [
    ("bert", dict(layers=2, width=32), "has width=32, layers=2; to take it write width=16, layers=1 into config.conditioner"),
    ("bert,bert", {}, "2 folders for 1 text encoders"), ("words", {}, "not a folder of diffusers"), ("gone", {}, "no such folder"),
    ("bert", dict(reads="boxes_tokens"), "the conditioner reads no text"), ("clip", {}, r"CLIPTextModel: expected LDMBertModel"),
    ("short", {}, "1 tensors differ: model.layer_norm.bias"), ("pipeline", {}, "a whole pipeline .* as .*/pipeline/text_encoder")])
def test_other_encoders_are_refused(tmp_path, named, change, match):
    """Mistake: tensors of another architecture taken, or left as they were drawn, in silence."""
    encoder_folder(tmp_path / "bert", WORDS)
    (tmp_path / "words").mkdir()
    for copy in ("clip", "short", "pipeline"):
        shutil.copytree(tmp_path / "bert", tmp_path / copy)
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    tensors = load_file(tmp_path / "short" / "model.safetensors")
    save_file({name: array for name, array in tensors.items() if name != "model.layer_norm.bias"}, tmp_path / "short" / "model.safetensors")
    conditioner = choices.conditioner(WORDS | change, "here", 0, 1)
    with pytest.raises(UserError, match=match) as caught:
        open_encoders(",".join(str(tmp_path / name) for name in named.split(",")), conditioner)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="a base that brings its own"):
        open_encoders("bert", conditioner, lora="a LoRA")


def test_a_tokenizer_that_is_gone_or_changed_is_told(tmp_path):
    """Mistakes: a run that goes on with other words; a model loaded with them; the words of an earlier start kept for a new run."""
    run, config = tmp_path / "run", text_config("")
    vocabularies.keep(config, vocabularies.open_tokenizers(config, Shapes("train", records=64)), run)
    words = (run / "tokenizer" / "vocab.txt").read_text().splitlines()
    (run / "tokenizer" / "vocab.txt").write_text("\n".join([*words[:-2], *words[:-3:-1]]) + "\n")
    for use in (lambda: vocabularies.open_tokenizers(config, run=run),
                lambda: open_tokenizers(choices.conditioner(WORDS, "here", 0, 1), vocabularies.kept_in(config, run))):
        with pytest.raises(UserError, match="has changed since it was kept"):
            use()
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(UserError, match="tokenizer is gone"):
        vocabularies.open_tokenizers(config, run=run)
    assert vocabularies.kept_in(config, run) == ()
    for animal in ("cat", "dog"):
        opened = {"tokens": trained_tokenizer(64, 8, lambda number: [f"a {animal}"] * number)}  # noqa: B023 (used at once)
        vocabularies.keep(config, opened, tmp_path / "new")
    assert vocabularies.open_kept(tmp_path / "new" / "tokenizer").digest == opened["tokens"].digest


def test_a_folders_tokenizer_is_copied(tmp_path):
    """Mistake: a run that needs the folder which its config named; bytes for which files are looked for; a
    folder that is emptied before it is copied."""
    vocabulary = clip_folder(tmp_path / "clip", pad="!")
    config = text_config("", dict(name="folder", folder=str(vocabulary)))
    opened = vocabularies.open_tokenizers(config)
    vocabularies.keep(config, opened, tmp_path / "run")
    shutil.rmtree(vocabulary)
    own = text_config("", dict(name="folder", folder=str(tmp_path / "run" / "tokenizer")))
    vocabularies.keep(own, opened, tmp_path / "run")
    again = vocabularies.open_tokenizers(config, run=tmp_path / "run")["tokens"]
    assert again == opened["tokens"] and again.kind == "clip" and again.digest == opened["tokens"].digest and again.pad == 0
    config = text_config("", dict(name="bytes"))
    opened = vocabularies.open_tokenizers(config)
    vocabularies.keep(config, opened, tmp_path / "bytes")
    assert not (tmp_path / "bytes").exists()
    kept = vocabularies.kept_in(config, tmp_path / "bytes")
    section = WORDS | dict(bos=256, eos=257, pad=258, vocabulary=259)
    conditioner = choices.conditioner(section, "here", 0, 1)
    assert open_tokenizers(conditioner, kept)[0].ids("a") == [97] and open_tokenizers(conditioner, kept)[0].length == 20


def test_cut_captions_are_counted(capsys):
    """Mistake: a window that is too short for the captions, in silence; one line for each caption; marks not counted."""
    source, opened = Shapes("train", resolution=8, records=64), {"tokens": ByteTokenizer()}
    longest = max(len(source.caption(i)) + 2 for i in range(64))
    spec = BertSpec(vocabulary=259, bos=256, eos=257, pad=258, length=longest)
    for length in (longest, longest - 1):
        maker = captions({}, dataclasses.replace(spec, length=length), ByteTokenizer())
        vocabularies.say_cut({"tokens": maker}, opened, source)
    said = capsys.readouterr().err.strip()
    assert said.startswith("tokens: 1 of the first 64 captions are longer than the window") and said.count("\n") == 0
    assert f"length={longest} " in said


@pytest.mark.slow
def test_clip_states_are_those_of_transformers(tmp_path, unstepped):
    """Mistake: states of another layer, windows of another tokenizer, from the folders to a prompt; the wrong half of a CLIP."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    from tests.interop import tiny
    from tests.nn.parity import agree

    theirs, size = tiny.clip(32), len(tiny.tokenizer())
    theirs.save_pretrained(tmp_path / "clip")
    vocabulary = clip_folder(tmp_path / "vocabulary")
    section = dict(name="clip_text", width=32, layers=2, heads=2, vocabulary=size, length=tiny.LENGTH, bos=size - 2, eos=size - 1,
                   pad=size - 1, trained=False, drop=0.1)
    run, text = tmp_path / "run", dict(name="folder", folder=str(vocabulary))
    launch.train(text_config(tmp_path / "clip", text, conditioner=section), str(run))
    with torch.no_grad():
        ids = tiny.tokenizer()(PROMPTS, padding="max_length", max_length=tiny.LENGTH, truncation=True).input_ids
        states = theirs(torch.tensor(ids)).last_hidden_state
    agree("tokens", np.asarray(ldm.load(run).condition(prompts=PROMPTS).given.tokens), states)
    layers = dict(num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=128)
    both = transformers.CLIPModel(transformers.CLIPConfig(text_config=theirs.config.to_dict(), projection_dim=6,
                                                          vision_config=layers | dict(image_size=12, patch_size=4)))
    both.save_pretrained(tmp_path / "both")
    table = open_encoders(str(tmp_path / "both"), choices.conditioner(section, "here", 0, 1))["conditioner/encoder/token_embedding"]
    assert np.array_equal(np.asarray(table), both.text_model.embeddings.token_embedding.weight.detach().numpy())
