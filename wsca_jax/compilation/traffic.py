"""What a compiled program moves between a device and its memory."""

from __future__ import annotations

from wsca_jax.compilation.hlo import Computation, HloArray, Instruction, Program

# Names for what lies somewhere already, and the frames of what runs by itself.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "async-start",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
}
SLICES = {"dynamic-slice", "slice", "gather"}


def bytes_moved(program: Program) -> int:
    """Bytes that the instructions of one run read from and write to the device's main memory.

    Every instruction reads its operands and writes its results whole, but for a slice, which reads what it
    returns, and an update of a slice, which touches what it updates. What is fused runs as one instruction.
    Arrays that the compiler keeps on the chip, in a TPU's vector memory, do not count. XLA's own count
    (`cost_analysis`) has them in, and takes each loop for one turn.
    """
    return sum(
        times * _moved(program, computation, instruction)
        for computation, instruction, times in program.executed(into_fusions=False)
    )


def _moved(program: Program, computation: Computation, instruction: Instruction) -> int:
    operation = instruction.operation
    if operation in FREE or operation.endswith(("-done", "-update")):
        return 0
    if operation == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return 0
    if operation == "slice-start":  # returns (source, destination, context)
        return instruction.results[1].bytes + _main_memory(instruction.results[1:2])
    results = instruction.results
    if operation == "copy-start":  # returns (destination, source, context)
        results = results[:1]
    inner = program.computations[instruction.called["calls"][0]] if operation == "fusion" else None
    read = sum(_read(computation, instruction, number, inner) for number in range(len(instruction.operands)))
    written = _updated(inner, instruction, computation)
    return read + (_main_memory(results) if written is None else written)


def _read(computation: Computation, instruction: Instruction, number: int, inner: Computation | None) -> int:
    """Bytes of one operand that are read."""
    operand = computation[instruction.operands[number]].results
    if instruction.operation in SLICES and number == 0:
        return min(_main_memory(operand), sum(array.bytes for array in instruction.results))
    if instruction.operation == "dynamic-update-slice" and number == 0:
        return 0
    if inner is None or not _main_memory(operand):
        return _main_memory(operand)
    parameter = inner.parameter(number)
    readers = [user for user in inner.values() if parameter in user.operands]
    if readers and all(user.operation in SLICES and user.operands[0] == parameter for user in readers):
        return min(_main_memory(operand), sum(array.bytes for user in readers for array in user.results))
    if readers and all(_updates(user, parameter) for user in readers):
        return 0
    return _main_memory(operand)


def _updated(inner: Computation | None, instruction: Instruction, computation: Computation) -> int | None:
    """Bytes that an update of a slice writes, alone or as the end of a fusion; None for anything else."""
    body, last = (computation, instruction) if inner is None else (inner, inner.root)
    if last.operation != "dynamic-update-slice" or not _main_memory(instruction.results):
        return None
    return sum(array.bytes for array in body[last.operands[1]].results)


def _updates(user: Instruction, parameter: str) -> bool:
    return user.operation == "dynamic-update-slice" and user.operands[0] == parameter


def _main_memory(arrays: tuple[HloArray, ...]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)
