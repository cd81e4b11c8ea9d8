"""The process that renders for another: python -m input_pipeline.scenes.ahead_process; see `ahead`.

It ends when the other side closes the pipes, or is no longer there.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import sys

from input_pipeline.scenes.ahead import send
from input_pipeline.scenes.source import open_split


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        source = open_split(None, *pickle.load(requests))
        while True:
            send(answers, [source.rendered(number) for number in pickle.load(requests)])


if __name__ == "__main__":
    main()
