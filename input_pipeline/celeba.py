"""CelebA: 202,599 aligned face images, 40 binary attributes in eight groups.

Reads the official files (see `celeba_files`) or a folder made by `prepare`. Official files are prepared once,
into a cache. For non-commercial research; the data set's terms forbid redistribution.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from input_pipeline import celeba_files, prepared
from input_pipeline.errors import DataError
from input_pipeline.prepared import PreparedSource
from input_pipeline.schema import AttributeSchema
from input_pipeline.verify import Finding, VerifyReport, summarise, verify_prepared

# In the official order: the label vector follows it. The phrase completes "a photo of a person ...".
_PHRASES = MappingProxyType(
    {
        "5_o_Clock_Shadow": "with a five o'clock shadow",
        "Arched_Eyebrows": "with arched eyebrows",
        "Attractive": "with an attractive face",
        "Bags_Under_Eyes": "with bags under the eyes",
        "Bald": "with a bald head",
        "Bangs": "with bangs over the forehead",
        "Big_Lips": "with big lips",
        "Big_Nose": "with a big nose",
        "Black_Hair": "with black hair",
        "Blond_Hair": "with blond hair",
        "Blurry": "in a blurry picture",
        "Brown_Hair": "with brown hair",
        "Bushy_Eyebrows": "with bushy eyebrows",
        "Chubby": "with a chubby face",
        "Double_Chin": "with a double chin",
        "Eyeglasses": "wearing eyeglasses",
        "Goatee": "with a goatee",
        "Gray_Hair": "with gray hair",
        "Heavy_Makeup": "wearing heavy makeup",
        "High_Cheekbones": "with high cheekbones",
        "Male": "who is a man",
        "Mouth_Slightly_Open": "with the mouth slightly open",
        "Mustache": "with a mustache",
        "Narrow_Eyes": "with narrow eyes",
        "No_Beard": "without a beard",
        "Oval_Face": "with an oval face",
        "Pale_Skin": "with pale skin",
        "Pointy_Nose": "with a pointy nose",
        "Receding_Hairline": "with a receding hairline",
        "Rosy_Cheeks": "with rosy cheeks",
        "Sideburns": "with sideburns",
        "Smiling": "who is smiling",
        "Straight_Hair": "with straight hair",
        "Wavy_Hair": "with wavy hair",
        "Wearing_Earrings": "wearing earrings",
        "Wearing_Hat": "wearing a hat",
        "Wearing_Lipstick": "wearing lipstick",
        "Wearing_Necklace": "wearing a necklace",
        "Wearing_Necktie": "wearing a necktie",
        "Young": "who is young",
    }
)

SCHEMA = AttributeSchema.from_groups(
    "celeba",
    tuple(_PHRASES),
    {
        "hair_style": (4, 5, 8, 9, 11, 17, 28, 32, 33),
        "facial_features": (1, 3, 6, 7, 12, 13, 14, 19, 23, 25, 26, 27, 29),
        "makeup": (18, 36, 37),
        "accessories": (15, 34, 35, 38),
        "expression": (21, 31),
        "demographics": (20, 39),
        "facial_hair": (0, 16, 22, 24, 30),
        "quality": (2, 10),
    },
    phrases=tuple(f"a person {phrase}" for phrase in _PHRASES.values()),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the data set.

    Attributes:
      cache_dir: where official files are prepared; None for $WSCA_CACHE, or ~/.cache/wsca_jax without it.
    """

    cache_dir: str | None = None


def open_split(data_dir: Path | None, split: str, options: Options) -> PreparedSource:
    """Opens "train", "validation" or "test" of a prepared folder or of the official files.

    Official files, which may be read-only, are prepared into the cache if they are not there yet: once, also
    where several processes ask at the same time. Changed files are a new entry of the cache.

    Raises:
      DataError: no data, damaged data, no such split; see `celeba_files` and `prepared`.
    """
    folder = _existing(data_dir)
    if not prepared.is_prepared(folder):
        folder = _cached(folder, options)
    return PreparedSource(folder, split, SCHEMA)


def prepare(source_dir: Path, output_dir: Path) -> Path:
    """Writes the official files as a TFDS data set in ArrayRecord, with a manifest of checksums.

    The folder appears whole or not at all. Every image is decoded once on the way.

    Args:
      source_dir: the official files.
      output_dir: must not exist yet, or be empty.

    Returns:
      `output_dir`.

    Raises:
      DataError: bad input, or a folder that cannot be written.
    """
    source_dir = _existing(source_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise DataError(f"{output_dir}: already there and not an empty folder; choose a new one")
    scratch = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.tmp")
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        os.replace(_build(source_dir, scratch), output_dir)
    except OSError as error:
        raise DataError(f"{output_dir}: cannot be written: {error}; choose a folder that can") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return output_dir


def verify(data_dir: Path) -> VerifyReport:
    """Checks a prepared folder against its manifest, or every image of the official files.

    Raises:
      DataError: data that cannot even be listed: nothing there, contradicting lists, an absent image.
    """
    folder = _existing(data_dir)
    if prepared.is_prepared(folder):
        return verify_prepared(folder)
    paths = celeba_files.find(folder)
    listing = celeba_files.read_listing(paths, SCHEMA.attributes)
    images = celeba_files.Images(paths.images, listing.keys)
    examples = {split: len(rows) for split, rows in listing.rows.items()}
    findings = {split: _official_findings(paths, images, listing, split) for split in listing.rows}
    return summarise(folder, SCHEMA.attributes, examples, findings)


def _official_findings(
    paths: celeba_files.Paths, images: celeba_files.Images, listing: celeba_files.Listing, split: str
) -> Iterator[Finding]:
    for row in listing.rows[split]:
        try:
            celeba_files.check_image(paths.images, listing.keys[row], images.read(listing.keys[row]))
            yield listing.labels[row]
        except DataError as error:
            yield str(error)


def _existing(folder: Path | None) -> Path:
    if folder is None:
        raise DataError("celeba is read from files: give their folder with --data_dir")
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with CelebA, found nothing; check --data_dir")
    if not any(folder.iterdir()):
        raise DataError(
            f"{folder}: the folder is empty; put CelebA's official files there or check --data_dir"
        )
    return folder


def _cached(source_dir: Path, options: Options) -> Path:
    """The cache's entry for these files, prepared now if it is not there."""
    root = _cache_root(options) / "celeba"
    entry = root / celeba_files.fingerprint(celeba_files.find(source_dir))
    if not prepared.is_prepared(entry):
        with _locked(entry):
            if not prepared.is_prepared(entry):  # another process may have been first
                _remove_scratch(entry)
                print(f"Preparing {source_dir} once, into {entry}", file=sys.stderr)
                prepare(source_dir, entry)
    return entry


def _remove_scratch(entry: Path) -> None:
    """Removes what killed processes left of this entry. Whoever holds the lock is the only one alive."""
    for dead in entry.parent.glob(f".{entry.name}.*.tmp"):
        shutil.rmtree(dead, ignore_errors=True)


def _cache_root(options: Options) -> Path:
    chosen = options.cache_dir or os.environ.get("WSCA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "wsca_jax"


@contextlib.contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Waits until no other process of this machine prepares the entry."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        file = entry.with_suffix(".lock").open("w")
    except OSError as error:
        raise DataError(
            f"{entry.parent}: the cache cannot be written: {error}; set WSCA_CACHE to a folder that can"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(source_dir: Path, scratch: Path) -> Path:
    """Runs the TFDS builder and adds the manifest. Returns the folder of the finished version."""
    import tensorflow_datasets as tfds  # slow to import, and needed nowhere else

    from input_pipeline.celeba_builder import CelebaAttributes

    builder = CelebaAttributes(data_dir=scratch, file_format="array_record")
    settings = tfds.download.DownloadConfig(manual_dir=source_dir)
    tfds.disable_progress_bar()  # ours is one bar, not one per stage
    with contextlib.redirect_stdout(io.StringIO()):  # announces the scratch folder as the data's home
        builder.download_and_prepare(download_dir=scratch / "downloads", download_config=settings)
    folder = Path(builder.data_dir)
    shards = {
        name: [
            (Path(file).name, records)
            for file, records in zip(info.filepaths, info.shard_lengths, strict=True)
        ]
        for name, info in builder.info.splits.items()
    }
    prepared.write_manifest(folder, SCHEMA, shards)
    return folder
