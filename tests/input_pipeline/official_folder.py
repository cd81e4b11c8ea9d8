"""A user's folder of images with its table, made from nothing."""

import csv
import io
from pathlib import Path

from official_files import jpeg

CELL = {0: "0", 1: "1", 2: ""}  # by code


def table_text(rows, delimiter=",", line_end="\n", quoting=csv.QUOTE_MINIMAL, bom=False):
    """The bytes of a CSV with these rows of cells."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows(rows)
    return text.getvalue().encode("utf-8-sig" if bom else "utf-8")


class OfficialFolder:
    """Five images in two places, three attributes. Change the fields, then `write`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header = ["path", "split", "red", "round", "light_blue"]
        self.group_row: list[str] | None = None
        self.rows = [
            ["a.jpg", "train", "1", "0", ""],
            ["b.png", "train", "0", "1", ""],
            ["deep/er/c.jpeg", "val", "", "", "1"],
            ["deep/d, e.jpg", "test", "1", "1", "1"],
            ["deep/f.JPG", "validation", "0", "0", "0"],
        ]
        self.images = {row[0]: jpeg(i) for i, row in enumerate(self.rows)}
        self.schema: str | None = None

    def write(self, name="attributes.csv", table: bytes | None = None, **dialect):
        """Writes everything; `table` replaces the bytes of the CSV."""
        for key, image in self.images.items():
            (self.folder / key).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / key).write_bytes(image)
        rows = [self.header, *([self.group_row] if self.group_row else []), *self.rows]
        (self.folder / name).write_bytes(table_text(rows, **dialect) if table is None else table)
        if self.schema is not None:
            (self.folder / "schema.yaml").write_text(self.schema, "utf-8")
        return self.folder
