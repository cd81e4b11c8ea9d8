"""The compilation cache that is on by default: used, bounded, harmless where damaged, and easily refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import random_kills
from runs import PATIENCE, ROOT, assert_same_run

from wsca_jax.compiled import prune

TOLD = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS")


def train(workdir: Path, cache: Path, **told: str) -> str:
    """A short run, where jax was told nothing but this of its cache; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in TOLD}
    environment |= {"PYTHONPATH": str(ROOT), "WSCA_CACHE": str(cache), **told}
    command = [*random_kills.COMMAND, str(workdir), "--config.train.epochs=1"]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def entries(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("compiled/*/jit_*")}


@pytest.fixture(scope="module")
def cold(tmp_path_factory) -> Path:
    """A folder with a run that found nothing compiled, and its cache."""
    folder = tmp_path_factory.mktemp("cold")
    train(folder / "run", folder / "cache", JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS="0")
    return folder


@pytest.mark.slow
def test_what_was_compiled_serves_the_next_run_which_is_the_same_run(cold, tmp_path):
    before = entries(cold / "cache")
    assert any(name.startswith("jit_train_step") for name in before)
    train(tmp_path / "run", cold / "cache", JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert entries(cold / "cache") == before
    assert_same_run(tmp_path / "run", cold / "run")


@pytest.mark.slow
def test_a_torn_entry_is_compiled_anew(cold, tmp_path):
    (folder,) = (cold / "cache" / "compiled").iterdir()
    torn = tmp_path / "cache" / "compiled" / folder.name
    torn.mkdir(parents=True)
    for name, content in entries(cold / "cache").items():
        (torn / name).write_bytes(content[: len(content) // 2])
    printed = train(tmp_path / "run", tmp_path / "cache")
    assert "Traceback" not in printed
    assert_same_run(tmp_path / "run", cold / "run")


@pytest.mark.slow
def test_jax_s_own_words_go_first_and_a_folder_nobody_can_write_is_no_error(tmp_path):
    script = (
        "from wsca_jax.compiled import keep_compiled; import jax; "
        "print(keep_compiled(), jax.config.jax_compilation_cache_dir)"
    )

    def printed(**told: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in TOLD}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment | told,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    cache = {"WSCA_CACHE": str(tmp_path)}
    assert printed(**cache).startswith(f"{tmp_path}/compiled/")
    assert printed(**cache, JAX_COMPILATION_CACHE_DIR="/elsewhere") == "None /elsewhere"
    assert printed(**cache, JAX_ENABLE_COMPILATION_CACHE="false") == "None None"
    (tmp_path / "file").touch()
    assert printed(WSCA_CACHE=str(tmp_path / "file")) == "None None"


def test_the_oldest_files_go_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    prune(tmp_path, 30)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle", "old"}
    prune(tmp_path, 29)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle"}
    prune(tmp_path, 10)
    assert {path.name for path in tmp_path.iterdir()} == {"new"}
