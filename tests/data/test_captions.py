"""Captions as token ids: bytes, word pieces made of the captions, and the maker of the field. Each test says which mistake it catches."""

import dataclasses
import json

import numpy as np
import pytest

from ldm_jax.core.choose import choose
from ldm_jax.core.errors import UserError
from ldm_jax.data.byte_tokenizer import ByteTokenizer
from ldm_jax.data.captions_field import Captions, captions, first_captions, fitted
from ldm_jax.data.fields import FIELDS
from ldm_jax.data.prompts import encode_prompts
from ldm_jax.data.shapes_world import Shapes
from ldm_jax.data.tokenizers import TOKENIZERS, kind_of, load_tokenizer, trained_tokenizer
from ldm_jax.data.trained_tokenizer import word_pieces
from ldm_jax.models.bert_text import BertSpec
from tests.data.vocabularies import bert_folder, clip_folder

BYTES = BertSpec(width=8, layers=1, heads=1, head_width=8, vocabulary=259, length=12, bos=256, eos=257, pad=258)
ODD = ["Zwölf kleine, blaue Kreise!", "naïve 漢字 100%", "q" * 120, "a red 😀"]


def test_bytes_are_their_own_ids():
    """Mistake: letters as code points, marks inside a text, a cut character that cannot be shown, half a surrogate that ends in a
    traceback.
    """
    tokenizer = ByteTokenizer(length=6)
    assert tokenizer.ids("é") == [195, 169] and tokenizer.decode([256, 195, 169, 257, 258]) == "é"
    ids, _, lost = encode_prompts(tokenizer, ["abé!", "", "abcdé"], weighted=False)
    assert ids[:, 0].tolist() == [[256, 97, 98, 195, 169, 257], [256, 257, 258, 258, 258, 258], [256, 97, 98, 99, 100, 257]]
    assert lost == ["!", "", "é"] and encode_prompts(tokenizer, ["abcé"])[2] == ["\ufffd"]
    with pytest.raises(UserError, match="no text at character 1"):
        tokenizer.ids("a\udc80")


def test_words_are_the_same_each_time():
    """Mistake: ids in the order of a hash table, which is another in each process and each map; more words than asked for; marks
    elsewhere than at 0 to 3; letters of the captions that their own tokenizer does not know.
    """
    texts = first_captions(Shapes("train"), 60) + ODD
    words = word_pieces(texts, 96)
    assert all(word_pieces(texts, 96) == words for _ in range(3)) and word_pieces(texts[::-1], 96) == words
    assert len(words) <= 96 and len(set(words)) == len(words) and words[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = trained_tokenizer(256, 60, lambda number: texts[:number], length=32)
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 2, 3) and tokenizer.vocabulary <= 256
    assert all(1 not in tokenizer.ids(text) and tokenizer.decode(tokenizer.ids(text)) == text for text in texts[:60])
    assert tokenizer.ids(ODD[0])[-1] == 1, "an unknown sign is [UNK], not an error"


def test_a_vocabulary_is_read_again_by_us_and_by_transformers(tmp_path):
    """Mistake: a file whose lines are not the ids, or whose words the stock tokenizer splits otherwise."""
    from transformers import BertTokenizer

    texts = first_captions(Shapes("train"), 40) + ODD
    made = trained_tokenizer(128, 100, lambda number: texts, length=16)
    (tmp_path / "vocab.txt").write_text("\n".join(made.words()) + "\n", "utf-8")
    again = load_tokenizer(tmp_path, kind_of(tmp_path), 16)
    theirs = BertTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again == made and again.digest == made.digest
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=16).input_ids
    assert encode_prompts(made, texts, weighted=False)[0][:, 0].tolist() == wanted
    (tmp_path / "vocab.txt").write_text("\n".join([*made.words()[:-2], *made.words()[:-3:-1]]) + "\n", "utf-8")
    assert load_tokenizer(tmp_path, "bert", 16).digest != made.digest, "the same words, two of them exchanged"


def test_captions_are_cut_and_filled():
    """Mistake: brackets of a caption as weights, a caption without its end, another window or padding than the encoder's, a description
    that names a folder (a run that is moved would be another).
    """
    maker = choose(FIELDS, dict(name="captions", tokenizer=dict(name="bytes")), "here", spec=BYTES, field="tokens", factor=4)
    assert isinstance(maker, Captions) and maker.gives == ("tokens",)
    row = maker({"caption": "(ab:2)"}, None)["tokens"]
    assert row.dtype == np.int32 and row.tolist() == [256, 40, 97, 98, 58, 50, 41, 257, 258, 258, 258, 258]
    assert maker({"caption": "x" * 40})["tokens"].tolist() == [256] + [120] * 10 + [257]
    told = maker.describe()
    assert json.loads(json.dumps(told)) == told and told["length"] == 12 and "opened" not in told
    assert captions(dict(name="bytes"), BYTES, field="tokens_2").gives == ("tokens_2",)


def test_what_cannot_be_read_is_told_in_one_line(tmp_path):
    """Mistake: a record without a caption taken for the empty text; a misfit found by the device as another letter."""
    maker = captions(dict(name="bytes"), BYTES)
    for record in ({}, {"caption": None}):
        with pytest.raises(UserError, match="caption: this record has none"):
            maker(record)
    for change in (dict(bos=0), dict(eos=258), dict(vocabulary=258, pad=0), dict(pad=0)):
        with pytest.raises(UserError, match=r"writes bos=256, eos=257, pad=258, vocabulary=259 into its conditioner"):
            captions(dict(name="bytes"), dataclasses.replace(BYTES, **change))
    fitted(ByteTokenizer(), dataclasses.replace(BYTES, vocabulary=300))
    with pytest.raises(UserError, match="reads no text of the name tokens"):
        captions(dict(name="bytes"))
    with pytest.raises(UserError, match="'letters': expected one of bytes, folder, trained"):
        captions(dict(name="letters"), BYTES)
    with pytest.raises(UserError, match="kept with the run"):
        captions(dict(name="trained"), BYTES)
    with pytest.raises(UserError, match="folder is empty"):
        captions(dict(name="folder", folder=""), BYTES)
    for texts, words, match in (([], 64, "there are none"), ([" "], 64, "hold no word"), (["a"], 8, "expected 16 words")):
        with pytest.raises(UserError, match=match):
            word_pieces(texts, words)
    bare = type("Bare", (list,), {"name": "bare"})([{"image": 0}])
    with pytest.raises(UserError, match="bare has no captions"):
        first_captions(bare, 3)


def test_a_folder_says_its_kind(tmp_path):
    """Mistake: a BERT vocabulary opened as CLIP's because nobody said what it is."""
    bert, clip = bert_folder(tmp_path / "bert"), clip_folder(tmp_path / "clip")
    from transformers import BertTokenizer

    BertTokenizer.from_pretrained(bert, local_files_only=True).save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "vocab.txt").unlink(missing_ok=True)
    kinds = {name: choose(TOKENIZERS, dict(name="folder", folder=str(tmp_path / name)), "here").kind for name in ("bert", "clip", "whole")}
    assert kinds == {"bert": "bert", "clip": "clip", "whole": "bert"} and bert.is_dir() and clip.is_dir()
