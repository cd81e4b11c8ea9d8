"""A sweep of three rows, written as a user's file."""

from collections.abc import Callable
from pathlib import Path

TINY = "configs/scenes.py:tiny"


def example(**changes) -> dict:
    rows = {
        "plain": {},
        "wide": {"model.hidden_size": 32, "description": "twice the\n  width"},
        "wide-tenth": {
            "model.hidden_size": 32,
            "weak_labels.known_fraction": 0.1,
            "reference": "wide",
        },
    }
    return {"base": TINY, "reference": "plain", "seeds": (0, 1), "rows": rows, **changes}


def writer(folder: Path) -> Callable[[object], str]:
    """Writes a file whose `get_sweep` returns what it is given, and says where."""

    def write(found: object) -> str:
        path = folder / "mine.py"
        path.write_text(f"def get_sweep(variant=''):\n    return {found!r}\n")
        return str(path)

    return write
