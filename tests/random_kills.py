"""Kills training runs at random moments and holds what becomes of them against one that was left alone.

    python tests/random_kills.py [--kills 50] [--seed 0] [--folder F]

Each run is started again after every kill, as a user would, and let through after at most `PER_RUN`; then
every array of its last state and every logged value must be those of the undisturbed run, bit for bit, and
nothing of a killed save may be left. Then the next run, until there were enough kills. In turn a process is
killed at any moment, once it trains, and in a save: on a busy machine most moments lie before the first step.
Prints when they struck. Exit code 1 where anything differs.

The real command line, with a trunk that compiles in no time (small_wsca.py) and a save at every third step.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from runs import PATIENCE, ROOT, assert_same_run
from tqdm import tqdm

COMMAND = (
    sys.executable,
    str(ROOT / "tests" / "small_wsca.py"),
    "train",
    "--config=configs/scenes.py:tiny",
    "--config.train.epochs=4",
    "--config.train.log_every=1",
    "--config.checkpoint.every_epochs=0.5",
    "--workdir",
)
ENVIRONMENT = {"WSCA_PAUSE": "0.1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
PER_RUN = 5
# From when on a process may be killed, in turn.
STARTED, TRAINING, SAVING = "started", "training", "saving"
SAVE_SECONDS = 0.2


def start(workdir: Path) -> subprocess.Popen:
    with workdir.with_suffix(".log").open("a") as file:
        return subprocess.Popen(
            [*COMMAND, str(workdir)], env=os.environ | ENVIRONMENT, cwd=ROOT, stdout=file, stderr=file
        )


def finish(process: subprocess.Popen, workdir: Path) -> None:
    """Waits for an orderly end."""
    code = process.wait(PATIENCE)
    if code:
        raise SystemExit(f"{workdir}: exit code {code}; see {workdir.with_suffix('.log')}")


def printed_since(workdir: Path, size: int) -> str:
    """What a run's processes printed after the first so many bytes."""
    with workdir.with_suffix(".log").open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")


def trains(workdir: Path, size: int) -> bool:
    """Whether the process that began at this size of the output has taken a step."""
    return "first step after" in printed_since(workdir, size)


def is_saving(workdir: Path) -> bool:
    return any(workdir.glob("checkpoints/*.saving"))


def moment(workdir: Path, size: int) -> str:
    """What a process that was just killed was at, from what it left and printed."""
    if not (workdir / "run.json").exists():
        return "before the run's record"
    if not trains(workdir, size):
        return "before its first step"
    return "during a save" if is_saving(workdir) else "between saves"


def has_come_to(stage: str, workdir: Path, size: int) -> bool:
    """Whether the process that began at this size of the output is at that stage of its life."""
    if stage == STARTED:
        return True
    return trains(workdir, size) and (stage == TRAINING or is_saving(workdir))


def wait_until(stage: str, process: subprocess.Popen, workdir: Path, size: int) -> bool:
    """False where the process ends before it comes to that stage."""
    while not has_come_to(stage, workdir, size):
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def ends_within(seconds: float, process: subprocess.Popen) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def check(workdir: Path, whole: Path) -> None:
    """Raises AssertionError where the run is another than the undisturbed one, or something is left over."""
    assert_same_run(workdir, whole)
    left = [path for path in (workdir / "checkpoints").iterdir() if not path.name.isdecimal()]
    assert not left, f"left over: {left}"
    assert not (workdir / "quarantine").exists()


def undisturbed(workdir: Path) -> dict[str, float]:
    """Makes a run that nobody kills; the seconds that it lasts from each stage on, a save alone for one."""
    begun = time.monotonic()
    process = start(workdir)
    wait_until(TRAINING, process, workdir, 0)
    first_step = time.monotonic()
    finish(process, workdir)
    ended = time.monotonic()
    return {STARTED: ended - begun, TRAINING: ended - first_step, SAVING: SAVE_SECONDS}


def kill_until_through(workdir: Path, most: int, moments: Iterator[tuple[str, float]]) -> list[str]:
    """Starts a run, again after every kill, until it is through; what at most so many kills struck.

    Args:
      workdir: of the run.
      most: after so many kills it is let through.
      moments: (stage, seconds after it) of the next kill.
    """
    struck: list[str] = []
    for stage, seconds in itertools.islice(moments, most):
        output = workdir.with_suffix(".log")
        size = output.stat().st_size if output.exists() else 0
        process = start(workdir)
        if not wait_until(stage, process, workdir, size) or ends_within(seconds, process):
            finish(process, workdir)
            return struck
        process.kill()
        process.wait()
        struck.append(moment(workdir, size))
    finish(start(workdir), workdir)
    return struck


def kill_at_random(folder: Path, kills: int, seed: int) -> tuple[Counter[str], int]:
    """(how many kills struck at which moment, how many runs came through them)."""
    draw, whole = random.Random(seed), folder / "whole"
    lasts = undisturbed(whole)
    moments = ((stage, draw.uniform(0, lasts[stage])) for stage in itertools.cycle(lasts))
    struck: Counter[str] = Counter()
    runs = 0
    with tqdm(total=kills, desc="Killing", unit=" kills", disable=None) as bar:
        while struck.total() < kills:
            workdir = folder / f"run_{runs}"
            found = kill_until_through(workdir, min(PER_RUN, kills - struck.total()), moments)
            check(workdir, whole)
            struck.update(found)
            runs += 1
            bar.update(len(found))
    return struck, runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if left out")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of metadata that only it would miss
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        struck, runs = kill_at_random(folder, options.kills, options.seed)
    for name, count in struck.most_common():
        print(f"{count:6d}  killed {name}")
    print(f"{struck.total()} kills, {runs} runs that came through")
    print("each array and each logged value is the undisturbed run's; nothing of a killed save is left")


if __name__ == "__main__":
    main()
