"""Scenes rendered ahead, by processes of their own, before a batch asks for them.

A scene is many short NumPy calls, and threads of one process mostly wait for each other to make them. So
while a run compiles its training step, processes render what the cache has room for, each on its own core.

The two sides talk through pipes, in pickles: first a split and its options, then numbers of images there and
their examples back. `multiprocessing` could do it, but its processes begin by importing the user's script.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO

from input_pipeline.batch import Example
from input_pipeline.scenes.options import Options, Split

COMMAND = (sys.executable, "-m", "input_pipeline.scenes.ahead_process")
IMAGES_AT_A_TIME = 16  # what one process is asked for at once

# The next numbers to render, none at the end; and where an example goes.
Next = Callable[[], list[int]]
Keep = Callable[[int, Example], object]


@contextlib.contextmanager
def rendering(split: Split, options: Options, processes: int, following: Next, keep: Keep) -> Iterator[None]:
    """Renders in the background, until nothing is left or the context ends.

    A process that is killed renders no more; whoever needs its images renders them.

    Args:
      split, options: of the scenes.
      processes: how many render side by side.
      following: returns the numbers to render next; called from several threads.
      keep: takes a number and its example; called from several threads.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(_process(split, options, following, keep))
        yield


@contextlib.contextmanager
def _process(split: Split, options: Options, following: Next, keep: Keep) -> Iterator[None]:
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    arguments = process.stdin, process.stdout, (split, options), following, keep
    thread = threading.Thread(target=_converse, args=arguments, name="scenes ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        process.kill()
        thread.join()
        process.wait()


def _converse(
    requests: IO[bytes], answers: IO[bytes], world: tuple[Split, Options], following: Next, keep: Keep
) -> None:
    """The parent's side: asks, and keeps what comes, until nothing is left or the process is gone."""
    with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError), requests, answers:
        send(requests, world)
        while numbers := following():
            send(requests, numbers)
            for number, example in zip(numbers, pickle.load(answers), strict=True):
                keep(number, example)


def send(pipe: IO[bytes], message: object) -> None:
    """Writes one message, at once."""
    pickle.dump(message, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()
