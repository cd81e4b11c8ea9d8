"""Archives, whatever has happened to their bytes: their files come back, or one line refuses them."""

import re
import tarfile

import pytest
from edits import DEPTHS, PIECES, complaint, edited
from hypothesis import given, settings
from hypothesis import strategies as st
from test_archives import FILES, HONEST, write_tar

from input_pipeline.untrusted.archives import open_archive


def read_all(path):
    """{name: bytes} of an archive; raises what reading one raises."""
    archive = open_archive(path)
    try:
        return {name: archive.read(name) for name in archive.names()}
    finally:
        archive.close()


@pytest.mark.parametrize("examples", DEPTHS)
@pytest.mark.parametrize("kind", [kind for kind in HONEST if kind != "folder"])
def test_any_edit_is_read_or_refused(tmp_path, kind, examples):
    path = HONEST[kind](tmp_path)
    valid = path.read_bytes()
    assert read_all(path) == FILES

    @settings(max_examples=examples, deadline=None)
    @given(edited(valid))
    def check(data):
        path.write_bytes(data)
        message = complaint(read_all, path)
        assert message is None or message.startswith(f"{path}: ")

    check()


def test_a_zip_of_unknown_compression_or_mangled_within_is_refused(tmp_path):
    path = HONEST["zip"](tmp_path)
    valid = path.read_bytes()
    local, central = valid.index(b"PK\x03\x04"), valid.index(b"PK\x01\x02")
    unknown = bytearray(valid)
    unknown[local + 8], unknown[central + 10] = 99, 99
    mangled = bytearray(valid)
    name_length = valid[local + 26]
    mangled[local + 30 + name_length] = 0x07  # a deflate block of the type that is none
    for data, match in (
        (unknown, "refused as unsafe: member 'a/1.txt' is compressed, but not by deflate"),
        (mangled, "member 'a/1.txt' cannot be read, .*invalid block type"),
    ):
        path.write_bytes(bytes(data))
        assert re.match(f"{re.escape(str(path))}: {match}", complaint(read_all, path))


@st.composite
def with_an_odd_header(draw, data):
    """A tar one of whose headers says something else, under a checksum that is right."""
    start = draw(
        st.sampled_from([at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"])
    )
    header = bytearray(data[start : start + 512])
    at = draw(st.integers(0, 511))
    piece = draw(
        st.one_of(
            PIECES, st.binary(min_size=1, max_size=12), st.text("01234567 \0-", max_size=12).map(str.encode)
        )
    )
    header[at : at + len(piece)] = piece
    header = header[:512].ljust(512, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]


@pytest.mark.parametrize("examples", DEPTHS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_header_of_a_tar_is_read_or_refused(tmp_path, form, examples):
    files = {"a/" + "long" * 60: b"one", **FILES} if form != tarfile.USTAR_FORMAT else FILES
    path = tmp_path / "x.tar"
    write_tar(path, "w", files, form)
    valid = path.read_bytes()
    assert read_all(path) == files

    @settings(max_examples=examples, deadline=None)
    @given(with_an_odd_header(valid))
    def check(data):
        path.write_bytes(data)
        message = complaint(read_all, path)
        assert message is None or message.startswith(f"{path}: ")

    check()


@pytest.mark.parametrize("examples", DEPTHS)
def test_what_a_zip_gives_is_what_was_put_in(tmp_path, examples):
    """Each file's checksum is held against it."""
    path = HONEST["zip"](tmp_path)
    valid = path.read_bytes()

    @settings(max_examples=examples, deadline=None)
    @given(edited(valid, most=1))
    def check(data):
        path.write_bytes(data)
        found = {}
        if complaint(lambda: found.update(read_all(path))) is None:
            assert all(found[name] == FILES[name] for name in found.keys() & FILES.keys())

    check()
