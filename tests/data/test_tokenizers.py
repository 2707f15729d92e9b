"""Tokenizers and prompts against transformers' own padding and truncation, and against the brackets' rules."""

import json

import numpy as np
import pytest

from ldm_jax.core.errors import UserError
from ldm_jax.data.prompts import encode_prompts, spans
from ldm_jax.data.tokenizers import load_tokenizer
from tests.data.vocabularies import bert_folder, clip_folder

LONG = "a red cat, a red dog: a cat!"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("tokenizers")
    return {"clip": clip_folder(base / "clip"), "bang": clip_folder(base / "bang", pad="!"), "bert": bert_folder(base / "bert")}


@pytest.mark.parametrize("name", ["clip", "bang", "bert"])
def test_windows_are_those_of_transformers(folders, name):
    """Mistake: marks left out or twice, a text cut without its end, padding of another id, letter case kept, a "!" taken for
    the padding that is written so.
    """
    from transformers import BertTokenizer, CLIPTokenizer

    kind = "bert" if name == "bert" else "clip"
    theirs = {"clip": CLIPTokenizer, "bert": BertTokenizer}[kind].from_pretrained(folders[kind], local_files_only=True)
    ours = load_tokenizer(folders[name], kind, length=10)
    texts = [LONG, "", "A  Red\ncat!", "dogs"]
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=10).input_ids
    if name == "bang":  # the same, filled up otherwise
        wanted = [row[:row.index(theirs.eos_token_id) + 1] for row in wanted]
        wanted = [row + [0] * (10 - len(row)) for row in wanted]
    ids, weights, lost = encode_prompts(ours, texts, weighted=False)
    assert ids[:, 0].tolist() == wanted and (weights == 1).all() and weights.shape == (4, 10) and ids.dtype == np.int32
    assert (lost[0] != "") and lost[1:] == ["", "", ""] and ours.pad == {"clip": ours.eos, "bang": 0, "bert": 0}[name]


def test_what_a_window_loses_is_told(folders):
    """Mistake: a warning that names what was kept, or merges' marks in it; a long text that loses its end with "many"."""
    tokenizer = load_tokenizer(folders["clip"], "clip", length=10)
    assert encode_prompts(tokenizer, [LONG, "a cat"])[2] == ["a cat !", ""]
    ids, weights, lost = encode_prompts(tokenizer, [LONG, "(a:2) cat"], "many")
    assert ids.shape == (2, 2, 10) and weights.shape == (2, 20) and lost == ["", ""]
    inner = [i for window in ids[0] for i in window[1:] if i not in (tokenizer.bos, tokenizer.eos)]
    assert inner == tokenizer.ids(LONG)
    assert ids[1, 1].tolist() == [tokenizer.bos] + 9 * [tokenizer.eos]
    assert weights[1].tolist() == [1.0, 2.0] + 18 * [1.0]
    eight = "a a a a a a a a"
    assert encode_prompts(tokenizer, [eight], "many")[0].shape == (1, 1, 10) and encode_prompts(tokenizer, [eight])[2] == [""]
    assert encode_prompts(tokenizer, [""], "many")[0].shape == (1, 1, 10)


@pytest.mark.parametrize("prompt, expected", [
    ("a cat", [("a cat", 1.0)]), ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]), ("((red))", [("red", 1.21)]),
    ("[red]", [("red", 1 / 1.1)]), ("(red:1.3)", [("red", 1.3)]), ("(a (red:1.5) cat:2)", [("a ", 2.0), ("red", 3.0), (" cat", 2.0)]),
    (r"\(red\) \[a\] \\", [("(red) [a] \\", 1.0)]), ("(red", [("red", 1.1)]), ("[red", [("red", 1 / 1.1)]), ("red) ]", [("red) ]", 1.0)]),
    ("a: b", [("a: b", 1.0)]), ("at 12:30", [("at 12:30", 1.0)]), ("red:1.3)", [("red:1.3)", 1.0)]), ("([red])", [("red", 1.0)]),
    ("(red: -0.5 )", [("red", -0.5)]), ("", []), ("a\\", [("a\\", 1.0)])])
def test_brackets_are_weights(prompt, expected):
    """Mistake: factors that add, a weight on the wrong bracket, an escape that stays or that weighs, a time of day for a weight."""
    got = spans(prompt)
    assert [text for text, _ in got] == [text for text, _ in expected]
    np.testing.assert_allclose([w for _, w in got], [w for _, w in expected], rtol=1e-12)


@pytest.mark.parametrize("prompts, options, match", [
    ("a cat", {}, "a list of texts, got 'a cat'"), ([], {}, "got none"), ([1], {}, "a list of texts"),
    (["a"], dict(windows="all"), "one, many"),
    (["(red:1.2.3)"], {}, r"weight '1.2.3' is not a number"), (["(a:99999999)"], {}, "a weight of 1e\\+08")])
def test_prompts_that_cannot_be_are_refused(folders, prompts, options, match):
    """Mistake: one text taken for a list of letters; an infinite weight."""
    with pytest.raises(UserError, match=match):
        encode_prompts(load_tokenizer(folders["clip"], "clip"), prompts, **options)


def test_a_whole_tokenizer_file(folders, tmp_path):
    """Mistake: the padding and truncation that such a file keeps from its last use."""
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folders["bang"], local_files_only=True)
    theirs("a cat", padding="max_length", truncation=True, max_length=4)
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    ours, plain = load_tokenizer(tmp_path, "clip"), load_tokenizer(folders["bang"], "clip")
    assert ours == plain and all(ours.ids(text) == plain.ids(text) for text in (LONG, "a"))
    assert ours.decode(ours.ids("a cat, dog")) == "a cat , dog"


def damaged(folder, case):
    vocabulary = json.loads((clip_folder(folder) / "vocab.json").read_text("utf-8"))
    merges = (folder / "merges.txt").read_text("utf-8")
    if case == "ids":
        (folder / "vocab.json").write_text(json.dumps(vocabulary | {"a": 0}), "utf-8")
    if case == "marks":
        renamed = {token.replace("startoftext", "begin"): i for token, i in vocabulary.items()}
        (folder / "vocab.json").write_text(json.dumps(renamed), "utf-8")
    if case == "json":
        (folder / "vocab.json").write_text("{", "utf-8")
    if case == "list":
        (folder / "vocab.json").write_text("[]", "utf-8")
    if case == "merges":
        (folder / "merges.txt").write_text(merges + "q z\n", "utf-8")
    if case == "bytes":
        (folder / "merges.txt").write_bytes(b"#version\n\xff")
    if case in ("none", "whole", "empty"):
        (folder / "merges.txt").unlink()
    if case == "whole":
        (folder / "tokenizer.json").write_text('{"model": 1}', "utf-8")
    if case == "empty":
        (folder / "vocab.json").unlink()
    return folder


@pytest.mark.parametrize("case, match", [
    ("ids", "every id from 0 up once"), ("marks", r"lacks <\|startoftext"), ("json", "not JSON"), ("list", "a JSON object"),
    ("merges", "line 8: expected two tokens"), ("bytes", "not UTF-8 at byte 9"), ("none", "found vocab.json"), ("whole", "cannot be read"),
    ("empty", "found nothing")])
def test_damaged_files_are_refused_in_one_line(tmp_path, case, match):
    """Mistake: a traceback of the library's, or a vocabulary with two words of one id."""
    with pytest.raises(UserError, match=match) as caught:
        load_tokenizer(damaged(tmp_path / "clip", case), "clip")
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(tmp_path, folders):
    """Mistake: a name looked up on the network, or a vocabulary of the other kind taken."""
    for folder, kind, match in ((tmp_path / "openai", "clip", "no such folder"), (folders["bert"], "clip", "found vocab.txt"),
                                (folders["clip"], "bert", "found merges.txt, vocab.json"), (tmp_path, "t5", "expected one of clip, bert")):
        with pytest.raises(UserError, match=match):
            load_tokenizer(folder, kind)
    (tmp_path / "vocab.txt").write_text("[CLS]\n[SEP]\n[PAD]\n", "utf-8")
    with pytest.raises(UserError, match=r"lacks \[CLS\], \[SEP\], \[PAD\] or \[UNK\]"):
        load_tokenizer(tmp_path, "bert")
    (tmp_path / "vocab.txt").write_text("[CLS]\n[SEP]\n[PAD]\n[UNK]\n[CLS]\n", "utf-8")
    with pytest.raises(UserError, match="on two lines"):
        load_tokenizer(tmp_path, "bert")
