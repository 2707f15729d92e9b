"""Small vocabularies in the published files' layouts, for tests."""

import json

LETTERS = "abcdefghijklmnopqrstuvwxyz,()[]:.!"
MERGES = ("c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "red", "dog", "##s", ",")


def clip_folder(folder, pad: str = ""):
    """vocab.json and merges.txt, as OpenAI's: "!" is id 0, the marks are the last ids."""
    letters = ["!"] + [letter for letter in LETTERS if letter != "!"]
    tokens = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in MERGES]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", "utf-8")
    if pad:
        (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": pad}}), "utf-8")
    return folder


def bert_folder(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    return folder
