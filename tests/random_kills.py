"""Kills training runs at random moments and holds what becomes of them against one that was left alone.

    python tests/random_kills.py [--kills 50] [--seed 0] [--folder F]

Each run is started again after every kill, as a user would, until it is through; then every array of its last
state and every logged value must be those of the undisturbed run, bit for bit, and nothing of a killed save
may be left. Then the next run, until there were enough kills. Prints when they struck. Exit code 1 where
anything differs.

The real command line, with a trunk that compiles in no time (small_wsca.py) and a save at every third step.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
ENVIRONMENT = {"WSCA_PAUSE": "0.1", "PYTHONPATH": str(ROOT)}


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


def moment(workdir: Path) -> str:
    """What a process that was just killed was at, from what it left."""
    if any(workdir.glob("checkpoints/*.saving")):
        return "during a save"
    lines = workdir / "metrics.jsonl"
    if not (workdir / "run.json").exists():
        return "before the run's record"
    return "before the first step" if not lines.exists() or not lines.read_text() else "between saves"


def check(workdir: Path, whole: Path) -> None:
    """Raises AssertionError where the run is another than the undisturbed one, or something is left over."""
    assert_same_run(workdir, whole)
    left = [path for path in (workdir / "checkpoints").iterdir() if not path.name.isdecimal()]
    assert not left, f"left over: {left}"
    assert not (workdir / "quarantine").exists()


def kill_until_through(workdir: Path, longest: float, most: int, draw: random.Random) -> list[str]:
    """Starts a run, again after every kill, until it is through; the moments of at most so many kills."""
    struck: list[str] = []
    while len(struck) < most:
        process = start(workdir)
        try:
            process.wait(draw.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            struck.append(moment(workdir))
            continue
        finish(process, workdir)
        return struck
    finish(start(workdir), workdir)
    return struck


def kill_at_random(folder: Path, kills: int, seed: int) -> tuple[Counter[str], int]:
    """(how many kills struck at which moment, how many runs came through them)."""
    draw, whole = random.Random(seed), folder / "whole"
    begun = time.monotonic()
    finish(start(whole), whole)
    longest = time.monotonic() - begun
    struck: Counter[str] = Counter()
    runs = 0
    with tqdm(total=kills, desc="Killing", unit=" kills", disable=None) as bar:
        while struck.total() < kills:
            workdir = folder / f"run_{runs}"
            moments = kill_until_through(workdir, longest, kills - struck.total(), draw)
            check(workdir, whole)
            struck.update(moments)
            runs += 1
            bar.update(len(moments))
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
