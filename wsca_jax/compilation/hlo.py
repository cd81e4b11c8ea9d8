"""Reads the text of a compiled program: its instructions, and how often each of them runs.

XLA offers a program's text, and counts over the whole of it; the instructions themselves it offers as a
protocol buffer, whose description comes with TensorFlow only.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}  # the others carry their bits in their names
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{[^{}]*?(?:S\((\d+)\))?\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_NAMES = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class HloArray(NamedTuple):
    """An array of a program.

    Attributes:
      dtype: "bf16", "f32", "pred", ...
      shape: its sizes.
      space: where it lies: 0 is the device's main memory, 1 a TPU's vector memory, on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.dtype) or int(re.findall(r"\d+", self.dtype)[0])
        return math.ceil(math.prod(self.shape) * bits / 8)


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: unique within its computation.
      operation: "fusion", "all-reduce-start", ...
      results: the arrays it returns.
      operands: names of the instructions whose results it reads.
      called: the computations that it runs, {attribute: names}.
      attributes: the rest of the line, operands included.
    """

    name: str
    operation: str
    results: tuple[HloArray, ...]
    operands: tuple[str, ...]
    called: dict[str, tuple[str, ...]]
    attributes: str


class Computation(dict[str, Instruction]):
    """Instructions by name, in order; the last is the one whose result it returns."""

    @property
    def root(self) -> Instruction:
        return next(reversed(self.values()))

    def parameter(self, number: int) -> str:
        """The name of one of its parameters."""
        return next(
            name
            for name, found in self.items()
            if found.operation == "parameter" and found.attributes.startswith(f"{number})")
        )

    def operand_arrays(self, instruction: Instruction) -> tuple[HloArray, ...]:
        return tuple(array for name in instruction.operands for array in self[name].results)


class Program(NamedTuple):
    """A compiled program: its computations by name, and the name of the one that it begins with."""

    computations: dict[str, Computation]
    entry: str

    def executed(self, into_fusions: bool = True) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that runs, with its computation and how often it runs.

        A loop whose turns are not known counts as one turn; of a conditional every branch counts.

        Args:
          into_fusions: also what is fused into one instruction.
        """
        times = collections.Counter({self.entry: 1})
        for name in self._callers_first(into_fusions):
            for instruction in self.computations[name].values():
                yield self.computations[name], instruction, times[name]
                turns = self._turns(instruction)
                for called in _run_by(instruction, into_fusions):
                    times[called] += times[name] * turns

    def _callers_first(self, into_fusions: bool) -> list[str]:
        """The computations that run, each after all those that run it."""
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in done:
                return
            for instruction in self.computations[name].values():
                for called in _run_by(instruction, into_fusions):
                    visit(called)
            done[name] = None

        visit(self.entry)
        return list(reversed(done))

    def _turns(self, instruction: Instruction) -> int:
        """How often a loop's body runs: as the compiler notes it, or as many as its counter's limit says."""
        if instruction.operation != "while":
            return 1
        if noted := _TRIPS.search(instruction.attributes):
            return int(noted[1])
        condition = self.computations[instruction.called["condition"][0]]
        limits = [found for found in condition.values() if found.operation == "constant"]
        counts = condition.root.operation == "compare" and "direction=LT" in condition.root.attributes
        return int(limits[0].attributes.partition(")")[0]) if counts and len(limits) == 1 else 1


def parse(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text` returns.

    Raises:
      ValueError: it holds no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, Computation()
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], Computation())
            entry = head[2] if head[1] else entry
        elif body := _INSTRUCTION.match(line):
            current[body[1]] = _instruction(body[1], body[2])
    if entry is None:
        raise ValueError("the text is not that of a compiled program: it has no ENTRY computation")
    return Program(computations, entry)


def arrays(text: str) -> tuple[HloArray, ...]:
    """The arrays of a type such as "(bf16[8,128]{1,0:T(8,128)}, f32[])"."""
    return tuple(
        HloArray(dtype, tuple(int(n.strip("<=")) for n in sizes.split(",") if n), int(space or 0))
        for dtype, sizes, space in _ARRAY.findall(text)
        if dtype not in ("token", "opaque")
    )


def _instruction(name: str, text: str) -> Instruction:
    result, rest = _split_type(text)
    operation, _, rest = rest.partition("(")
    end = _closing(rest)
    called = {key: tuple(re.findall(r"[\w.\-]+", names)) for key, names in _CALLED.findall(rest[end:])}
    operands = tuple(_NAMES.findall(rest[:end]))
    return Instruction(name, operation.strip(), arrays(result), operands, called, rest)


def _split_type(text: str) -> tuple[str, str]:
    """("(f32[8]{0}, f32[])", "all-reduce(%x, %y), ...")"""
    if not text.startswith("("):
        result, _, rest = text.partition(" ")
        return result, rest
    end = _closing(text[1:]) + 2
    return text[:end], text[end:]


def _closing(text: str) -> int:
    """Where the parenthesis closes that opened before the text."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)


def _run_by(instruction: Instruction, into_fusions: bool) -> tuple[str, ...]:
    """What an instruction runs; not what a reduction applies to pairs of numbers."""
    if instruction.operation == "fusion" and not into_fusions:
        return ()
    runs = {
        key: names
        for key, names in instruction.called.items()
        if key != "to_apply" or instruction.operation == "call"
    }
    return tuple(name for names in runs.values() for name in names)
