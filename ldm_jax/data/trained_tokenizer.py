"""A vocabulary of word pieces, made of captions: the same captions give the same words and ids, on any machine and in any process.

Text is read as BERT's tokenizer reads it (lower case, accents left out, split at spaces and signs), and the result is a vocab.txt that
transformers' BertTokenizer loads. The merges are the library's (most frequent pair first). Its trainer gives the letters their ids in
the order of a hash table, other ones in each process; they are handed to it here, sorted.
"""

import collections
from collections.abc import Sequence

from ldm_jax.core.errors import UserError

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # ids 0 to 3
LEAST = 16  # words: the marks and some letters
LETTERS = 4  # letters are at most this part of the words; each may take two ids, as a word's beginning and inside one
INSIDE = "##"


def word_pieces(captions: Sequence[str], vocabulary: int) -> list[str]:
    """The words in the order of their ids, at most `vocabulary` of them: MARKS, letters, then pieces in the order of their merges.

    Letters are the most frequent ones, a quarter of the vocabulary at most; a word with another letter is [UNK].

    Raises:
      UserError: no captions, none with a letter, or a vocabulary of fewer than 16 words.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.trainers import WordPieceTrainer

    if vocabulary < LEAST:
        raise UserError(f"vocabulary={vocabulary}: expected {LEAST} words or more")
    backend = Tokenizer(WordPiece(unk_token=MARKS[1], continuing_subword_prefix=INSIDE))
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    split = backend.pre_tokenizer.pre_tokenize_str
    counts = collections.Counter()
    for caption in captions:
        counts.update(word for word, _ in split(backend.normalizer.normalize_str(caption)))
    if not counts:
        raise UserError(f"a vocabulary is made of captions, and {'these hold no word' if captions else 'there are none'}")
    letters = collections.Counter()
    for word, number in counts.items():
        for letter in word:
            letters[letter] += number
    kept = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[: vocabulary // LETTERS])
    words = [word for word in counts if set(word) <= set(kept)]
    inner = sorted({INSIDE + letter for word in words for letter in word[1:]})
    outer = sorted({letter for word in words for letter in word})
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=[*MARKS, *outer, *inner], initial_alphabet=outer,
                               limit_alphabet=len(outer), continuing_subword_prefix=INSIDE, show_progress=False)
    backend.train_from_iterator((" ".join([word] * counts[word]) for word in words), trainer)
    ids = backend.get_vocab()
    return sorted(ids, key=ids.get)
