"""Text: ids that never change, padding that is never a word, sentences that tell known labels and no more."""

import dataclasses
import json
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline import celeba, scenes, text
from input_pipeline.errors import DataError
from input_pipeline.scenes import captions
from input_pipeline.schema import AttributeSchema
from input_pipeline.text import LEFT, PADDING, RIGHT, UNKNOWN, Text, TextOptions, caption_from_phrases

OPTIONS = TextOptions("source")
SCENES = text.for_data_set(scenes, scenes.SCHEMA, OPTIONS)
CELEBA = text.for_data_set(celeba, celeba.SCHEMA, OPTIONS)
SENTENCE = (
    "A large striped red metal cube to the left of a small plain blue glass ring on a lawn in soft light."
)

# A checkpoint holds an embedding for every id: ids that move would make nonsense of every stored run's text.
IDS = [
    [4, 90, 125, 107, 104, 133, 131, 3, 79, 92, *[0] * 10],
    [4, 108, 18, 104, 135, 78, 107, 144, *[0] * 12],
]
PROGRAM = """
import json
from input_pipeline import celeba, scenes, text
options = text.TextOptions("source", length=20)
said = (
    (scenes, "A medium-sized dotted cone to the right of sand."),
    (celeba, "a five o'clock shadow, wearing eyeglasses, young"),
)
print(json.dumps([text.for_data_set(d, d.SCHEMA, options).encode(s).tolist() for d, s in said]))
"""


def words(encoder, sentence):
    return int((encoder.encode(sentence) != PADDING).sum())


def test_every_process_has_the_same_ids_and_they_are_these():
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM]
        found = json.loads(
            subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout
        )
        assert found == IDS


def test_rows_are_tokens_and_then_padding():
    row = SCENES.encode("A red cube.")
    assert row.dtype == np.int32
    assert row.shape == (32,)
    assert (row[:3] > UNKNOWN).all()
    assert (row[3:] == PADDING).all()
    assert not SCENES.encode("").any()
    assert not SCENES.encode(" ...! ").any()


def test_no_text_makes_padding_and_every_id_is_in_range():
    rng = np.random.default_rng(0)
    letters = np.array(list(string.printable + "éß日本İ\x00[PAD]"))
    for _ in range(300):
        row = SCENES.encode("".join(rng.choice(letters, 60)) + " [PAD] [UNK] LEFT ##a")
        assert row.min() >= 0
        assert row.max() < OPTIONS.vocabulary
        used = np.flatnonzero(row)
        assert (used == np.arange(len(used))).all()  # padding only behind the last token


def test_long_text_is_cut_and_not_refused():
    short = Text(TextOptions("source", length=5), scenes.SCHEMA, scenes.SENTENCES)
    np.testing.assert_array_equal(short.encode(SENTENCE), SCENES.encode(SENTENCE)[:5])


def test_case_accents_and_punctuation_make_no_difference():
    plain = SCENES.encode("a medium sized red cube")
    np.testing.assert_array_equal(SCENES.encode("A MEDIUM-sized, réd cube!"), plain)


def test_every_word_of_captions_and_phrases_is_one_token():
    wide = Text(TextOptions("source", length=64), scenes.SCHEMA, scenes.SENTENCES)
    source = scenes.open_split(None, "train", scenes.Options())
    for index in range(300):
        caption = captions.caption(source.factors(index))
        assert words(wide, caption) == len(caption.replace("-", " ").split())
    for phrase in scenes.SCHEMA.phrases:
        assert words(wide, phrase) == len(phrase.split())
    for phrase in celeba.SCHEMA.phrases:
        assert words(CELEBA, phrase) == len(phrase.replace("'", " ").split())


def test_left_and_right_are_tokens_of_their_own_everywhere():
    for encoder in (SCENES, CELEBA):  # CelebA's phrases never mention them
        np.testing.assert_array_equal(
            encoder.encode("Left, RIGHT; left-right")[:4], [LEFT, RIGHT, LEFT, RIGHT]
        )
        for word in ("bright", "leftover", "upright", "rights", "lefts", "left1"):
            assert not np.isin(encoder.encode(word), (LEFT, RIGHT)).any(), word


def test_unknown_words_are_spelled_and_different_words_differ():
    rows = [SCENES.encode(word) for word in ("zebra", "cubes", "cubed", "zebras")]
    assert len({row.tobytes() for row in rows}) == 4
    assert not np.isin(rows, UNKNOWN).any()


def test_a_small_vocabulary_leaves_out_the_rarest_words():
    schema = AttributeSchema.from_groups("toys", ("red_cube", "red_ball", "blue_cube"), {"all": (0, 1, 2)})
    for room, kept in ((0, ""), (2, "cube red"), (3, "cube red ball"), (9, "cube red ball blue")):
        size = 4 + 36 + 36 + room
        encoder = Text(TextOptions("phrases", vocabulary=size), schema)
        for word in ("cube", "red", "ball", "blue"):
            assert (words(encoder, word) == 1) == (word in kept.split())
            assert encoder.encode(word).max() < size


def test_threads_share_a_text():
    sentences = [
        captions.caption(scenes.open_split(None, "train", scenes.Options()).factors(i)) for i in range(50)
    ]
    expected = [SCENES.encode(sentence).tolist() for sentence in sentences]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            assert [row.tolist() for row in pool.map(SCENES.encode, sentences)] == expected


def test_phrases_are_encoded_as_sentences_are():
    ids = CELEBA.encode_phrases(celeba.SCHEMA)
    longest = max(words(CELEBA, phrase) for phrase in celeba.SCHEMA.phrases)
    assert ids.shape == (40, longest)
    assert ids.dtype == np.int32
    for row, phrase in zip(ids, celeba.SCHEMA.phrases, strict=True):
        np.testing.assert_array_equal(row, CELEBA.encode(phrase)[:longest])
    assert len(np.unique(ids, axis=0)) == 40


def test_words_of_captions_come_behind_those_of_phrases():
    captions = ["A zebra, left of a Zebra.", "the zebra and a RED tram", "the tram"]
    words_of = text.caption_words(captions)
    assert words_of == ("zebra", "the", "tram", "and", "of", "red")  # "a" is a piece, left a side
    room = 4 + 36 + 36 + 3 + 2  # red, cube, ball; then two of the captions' own
    schema = AttributeSchema.from_groups("toys", ("red_cube", "red_ball"), {"all": (0, 1)})
    options = TextOptions("source", vocabulary=room)
    plain, own = Text(options, schema), Text(options, schema, words=words_of)
    for sentence in ("red cube", "ball"):
        np.testing.assert_array_equal(own.encode(sentence), plain.encode(sentence))
    np.testing.assert_array_equal(own.encode_phrases(schema), plain.encode_phrases(schema))
    assert words(own, "zebra") == 1 < words(plain, "zebra")
    assert words(own, "tram") > 1  # no room for it
    again = Text(options, schema, words=own.words)
    for sentence in captions:
        np.testing.assert_array_equal(again.encode(sentence), own.encode(sentence))


def test_a_data_set_without_sentences_has_its_phrases():
    plain = SimpleNamespace()
    # Not through the cache: a module can be hashed, this stand-in cannot.
    built = text.for_data_set.__wrapped__(plain, celeba.SCHEMA, OPTIONS)
    np.testing.assert_array_equal(built.encode("wearing a hat"), CELEBA.encode("wearing a hat"))


def told(schema, *present, known=()):
    """The sentence when these attributes are known to be present, and those of `known` to be absent."""
    labels = np.array([name in present for name in schema.attributes], np.uint8)
    seen = np.array([name in (*present, *known) for name in schema.attributes])
    return caption_from_phrases(schema, labels, seen)


def test_phrases_make_a_sentence():
    assert told(celeba.SCHEMA) == ""
    assert told(celeba.SCHEMA, "Bald") == "a person with a bald head"
    assert (
        told(celeba.SCHEMA, "Bald", "Smiling", "Young", known=("Male",))
        == "a person with a bald head, who is smiling, who is young"
    )
    assert told(scenes.SCHEMA, "red", "cube") == "a red object, a cube"


def test_words_in_common_never_swallow_a_phrase():
    schema = AttributeSchema.from_groups(
        "toys", ("a", "b"), {"all": (0, 1)}, phrases=("a dog", "a dog barking")
    )
    assert told(schema, "a", "b") == "a dog, dog barking"
    alone = AttributeSchema.from_groups("toy", ("a",), {"all": (0,)}, phrases=("a dog",))
    assert told(alone, "a") == "a dog"


def test_a_sentence_depends_on_known_labels_alone():
    rng = np.random.default_rng(0)
    for _ in range(100):
        labels, known = rng.integers(0, 2, 36).astype(np.uint8), rng.random(36) < 0.4
        other = np.where(known, labels, 1 - labels).astype(np.uint8)
        assert caption_from_phrases(scenes.SCHEMA, labels, known) == caption_from_phrases(
            scenes.SCHEMA, other, known
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"captions": "own"}, "captions is 'own', expected one of none, source, phrases"),
        ({"length": 0}, "length is 0"),
        ({"vocabulary": 75}, "vocabulary is 75, expected at least 76"),
    ],
)
def test_options_that_do_not_fit_are_named(settings, message):
    with pytest.raises(DataError, match=message):
        TextOptions(**settings)


def test_batches_have_tokens_only_where_captions_are_on():
    assert TextOptions().columns is None
    assert dataclasses.replace(TextOptions("phrases"), length=7).columns == 7
