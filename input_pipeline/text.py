"""Text as token ids: the vocabulary, and what a sentence may say of attributes.

A vocabulary is WordPiece over a list of words: those of the schema's phrases and of the sentences that a data
set's captions are made of, then those of its training captions. Nothing is trained, sampled or downloaded, so
that every host, every resumed run and every later evaluation has the same ids. A word that is not in the list
is spelled by the pieces that are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from input_pipeline.errors import DataError
from input_pipeline.schema import AttributeSchema

Captions = Literal["none", "source", "phrases"]

# The ids that mean the same in every vocabulary. A mirrored image swaps LEFT and RIGHT.
PADDING, UNKNOWN, LEFT, RIGHT = range(4)

# So many words of a data set's captions are worth keeping: more would fill any vocabulary.
MOST_WORDS = 65_536

_CHARACTERS = string.ascii_lowercase + string.digits
_FIXED = ("[PAD]", "[UNK]", "LEFT", "RIGHT", *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS))

# Lower case, no accents, no punctuation. The side words turn to capitals, which no other text can hold, so
# that each is a token of its own and never a piece of a longer word ("bright", "leftover").
_NORMALISER = normalizers.Sequence(
    [
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex("[^a-z0-9]+"), " "),
        normalizers.Replace(Regex(r"\bleft\b"), "LEFT"),
        normalizers.Replace(Regex(r"\bright\b"), "RIGHT"),
    ]
)


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Which captions a run reads, and how they become token ids.

    Attributes:
      captions: "none"; "source", the data set's own; or "phrases", a sentence made of the phrases of the
        attributes that are known to be present, for every data set.
      length: T, the ids per example. Longer texts are cut, shorter ones padded.
      vocabulary: every id is below it. A smaller one leaves out the rarest words.

    Raises:
      DataError: a value out of range.
    """

    captions: Captions = "none"
    length: int = 32
    vocabulary: int = 512

    def __post_init__(self) -> None:
        if self.captions not in get_args(Captions):
            known = ", ".join(get_args(Captions))
            raise DataError(f"text: captions is {self.captions!r}, expected one of {known}")
        if self.length < 1:
            raise DataError(f"text: length is {self.length}, expected at least 1")
        if self.vocabulary < len(_FIXED):
            raise DataError(
                f"text: vocabulary is {self.vocabulary}, expected at least {len(_FIXED)}: "
                "the special tokens and a piece for every letter and digit"
            )

    @property
    def columns(self) -> int | None:
        """T where batches carry tokens, None where they do not."""
        return None if self.captions == "none" else self.length


class Text:
    """Turns sentences into token ids. May be used by several threads.

    Attributes:
      options: length and size of the vocabulary.
      words: those of `words` that have an id. From them the same ids can be had again.

    Args:
      options: length and size of the vocabulary.
      schema: whose phrases are in the vocabulary.
      sentences: texts that hold other words to know.
      words: further ones, from `caption_words`. The ids of the others do not depend on them.
    """

    def __init__(
        self,
        options: TextOptions,
        schema: AttributeSchema,
        sentences: Iterable[str] = (),
        words: Sequence[str] = (),
    ) -> None:
        self.options = options
        vocabulary = _vocabulary([*_common([*schema.phrases, *sentences]), *words], options.vocabulary)
        self.words = tuple(word for word in words if word in vocabulary)
        self._tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
        self._tokenizer.normalizer = _NORMALISER
        self._tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self._tokenizer.enable_truncation(options.length)

    def encode(self, sentence: str) -> Int32[np.ndarray, "T"]:
        """Ids of a sentence, int32 [T] in [0, vocabulary): its tokens, none of them 0, then padding."""
        row = np.full(self.options.length, PADDING, np.int32)
        ids = self._tokenizer.encode(sentence).ids
        row[: len(ids)] = ids
        return row

    def encode_phrases(self, schema: AttributeSchema) -> Int32[np.ndarray, "A P"]:
        """Ids of every attribute's phrase, int32 [A, P], where P <= T is the longest one's length."""
        rows = np.stack([self.encode(phrase) for phrase in schema.phrases])
        return rows[:, : max(1, int((rows != PADDING).sum(axis=1).max()))]


@functools.lru_cache
def for_data_set(
    data_set: ModuleType, schema: AttributeSchema, options: TextOptions, words: tuple[str, ...] = ()
) -> Text:
    """The text of a data set: the words of its schema, of its SENTENCES where it has any, and `words`."""
    return Text(options, schema, getattr(data_set, "SENTENCES", ()), words)


def caption_words(captions: Iterable[str]) -> tuple[str, ...]:
    """The words of captions, the most frequent `MOST_WORDS`, ordered by frequency and then the alphabet."""
    return tuple(itertools.islice(_common(captions), MOST_WORDS))


def caption_from_phrases(
    schema: AttributeSchema, labels: UInt8[np.ndarray, "A"], known: Bool[np.ndarray, "A"]
) -> str:
    """A sentence that names the attributes known to be present, and depends on nothing else.

    Words that all phrases begin with are said once: "a person with bangs, wearing a hat". Empty where no
    attribute is known to be present.
    """
    shared = _shared_words(schema.phrases)
    first, *others = [schema.phrases[i] for i in np.flatnonzero(labels * known)] or [""]
    return ", ".join([first, *(" ".join(phrase.split()[shared:]) for phrase in others)])


@functools.lru_cache
def _shared_words(phrases: tuple[str, ...]) -> int:
    """How many words all phrases begin with, leaving each at least one of its own."""
    columns = list(zip(*(phrase.split() for phrase in phrases), strict=False))[:-1]
    return len(list(itertools.takewhile(lambda words: len(set(words)) == 1, columns)))


def _common(sentences: Iterable[str]) -> Iterator[str]:
    """The words of sentences, the most frequent first and ties in alphabetical order."""
    counts = Counter(word for text in sentences for word in _NORMALISER.normalize_str(text).split())
    return iter(sorted(counts.keys() - set(_FIXED), key=lambda word: (-counts[word], word)))


def _vocabulary(words: Iterable[str], size: int) -> dict[str, int]:
    """Piece -> id: the fixed ones, then words in their order."""
    pieces = dict.fromkeys([*_FIXED, *words])
    return {piece: number for number, piece in enumerate(itertools.islice(pieces, size))}
