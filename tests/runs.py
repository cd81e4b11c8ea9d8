"""What a training run leaves behind, read and compared."""

import json
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parent.parent
# Seconds between starting a process and its first step: imports and a compilation, on a busy machine.
PATIENCE = 400


def printed(workdir: Path) -> Path:
    return workdir.with_name(workdir.name + ".log")


def log(workdir: Path) -> list[dict]:
    """Rows of the log without what the clock decides."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "kind", "values")} for row in rows]


def wait_for(process: subprocess.Popen, workdir: Path, happened) -> None:
    begun = time.monotonic()
    while not happened():
        assert process.poll() is None, printed(workdir).read_text()
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.01)


def arrays(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, of the last one if none is named."""
    folder = workdir / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if step is None else step
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    path = folder / str(step) / "state"
    metadata = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {str(path): np.asarray(leaf) for path, leaf in flat}


def overall(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())["results"]["overall"]


def assert_same_run(workdir: Path, whole: Path) -> None:
    """Every array of the last state and every logged value, bit for bit."""
    assert log(workdir) == log(whole)
    found, expected = arrays(workdir), arrays(whole)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
