"""Right files made wrong in every way: what a parser must read, or refuse in one line."""

import json

import pytest
from hypothesis import strategies as st

from input_pipeline.errors import DataError

# For tests of any input: a few cases every day, many where there is time.
DEPTHS = [pytest.param(60, id="some"), pytest.param(1000, id="many", marks=pytest.mark.slow)]

PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [
            *(b" ", b"\n", b"\r", b"\n\n", b"-1", b"0", b"9" * 11, b"9" * 5000, b"1e9", b"nan", b"1_0"),
            *(
                b"\x00",
                b"\x1c",
                b"#",
                b"\xc2\x85",
                b"\xe2\x80\xa8",
                b"\xd9\xa1",
                b"../",
                b"/",
                b'"',
                b",",
                b";",
                b"\t",
            ),
        ]
    ),
)


@st.composite
def edited(draw, data: bytes, most: int = 3) -> bytes:
    """`data` after some edits: bytes replaced, put in, taken out; a line copied or lost; the end cut off."""
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["replace", "line", "cut"]))
        if kind == "replace":
            start = draw(st.integers(0, len(data)))
            data = data[:start] + draw(PIECES) + data[start + draw(st.integers(0, 9)) :]
        elif kind == "line":
            lines = data.splitlines(keepends=True) or [b""]
            there, here = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            lines[here : here + draw(st.integers(0, 1))] = [lines[there]]
            data = b"".join(lines)
        else:
            data = data[: draw(st.integers(0, len(data)))]
    return data


def first_change(valid: bytes, data: bytes) -> int:
    """The line of `data`, from 1, above the first that is not as in `valid`: it may lack what follows it.

    What a parser finds wrong stands there or below: a name may be there twice because of a copy above it.
    """
    pairs = enumerate(zip(valid, data, strict=False))
    same = next((i for i, (x, y) in pairs if x != y), min(len(valid), len(data)))
    return max(1, data[:same].count(b"\n"))


def paths_in(record, path=()):
    """Every path of keys in nested dictionaries and lists, but for the whole."""
    items = (
        record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    )
    below = [paths_in(value, (*path, key)) for key, value in items]
    return [*([path] if path else []), *(deeper for paths in below for deeper in paths)]


ODD = (
    None,
    1.5,
    -1,
    1 << 70,
    float("nan"),
    float("inf"),
    "x",
    "",
    "\ud800",
    [],
    {},
    [[1]],
    {"a": 2},
    True,
    0,
)


@st.composite
def edited_json(draw, record) -> bytes:
    """A record of JSON with one of its values replaced by an odd one, or left out."""
    record = json.loads(json.dumps(record))
    *above, last = draw(st.sampled_from(paths_in(record)))
    place = record
    for key in above:
        place = place[key]
    if draw(st.booleans()):
        place[last] = draw(st.sampled_from(ODD))
    else:
        del place[last]
    return json.dumps(record).encode()


def complaint(read, *arguments) -> str | None:
    """What `read` says against its arguments, in one line; None where it reads them. Nothing else may be."""
    try:
        read(*arguments)
    except DataError as error:
        message = str(error)
        assert message, "a message says something"
        assert len(message.splitlines()) == 1, f"more than one line: {message!r}"
        return message
    return None
