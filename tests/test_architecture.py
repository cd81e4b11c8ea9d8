"""The floors: imports only point down. Read from the source text, so that nothing needs to run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up. A module may import from its own floor (but see APART) and from those beneath it.
FLOORS = (
    ("input_pipeline", "wsca_jax.errors"),
    ("wsca_jax.models", "wsca_jax.losses", "wsca_jax.augment", "wsca_jax.distortion", "wsca_jax.metrics"),
    ("wsca_jax.methods",),
    ("wsca_jax.engine",),
)
ROOF = len(FLOORS)

# (importer, imported): rooms that never see each other although they stand on one floor.
APART = (
    ("wsca_jax.models", "wsca_jax.losses"),
    ("wsca_jax.losses", "wsca_jax.models"),
    ("wsca_jax.augment", "wsca_jax.models"),
    ("wsca_jax.metrics", "wsca_jax.models"),
)


def modules():
    files = [*ROOT.glob("input_pipeline/**/*.py"), *ROOT.glob("wsca_jax/**/*.py")]
    return sorted(files)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Full names of everything a file imports, wherever in it: at the top, in functions, for types."""
    package = module_name(path).split(".")
    if path.stem != "__init__":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name, room):
    return name == room or name.startswith(room + ".")


def floor(name):
    for height, rooms in enumerate(FLOORS):
        if any(within(name, room) for room in rooms):
            return height
    return ROOF


def ours(name):
    return within(name, "input_pipeline") or within(name, "wsca_jax")


PATHS = pytest.mark.parametrize("path", modules(), ids=module_name)


@PATHS
def test_imports_point_down(path):
    importer = module_name(path)
    upward = [name for name in imports(path) if ours(name) and floor(name) > floor(importer)]
    # The package itself stands on no floor: importing any of its modules imports it.
    upward = [name for name in upward if name != "wsca_jax"]
    assert not upward, f"{importer} imports from a higher floor: {upward}"


@PATHS
def test_rooms_on_one_floor_stay_apart(path):
    importer = module_name(path)
    forbidden = [there for here, there in APART if within(importer, here)]
    found = [name for name in imports(path) if any(within(name, there) for there in forbidden)]
    assert not found, f"{importer} must not import {found}"


@PATHS
def test_configs_is_never_imported(path):
    assert not [name for name in imports(path) if within(name, "configs")]


def test_nothing_else_imports_configs_either():
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("configs/**/*.py")]
    assert not {str(path): n for path in files for n in imports_of_script(path) if within(n, "configs")}


def imports_of_script(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", sorted(ROOT.glob("input_pipeline/**/*.py")), ids=module_name)
def test_the_ground_floor_knows_no_accelerator(path):
    found = [
        n for n in imports(path) if n.split(".")[0] in ("jax", "flax", "optax", "wsca_jax", "tensorflow")
    ]
    assert not found, f"{module_name(path)} imports {found}"


def method_names():
    return {path.stem for path in ROOT.glob("wsca_jax/methods/*.py")} - {"__init__", "base"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("wsca_jax/engine/**/*.py")), ids=module_name)
def test_the_engine_names_no_method(path):
    tree = ast.parse(path.read_text("utf-8"), str(path))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not method_names() & (strings | names | attributes)
    used = [name for name in imports(path) if within(name, "wsca_jax.methods")]
    assert all(within(name, "wsca_jax.methods.base") for name in used), used


def test_the_walls_are_tested_at_all():
    """The rules above hold of this very tree, not of an empty list."""
    names = {module_name(path) for path in modules()}
    assert {"input_pipeline.batch", "wsca_jax.losses.composite", "wsca_jax.methods.base"} <= names
    assert method_names()
    assert "input_pipeline.errors.DataError" in set(imports(ROOT / "input_pipeline/images.py"))
