"""Hostile archives are refused whole; honest ones give back their bytes, from any thread."""

import io
import os
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.untrusted.archives import Limits, open_archive

FILES = {"a/1.txt": b"one", "a/2.txt": b"two" * 1000, "b.txt": b""}


def write_zip(path, files=None, change=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (FILES if files is None else files).items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            archive.writestr(info, data)
    return path


def write_tar(path, mode, members=None, form=tarfile.DEFAULT_FORMAT):
    with tarfile.open(path, mode, format=form) as archive:
        for name, data in (FILES if members is None else members).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_folder(path):
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


HONEST = {
    "zip": lambda path: write_zip(path / "x.zip"),
    "tar": lambda path: write_tar(path / "x.tar", "w"),
    "tar.gz": lambda path: write_tar(path / "x.tgz", "w:gz"),
    "tar.bz2": lambda path: write_tar(path / "x", "w:bz2"),
    "tar.xz": lambda path: write_tar(path / "x", "w:xz"),
    "folder": lambda path: write_folder(path / "folder"),
}


@pytest.mark.parametrize("kind", HONEST)
def test_names_and_bytes_come_back(tmp_path, kind):
    archive = open_archive(HONEST[kind](tmp_path))
    assert sorted(archive.names()) == sorted(FILES)
    for name in reversed(archive.names()):
        assert archive.read(name) == FILES[name]
    for wrong in ("a/3.txt", "a"):
        with pytest.raises(DataError, match=wrong):
            archive.read(wrong)
    archive.close()


@pytest.mark.parametrize("kind", HONEST)
def test_many_threads_read_at_once(tmp_path, kind):
    archive = open_archive(HONEST[kind](tmp_path))
    with ThreadPoolExecutor(8) as pool:
        wanted = [*FILES] * 60
        assert list(pool.map(archive.read, wanted)) == [FILES[name] for name in wanted]
    archive.close()


def test_a_tar_made_in_the_current_folder_has_plain_names(tmp_path):
    archive = open_archive(write_tar(tmp_path / "x.tar", "w", {"./a//b.txt": b"1"}))
    assert archive.names() == ("a/b.txt",)
    archive.close()


BAD_NAMES = ["../out", "a/../../out", "/etc/passwd", "C:/x", "a\\..\\b", "a/.."]


def assert_refused(path, match, limits=None):
    with pytest.raises(DataError, match=match) as caught:
        open_archive(path, limits)
    assert str(caught.value).startswith(f"{path}: refused as unsafe")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere(tmp_path, name):
    members = {"fine.txt": b"1", name: b"2"}
    assert_refused(write_zip(tmp_path / "x.zip", members), "member")
    assert_refused(write_tar(tmp_path / "x.tar", "w", members), "member")
    with pytest.raises(DataError, match="unsafe"):
        open_archive(write_folder(tmp_path / "folder")).read(name)


def test_a_folder_entry_that_leads_elsewhere(tmp_path):
    assert_refused(write_zip(tmp_path / "x.zip", {"../up/": b""}), "leads out")


def test_a_zero_byte_in_a_name(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"fineX.txt": b"1"})
    path.write_bytes(path.read_bytes().replace(b"fineX", b"fine\0"))
    assert_refused(path, "zero byte")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip(tmp_path, mode):
    def change(info):
        info.create_system = 3
        info.external_attr = (mode | 0o644) << 16

    assert_refused(write_zip(tmp_path / "x.zip", {"x": b"/etc/passwd"}, change), "a link or a device")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert_refused(tmp_path / "x.tar", "a link or a device")


def test_an_encrypted_member(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"x": b"1"})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    path.write_bytes(bytes(data))
    assert_refused(path, "encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path):
    for other in ("x", "./x", "y/../x"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("x", b"good")
            archive.writestr(other, b"evil")
        assert_refused(tmp_path / "x.zip", "two members are called 'x'|leads out")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
        archive.addfile(tarfile.TarInfo("x"))
    assert_refused(tmp_path / "x.tar", "two members")


def test_a_file_where_a_folder_must_be(tmp_path):
    assert_refused(write_zip(tmp_path / "x.zip", {"a": b"1", "a/b": b"2"}), "a file and a folder at once")


@pytest.mark.parametrize("writer", [write_zip, lambda p, m: write_tar(p, "w:gz", m)], ids=["zip", "tgz"])
@pytest.mark.parametrize(
    ("limits", "match"),
    [
        (Limits(members=2), "more than 2 members"),
        (Limits(member_bytes=100), "claims 3000 bytes, the limit is 100"),
        (Limits(total_bytes=2000), "bytes unpacked"),
        (Limits(ratio=5, ratio_from_bytes=1000), "more than 5 times its size"),
    ],
)
def test_limits(tmp_path, writer, limits, match):
    assert_refused(writer(tmp_path / "x", dict(FILES)), match, limits)
    open_archive(tmp_path / "x").close()  # harmless within the default limits


def test_limits_come_from_the_environment(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "x", dict(FILES))
    monkeypatch.setenv("WSCA_ARCHIVE_MEMBERS", "2")
    assert_refused(path, "more than 2 members")
    monkeypatch.setenv("WSCA_ARCHIVE_MEMBERS", str(len(FILES)))
    monkeypatch.setenv("WSCA_ARCHIVE_RATIO", "0.5")
    monkeypatch.setenv("WSCA_ARCHIVE_RATIO_FROM_BYTES", "1")
    assert_refused(path, "more than 0.5 times its size")
    for bad in ("many", "-1", "0", "nan."):
        monkeypatch.setenv("WSCA_ARCHIVE_RATIO", bad)
        with pytest.raises(DataError, match="WSCA_ARCHIVE_RATIO="):
            open_archive(path)


def test_a_real_zip_bomb(tmp_path):
    """100 MB of zeros in 100 kB."""
    path = write_zip(tmp_path / "x.zip", {"zeros": bytes(100 << 20)})
    assert path.stat().st_size < 200_000
    assert_refused(path, "more than 200 times its size")


def test_a_real_tar_bomb_is_refused_without_being_unpacked(tmp_path):
    path = write_tar(tmp_path / "x.tgz", "w:gz", {f"{i}": bytes(20 << 20) for i in range(5)})
    assert_refused(path, "more than 200 times its size")


def lying_zip(path, size):
    """A zip whose member of so many zeros claims ten bytes."""
    data = bytearray(write_zip(path, {"x": bytes(size)}).read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 10)
    path.write_bytes(bytes(data))
    return path


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_claimed(tmp_path):
    path = lying_zip(tmp_path / "x.zip", 1 << 20)
    with pytest.raises(DataError, match="'x' cannot be read"):
        open_archive(path).read("x")


def test_a_zip_that_lies_about_a_size_takes_no_more_memory_than_it_claims(tmp_path):
    path = lying_zip(tmp_path / "x.zip", 64 << 20)
    archive = open_archive(path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="'x' cannot be read"):
            archive.read("x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_is_unpacked_without_a_bound(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as archive:
        archive.writestr("x", b"one")
    assert_refused(tmp_path / "x.zip", "member 'x' is compressed, but not by deflate")


def test_a_tar_header_that_claims_a_gigabyte_of_comment(tmp_path):
    info = tarfile.TarInfo("comment")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(10240))
    assert_refused(tmp_path / "x.tar", "a header claims 1073741824 bytes")


def test_a_sparse_member(tmp_path):
    info = tarfile.TarInfo("hole")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"00000000000\0"  # one hole of nothing
    header[483:495] = b"77777777777\0"  # that unpacks to 8 GiB
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(10240))
    assert_refused(tmp_path / "x.tar", "sparse|claims 8589934591 bytes")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_damage_is_one_line_that_names_the_archive(tmp_path, kind):
    path = HONEST[kind](tmp_path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError) as caught:
            open_archive(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_zip_member(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"x": os.urandom(1000)})
    data = bytearray(path.read_bytes())
    data[500] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="'x' cannot be read"):
        open_archive(path).read("x")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_flipped_bit_in_a_compressed_tar_is_found_when_it_is_opened(tmp_path, mode):
    path, noise = tmp_path / "x", np.random.default_rng(0).bytes(5000)
    with tarfile.open(path, mode) as archive:
        for name in ("one", "two"):
            info = tarfile.TarInfo(name)
            info.size = len(noise)
            archive.addfile(info, io.BytesIO(noise))
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1  # noise is stored as it is, so that only a checksum can tell
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=f"^{path}: cannot be read, the archive is damaged"):
        open_archive(path)


def test_a_tar_that_goes_on_after_its_end(tmp_path):
    path = write_tar(tmp_path / "x.tar", "w")
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    assert_refused(path, "bytes follow its end mark")


def test_nothing_there_and_not_an_archive(tmp_path):
    with pytest.raises(DataError, match="found nothing"):
        open_archive(tmp_path / "absent.zip")
    (tmp_path / "x.zip").write_text("<html>Quota exceeded</html>" * 100)
    with pytest.raises(DataError, match="no archive"):
        open_archive(tmp_path / "x.zip")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_unpacked_once_however_it_is_read(tmp_path, monkeypatch, mode):
    """Every member decompresses the whole before it: backwards, 40 members would be read 20 times over."""
    contents = {f"{i:02d}.bin": np.random.default_rng(i).bytes(20_000) for i in range(40)}
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    archive = open_archive(path)
    unpacked, copy = [], shutil.copyfileobj
    monkeypatch.setattr(shutil, "copyfileobj", lambda *a: unpacked.append(1) or copy(*a))
    for name in [*contents, *reversed(contents), *contents]:
        assert archive.read(name) == contents[name]
    assert unpacked == [1]
    archive.close()


def test_no_room_for_unpacking_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
        tar.addfile(tarfile.TarInfo("b"), io.BytesIO())
    archive = open_archive(path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"a.tgz: cannot be unpacked into .*No space left.*set TMPDIR"):
        archive.read("a")


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("a", "b"):
            info = tarfile.TarInfo(name)
            info.size = 30_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    archive = open_archive(path)
    free = type(shutil.disk_usage(tmp_path))(1 << 40, 1 << 40, 50 << 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(shutil, "copyfileobj", lambda *arguments: pytest.fail("it began all the same"))
    with pytest.raises(DataError, match=r"a.tgz: .* need about 70.0 KiB and 50.0 KiB are free; .*TMPDIR"):
        archive.read("a")
