"""Pickles that nobody vouches for: hostile ones run nothing, and none asks for more than the limits."""

import builtins
import copyreg
import gzip
import io
import operator
import os
import pickle
import subprocess
import zlib

import numpy as np
import pytest
from edits import DEPTHS, complaint, edited
from hypothesis import given, settings
from pickles import FLOATS, JOBLIB, RECORD, SMALL, assert_refused, wrapped, write

from input_pipeline.errors import DataError
from input_pipeline.untrusted.unpickling import Limits, read_pickle

# Payloads that would leave a marker file behind.


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Built:
    """Pickles as a call whose result is given a state."""

    def __init__(self, function, arguments, state):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


def opened(marker):
    return f"open({str(marker)!r}, 'w')"


PAYLOADS = {
    "os.system": (lambda m: Calls(os.system, f"touch {m}"), r"posix\.system"),
    "eval": (lambda m: Calls(eval, opened(m)), r"(builtins|__builtin__)\.eval"),
    "exec": (lambda m: Calls(exec, opened(m)), r"(builtins|__builtin__)\.exec"),
    "subprocess": (lambda m: Calls(subprocess.call, ["touch", str(m)]), r"(subprocess|commands)\.call"),
    "open": (lambda m: Calls(io.open, str(m), "w"), r"io\.open|_io\.open"),
    "getattr": (lambda m: Calls(getattr, Calls(__import__, "os"), "system"), r"getattr"),
    "import": (lambda m: Calls(__import__, "os"), "__import__"),
    "attrgetter": (lambda m: Calls(operator.attrgetter("__class__"), 1), r"operator\.attrgetter"),
    "map": (lambda m: Calls(list, Calls(map, eval, [opened(m)])), r"map|eval"),
    "numpy's own loader": (lambda m: Calls(np.load, str(m), None, True), r"numpy\.load"),
    "numpy testing": (lambda m: Calls(np.testing.measure, opened(m)), "numpy.*measure"),
    "state": (lambda m: Built(dict, (), Calls(os.system, f"touch {m}")), r"posix\.system"),
    "object array": (lambda m: np.array([Calls(os.system, f"touch {m}"), 1], object), "type O|posix"),
    "record array": (lambda m: np.zeros(2, [("a", "f8"), ("b", "O")]), "type V"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_hostile_pickle_runs_nothing(tmp_path, payload):
    """In every protocol that can write it."""
    make, names = PAYLOADS[payload]
    written = 0
    for protocol in (0, 2, 4, 5):
        marker = tmp_path / f"marker-{protocol}"
        try:
            data = pickle.dumps({"ann_vecs": {1: make(marker)}}, protocol)
        except (pickle.PicklingError, AttributeError, TypeError):
            continue
        written += 1
        assert "refused as unsafe" in assert_refused(tmp_path, data, names, marker)
    assert written >= 2


@pytest.mark.parametrize("payload", ["os.system", "eval", "subprocess"])
def test_the_payloads_work_where_nobody_looks(tmp_path, payload):
    pickle.loads(pickle.dumps(PAYLOADS[payload][0](tmp_path / "marker"), 2))
    assert (tmp_path / "marker").exists()  # else the tests above show nothing


@pytest.mark.parametrize("compress", [0, 3])
def test_a_payload_within_an_array_of_joblib(tmp_path, compress):
    joblib = pytest.importorskip("joblib")
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    joblib.dump({"votes": np.array([Calls(os.system, f"touch {marker}")], object)}, buffer, compress=compress)
    assert_refused(tmp_path, buffer.getvalue(), "array of type O", marker)
    joblib.load(io.BytesIO(buffer.getvalue()))
    assert marker.exists()


SHELL = b"(S'touch marker'\ntR."
OPCODES = {
    "INST": (b"(S'touch marker'\nios\nsystem\n.", r"os\.system"),
    "OBJ": (b"(cos\nsystem\nS'touch marker'\no.", r"os\.system"),
    "NEWOBJ": (b"\x80\x02cos\nsystem\n(S'touch marker'\nt\x81.", r"os\.system"),
    "NEWOBJ_EX": (b"\x80\x04cos\nsystem\n(S'touch marker'\nt}\x92.", r"os\.system"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93" + SHELL, r"os\.system"),
    "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "__class__"),
    "another dotted name": (b"\x80\x04\x8c\x08builtins\x8c\x0ddict.fromkeys\x93.", "fromkeys"),
    "copyreg": (b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.", "_reconstructor"),
    "PERSID": (b"Pos.system\n.", "outside the file"),
    "BINPERSID": (b"\x80\x02K\x01Q.", "outside the file"),
    "EXT1": (b"\x80\x02\x82\xf0(S'touch marker'\ntR.", r"posix\.system|os\.system"),
    "BUILD of a function": (b"cnumpy\ndtype\n}S'_make'\ncos\nsystem\nsb.", r"os\.system"),
    "state for a function": (b"cnumpy\ndtype\n}S'_make'\nNsb.", "sets the state"),
    "slots of a function": (b"cnumpy\ndtype\n(N}S'_make'\nNstb.", "sets the state"),
    "state for the wrapper's class": (JOBLIB + b"}S'stream'\nNsb.", "damaged"),
    "slots of the wrapper's class": (JOBLIB + b"(N}S'stream'\nNstb.", "damaged"),
    "a marker called": (b"c__builtin__\nint\n(S'1'\ntR.", "damaged"),
    "another subclass": (
        b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nint\n(I0\ntS'b'\ntR.",
        "subclass",
    ),
    "joblib's other subclass": (wrapped((1,), subclass=b"c__builtin__\nint\n") + bytes(8) + b".", "subclass"),
    "a codec that runs": (b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.", "encodes text as zlib"),
    "a container of anything": (b"c__builtin__\nlist\n(S'x'\ntR.", "container out of str"),
    "a type of objects": (b"cnumpy\ndtype\n(S'O'\ntR.", "type O"),
    "a type with fields": (b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'|'\nN(S'a'\nt}I8\nI1\nI0\ntb.", "records"),
    "an array that lies about its type": (wrapped((1,), dtype=b"S'f8'\n") + bytes(8) + b".", "no known type"),
}


@pytest.mark.parametrize("case", OPCODES)
def test_instructions_that_data_has_no_need_of(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        data, match = OPCODES[case]
        assert_refused(tmp_path, data, match, tmp_path / "marker")
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


def test_a_registered_and_cached_extension_is_looked_up_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf0.") is os.system  # now it is cached
        assert_refused(tmp_path, b"\x80\x02\x82\xf0(S'touch marker'\ntR.", "system", tmp_path / "marker")
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


def test_no_name_of_the_table_leads_to_a_real_one(tmp_path):
    names = [
        *(b"numpy\nndarray", b"numpy\ndtype", b"_codecs\nencode", b"collections\nOrderedDict"),
        *(b"numpy.core.multiarray\n_reconstruct", b"numpy._core.multiarray\nscalar"),
        *(b"builtins\ndict", b"builtins\nint"),
    ]
    for name in names:
        found = read_pickle(write(tmp_path, b"c" + name + b"\n."))
        assert type(found).__module__ == "input_pipeline.untrusted.unpickling"
        assert found not in (np.ndarray, np.dtype, *vars(builtins).values())


# Claims of size.

PLAIN = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
BOMBS = {
    "terabytes in joblib's wrapper": (wrapped((1 << 20, 1 << 20)) + bytes(99), "arrays of 8796093022208"),
    "sides that overflow": (wrapped((1 << 62, 1 << 62)) + bytes(99), "claims arrays of"),
    "a negative side": (wrapped((-1,)) + bytes(99), "shape"),
    "a gigabyte that is not there": (wrapped((1 << 27,)) + bytes(99), "cut short"),
    "terabytes in numpy's state": (
        PLAIN + b"(I1\n(L1099511627776L\nt" + FLOATS + b"I00\nS''\ntb.",
        "claims arrays of",
    ),
    "fewer bytes than numpy's state says": (
        PLAIN + b"(I1\n(I3\nt" + FLOATS + b"I00\nS''\ntb.",
        "has 0 bytes",
    ),
    "a long type": (b"cnumpy\ndtype\n(S'S99999999999'\ntR.", "type S99999999999"),
    "a table of 64 GiB": (b"\x80\x02Nr\xff\xff\xff\xff.", "memory"),
    "a string of terabytes": (b"\x80\x04\x8e" + (1 << 42).to_bytes(8, "little") + b"xx.", "memory|damaged"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_claims_beyond_reason(tmp_path, bomb):
    data, match = BOMBS[bomb]
    assert_refused(tmp_path, data, match)


def test_the_limit_is_of_all_arrays_together(tmp_path):
    path = write(tmp_path, pickle.dumps([np.zeros(100), np.ones(100)], 2))
    assert len(read_pickle(path, Limits(array_bytes=1600))) == 2
    with pytest.raises(DataError, match="claims arrays of 800 bytes and more, the limit leaves 799"):
        read_pickle(path, Limits(array_bytes=1599))


def test_copies_of_containers_count(tmp_path):
    data = b"(I1\nI2\nlp0\n0c__builtin__\nset\n(g0\ntR."
    assert read_pickle(write(tmp_path, data), Limits(array_bytes=16)) == {1, 2}
    with pytest.raises(DataError, match="16 bytes"):
        read_pickle(write(tmp_path, data), Limits(array_bytes=15))


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path):
    path = write(tmp_path, zlib.compress(pickle.dumps(bytes(1 << 22), 4)))
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes"):
        read_pickle(path, Limits(file_bytes=1 << 20))


def test_limits_come_from_the_environment(tmp_path, monkeypatch):
    path = write(tmp_path, gzip.compress(pickle.dumps(bytes(2 << 20))))
    monkeypatch.setenv("WSCA_PICKLE_FILE_BYTES", str(1 << 20))
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes"):
        read_pickle(path)


def test_the_memory_limit_is_taken_back(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    read_pickle(write(tmp_path, pickle.dumps([1])), SMALL)
    assert_refused(tmp_path, b"no pickle", "damaged or no pickle")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


VALID = [pickle.dumps(RECORD, 2), pickle.dumps(RECORD, 4), wrapped((2, 3)) + np.arange(6.0).tobytes() + b"."]


@pytest.mark.parametrize("examples", DEPTHS)
@pytest.mark.parametrize("valid", VALID, ids=["protocol 2", "protocol 4", "joblib"])
def test_any_mutation_reads_or_is_one_line(tmp_path, valid, examples):
    @settings(max_examples=examples, deadline=None)
    @given(edited(valid))
    def check(mutated):
        message = complaint(read_pickle, write(tmp_path, mutated), SMALL)
        assert message is None or message.startswith(str(tmp_path / "data.pkl"))

    check()
