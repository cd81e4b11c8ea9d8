"""Reading a pickle or a joblib file that nobody vouches for: data comes out, none of its code runs.

A pickle is a program. It may name any function of any module and call it. Here it may name what stands in a
table: containers, NumPy's arrays and scalars, and joblib's form of an array. Each name of the table stands
for a small function of this module that checks what it is given, never for NumPy's or joblib's own, whose
`__setstate__` trusts its argument. Arrays hold numbers or text; arrays of objects are refused.

joblib writes an array as a pickled description that the array's bytes follow, and may compress the whole;
that is read here too, without joblib. Python 2's files are read: their text and bytes are latin-1 text.

What this does not promise is that every hostile file ends in a message: deep nesting can exhaust the C stack.
Formats: Python's pickletools; joblib's numpy_pickle, https://github.com/joblib/joblib.
"""

from __future__ import annotations

import copyreg
import dataclasses
import math
import pickle
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.untrusted.bounded import from_environment, memory_limit, open_unpacked

_CHUNK = 1 << 24
_ITEM_BYTES = 8  # a reference, which is what a copied container costs at least
_NUMBERS_AND_TEXT = re.compile(r"[<>|=]?(\?|b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,6})")
_LATIN = ("latin1", "latin-1")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file may ask for. The defaults leave room for a file of some gigabytes.

    A user changes them by environment variables, `WSCA_PICKLE_FILE_BYTES` and so on.

    Attributes:
      file_bytes: size of the file, uncompressed.
      array_bytes: size of all arrays together, as they claim it, with the containers that are copied.
      memory_bytes: address space that reading may add to the process. A few bytes of a damaged file can ask
        for a table of 64 GiB. Enforced where the system can (Unix); None does not.
    """

    file_bytes: int = 1 << 34
    array_bytes: int = 1 << 33
    memory_bytes: int | None = 1 << 34


class _Refused(Exception):
    """Something that a file of numbers has no need of. The message completes "it ..."."""


def read_pickle(path: Path, limits: Limits | None = None) -> Any:
    """The data in a pickle or a joblib file (plain, or compressed by zlib, gzip, bz2, xz or lzma).

    Ordered and default dictionaries come back as dict, NumPy's scalars as Python's, arrays as ndarray.

    Memory: the data as Python objects, and the pickle's own table of what it may refer to again: up to 200
    bytes for each NumPy scalar in the file. Arrays cost their own size.

    Raises:
      DataError: a file that cannot be read, is damaged, exceeds the limits, or is refused as unsafe.
    """
    limits = limits or from_environment(Limits, "WSCA_PICKLE")
    try:
        with open_unpacked(path, limits.file_bytes) as stream, memory_limit(limits.memory_bytes):
            return _Unpickler(stream, _Budget(limits.array_bytes)).load()
    except _Refused as error:
        raise DataError(
            f"{path}: refused as unsafe: it {error}; nothing of it was run, get the file from its origin"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{path}: asks for more memory than there is or than the limit of {limits.memory_bytes} bytes; "
            "it is damaged, or needs a machine with more, or a higher limit (docs/input-pipeline.md says how)"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; get it again") from error
    except DataError:
        raise
    except Exception as error:  # whatever a mangled stream of instructions can provoke
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(
            f"{path}: cannot be read, it is damaged or no pickle ({reason}); get it again"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Looks names up in the table, and nowhere else."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        # Bytes of arrays lie between the instructions. Without `peek` the machine reads none ahead.
        exact = types.SimpleNamespace(read=stream.read, readline=stream.readline)
        super().__init__(exact, encoding="latin1")
        self._table = _table(stream, budget)
        # A name that the program itself has registered would not be looked up again once it is cached.
        copyreg.clear_extension_cache()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._table:
            raise _Refused(f"asks for {_printable(f'{module}.{name}')}, which data has no need of")
        return self._table[module, name]

    def persistent_load(self, identifier: object) -> NoReturn:
        raise _Refused(f"refers to something outside the file, {_printable(str(identifier))}")


def _table(stream: IO[bytes], budget: _Budget) -> dict[tuple[str, str], Any]:
    """{(module, name): what stands for it}: all that a file may name."""
    arrays = _Arrays(budget)
    # A wrapper is made from nothing and then given its state, so that its class must know the stream.
    wrapper = type("_Inline", (_InlineArray,), {"stream": stream, "budget": budget})
    table: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _Function(_Dtype),
        ("_codecs", "encode"): _Function(_octets),
        ("collections", "OrderedDict"): _Function(_Copies(dict, budget)),
        ("collections", "defaultdict"): _Function(lambda factory=None: {}),
        ("joblib.numpy_pickle", "NumpyArrayWrapper"): wrapper,
        ("sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper"): wrapper,
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = _Function(arrays.empty)
        table[f"{core}.multiarray", "scalar"] = _Function(_scalar)
        table[f"{core}.numeric", "_frombuffer"] = _Function(arrays.from_buffer)
    for builtins in ("builtins", "__builtin__"):
        table |= {(builtins, k.__name__): _Function(_Copies(k, budget)) for k in (dict, list, set, frozenset)}
        table |= {(builtins, name): _Function(_octets) for name in ("bytes", "bytearray")}
        # Named by default dictionaries, called by none of these.
        table |= {(builtins, name): _Marker() for name in ("int", "float", "str", "bool", "tuple")}
    return table


class _Sealed:
    """A thing that the file may hold but not give a state to."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused("sets the state of something that has none")


class _Marker(_Sealed):
    """A name that is looked at and never called."""

    __slots__ = ()


_NDARRAY = _Marker()


class _Function(_Sealed):
    """A function that the file may call."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> Any:
        return self._make(*arguments)


@dataclasses.dataclass
class _Budget:
    """The bytes that may still be claimed."""

    left: int

    def spend(self, claimed: int) -> None:
        if claimed > self.left:
            raise _Refused(
                f"claims arrays of {claimed} bytes and more, the limit leaves {self.left} "
                "(docs/input-pipeline.md says how to raise it)"
            )
        self.left -= claimed


class _Copies:
    """A container out of another."""

    def __init__(self, kind: Callable[..., Any], budget: _Budget) -> None:
        self._kind, self._budget = kind, budget

    def __call__(self, items: Any = ()) -> Any:
        if type(items) not in (list, tuple, dict, set, frozenset):
            raise _Refused(f"makes a container out of {type(items).__name__}")
        self._budget.spend(_ITEM_BYTES * len(items))
        return self._kind(items)


class _Dtype(_Sealed):
    """What `numpy.dtype` stands for: numbers or text, whose byte order may follow as its state."""

    __slots__ = ("scalars", "value")

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else str(code)
        if not _NUMBERS_AND_TEXT.fullmatch(name):
            raise _Refused(f"holds an array of type {_printable(name)}, expected numbers or text")
        self.value = np.dtype(name)
        self.scalars: dict[bytes, object] = {}

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if not subarray is names is fields is None:
            raise _Refused("holds an array of records, expected numbers or text")
        self.value = self.value.newbyteorder(_octets(order).decode())  # type: ignore[arg-type]
        self.scalars = {}


def _scalar(dtype: _Dtype, data: bytes | str) -> object:
    """A number. Votes have few values, so that each is made once."""
    octets = _octets(data)
    if octets not in dtype.scalars:
        (dtype.scalars[octets],) = np.frombuffer(octets, dtype.value).tolist()
    return dtype.scalars[octets]


class _PlainArray(np.ndarray):
    """An array that starts empty and is filled by the state that follows, as NumPy's does."""

    __slots__ = ()
    budget: _Budget

    def __new__(cls) -> _PlainArray:
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, fortran, data = state  # the version, which comes first, was once left out
        _check_claim(self.budget, shape, dtype)
        self.become(shape, dtype, fortran, _octets(data))

    def become(self, shape: tuple[int, ...], dtype: _Dtype, fortran: object, data: bytes) -> None:
        """Becomes an array of these bytes. Raises ValueError where they are too few or too many."""
        if len(data) != math.prod(shape) * dtype.value.itemsize:
            raise ValueError(f"an array of shape {shape} and type {dtype.value} has {len(data)} bytes")
        super().__setstate__((1, shape, dtype.value, bool(fortran), data))  # type: ignore[arg-type]


class _InlineArray(_PlainArray):
    """What joblib's NumpyArrayWrapper stands for: its state says which array's bytes follow in the file."""

    __slots__ = ()
    stream: IO[bytes]

    def __setstate__(self, state: Any) -> None:
        shape, dtype = state["shape"], state["dtype"]
        if state["subclass"] is not _NDARRAY:
            raise _Refused("holds a subclass of NumPy's array")
        size = _check_claim(self.budget, shape, dtype)
        if state.get("numpy_array_alignment_bytes") is not None:
            _read_exactly(self.stream, _read_exactly(self.stream, 1)[0])
        self.become(shape, dtype, state["order"] == "F", _read_exactly(self.stream, size))


class _Arrays:
    """What the functions stand for by which NumPy makes arrays."""

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget
        self._array = type("_Array", (_PlainArray,), {"budget": budget})

    def empty(self, subclass: object, shape: object, typecode: object) -> _PlainArray:
        if subclass is not _NDARRAY:
            raise _Refused("holds a subclass of NumPy's array")
        return self._array()

    def from_buffer(self, data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _PlainArray:
        _check_claim(self._budget, shape, dtype)
        array = self._array()
        array.become(shape, dtype, order == "F", _octets(data))
        return array


def _check_claim(budget: _Budget, shape: object, dtype: object) -> int:
    """The bytes that the array claims, which are spent."""
    if type(dtype) is not _Dtype:
        raise _Refused("holds an array of no known type")
    if type(shape) is not tuple or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"an array of shape {_printable(str(shape))}")
    size = math.prod(shape) * dtype.value.itemsize
    budget.spend(size)
    return size


def _octets(data: object = b"", encoding: str = "latin1") -> bytes:
    """Bytes; Python 2's, and those of old pickles, arrive as latin-1 text."""
    if encoding not in _LATIN:
        raise _Refused(f"encodes text as {_printable(str(encoding))}")
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise _Refused(f"takes {type(data).__name__} for bytes")
    return bytes(data)


def _printable(text: str) -> str:
    """One short line of it."""
    return ascii(text[:80])[1:-1]


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    """Takes memory as the bytes arrive, not as they are claimed."""
    parts = []
    while size:
        part = stream.read(min(size, _CHUNK))
        if not part:
            raise EOFError("cut short within an array")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
