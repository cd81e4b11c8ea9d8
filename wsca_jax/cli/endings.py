"""How a command ends after an error."""

from __future__ import annotations

from wsca_jax.errors import Ending, ExitCode, WscaError


def explain(error: BaseException) -> Ending:
    """How a command that raised this ends."""
    from input_pipeline.errors import DataError, NoRoomError
    from input_pipeline.schema import SchemaError

    if isinstance(error, WscaError):
        return Ending(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(ExitCode.INTERRUPTED, "interrupted")
    if isinstance(error, NoRoomError):
        return Ending(ExitCode.OUT_OF_DISK, str(error))
    if isinstance(error, DataError | SchemaError):
        return Ending(ExitCode.BAD_INPUT, str(error))
    return Ending(ExitCode.CRASH, None)
