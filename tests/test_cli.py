"""The command line: help a person can use, and one clear line with a non-zero exit for every bad input."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from input_pipeline import celeba, scenes
from input_pipeline.images import image_shape
from wsca_jax import cli, config
from wsca_jax.engine.record import write_run_record
from wsca_jax.errors import ExitCode

ROOT = Path(__file__).resolve().parent.parent
CELEBA = "configs/celeba.py:small"
SCENES = "configs/scenes.py:tiny"


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A folder in CelebA's official layout: 12 images, 8 for training, 4 for validation."""
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "official"
    folder.mkdir()
    names = [f"{number:06d}.jpg" for number in range(1, 13)]
    random = np.random.default_rng(0)
    rows = [f"{name} {' '.join(random.choice(['1', '-1'], 40))}" for name in names]
    lines = [str(len(names)), " ".join(celeba.SCHEMA.attributes), *rows]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    split = "".join(f"{name} {int(number >= 8)}\n" for number, name in enumerate(names))
    (folder / "list_eval_partition.txt").write_text(split)
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for name in names:
            pixels = random.integers(0, 255, (40, 32, 3), np.uint8)
            archive.writestr(f"img_align_celeba/{name}", cv2.imencode(".jpg", pixels)[1].tobytes())
    return folder


def run(*arguments: str) -> int:
    return cli.main([str(argument) for argument in arguments])


def expect_one_line(capsys, code: int, *parts: str) -> None:
    """The command failed as bad input, with one line on stderr that holds these parts."""
    assert code == ExitCode.BAD_INPUT
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wsca: ")]
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    "words",
    [
        ["sweep"],
        ["compare"],
        [],
        ["train"],
        ["evaluate"],
        ["inspect"],
        ["compile"],
        ["visualize"],
        ["prepare"],
        ["verify"],
        ["bench"],
        ["bench", "input"],
        ["bench", "step"],
    ],
)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*words, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text or "exit codes" in text


def test_help_answers_at_once_because_nothing_heavy_is_imported():
    code = (
        "import sys; before = set(sys.modules); "
        "import wsca_jax.cli as cli; cli.build_parser().format_help(); "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(loaded - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "['wsca_jax']"


def test_missing_data_folder(tmp_path, capsys):
    folder = tmp_path / "nowhere"
    code = run("train", "--config", CELEBA, "--data_dir", folder, "--workdir", tmp_path / "w")
    expect_one_line(capsys, code, str(folder))


def test_no_data_folder_at_all(tmp_path, capsys):
    expect_one_line(capsys, run("train", "--config", CELEBA, "--workdir", tmp_path / "w"), "data_dir")


def test_empty_data_folder(tmp_path, capsys):
    folder = tmp_path / "empty"
    folder.mkdir()
    code = run("train", "--config", CELEBA, "--data_dir", folder, "--workdir", tmp_path / "w")
    expect_one_line(capsys, code, str(folder), "empty", "official files")


def corrupt(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_missing_attribute_column(official, tmp_path, capsys):
    corrupt(official / "list_attr_celeba.txt", "Wearing_Hat ", "")
    code = run("train", "--config", CELEBA, "--data_dir", official, "--workdir", tmp_path / "w")
    expect_one_line(capsys, code, "list_attr_celeba.txt", "Wearing_Hat")


def test_wrong_count_line(official, tmp_path, capsys):
    corrupt(official / "list_attr_celeba.txt", "12\n", "13\n")
    code = run("train", "--config", CELEBA, "--data_dir", official, "--workdir", tmp_path / "w")
    expect_one_line(capsys, code, "list_attr_celeba.txt", "13", "12")


def test_image_listed_but_absent(official, tmp_path, capsys):
    rewrite_zip(official, lambda name, data: None if "000003" in name else data)
    code = run("train", "--config", CELEBA, "--data_dir", official, "--workdir", tmp_path / "w")
    expect_one_line(capsys, code, "000003.jpg")


def test_truncated_jpeg(official, tmp_path, capsys):
    rewrite_zip(official, lambda name, data: data[: len(data) // 2] if "000003" in name else data)
    code = run("train", "--config", CELEBA, "--data_dir", official, "--workdir", tmp_path / "w")
    expect_one_line(capsys, code, "000003.jpg")


def rewrite_zip(official: Path, change) -> None:
    path = official / "img_align_celeba.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if (changed := change(name, data)) is not None:
                archive.writestr(name, changed)


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ("../up.jpg", "leads out"),
        ("/etc/passwd", "absolute path"),
        ("img_align_celeba/000001.jpg", "two members"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_bad_member_refuses_the_whole_archive(official, tmp_path, capsys, member, complaint):
    with zipfile.ZipFile(official / "img_align_celeba.zip", "a") as archive:
        archive.writestr(member, b"anything")
    code = run("prepare", "--data", "celeba", "--data_dir", official, "--output", tmp_path / "shards")
    expect_one_line(capsys, code, "img_align_celeba.zip", "refused as unsafe", complaint)
    assert not (tmp_path / "shards").exists()


def test_the_caps_of_archives_are_the_users(official, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WSCA_ARCHIVE_MEMBERS", "11")
    code = run("verify", "--data", "celeba", "--data_dir", official)
    expect_one_line(capsys, code, "more than 11 members", "docs/input-pipeline.md")
    monkeypatch.setenv("WSCA_ARCHIVE_MEMBERS", "12")
    assert run("verify", "--data", "celeba", "--data_dir", official) == ExitCode.DONE


def test_a_data_set_is_told_by_its_files(official, tmp_path, capsys):
    shards = tmp_path / "shards"
    assert run("verify", "--data_dir", official) == ExitCode.DONE
    assert run("prepare", "--data_dir", official, "--output", shards) == ExitCode.DONE
    assert run("verify", "--data_dir", shards) == ExitCode.DONE
    capsys.readouterr()
    expect_one_line(capsys, run("verify", "--data_dir", tmp_path / "none"), "found nothing", "--data_dir")
    (tmp_path / "empty").mkdir()
    expect_one_line(capsys, run("verify", "--data_dir", tmp_path / "empty"), "no data set's files", "--data ")
    (official / "more.csv").write_text("path,red\n")
    expect_one_line(capsys, run("verify", "--data_dir", official), "celeba and of folder", "--data ")


def test_misspelt_config_key(tmp_path, capsys):
    code = run("train", "--config", SCENES, "--workdir", tmp_path, "--config.optimizer.learning_rat=1")
    expect_one_line(capsys, code, "learning_rat'", "did you mean --config.optimizer.learning_rate")


def test_override_without_equals_sign(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("train", "--config", SCENES, "--workdir", tmp_path, "--config.seed", "3")
    assert stopped.value.code == 2
    assert "--config.key=value" in capsys.readouterr().err


def test_workdir_of_another_schema(official, tmp_path, capsys):
    settings = config.load(SCENES)
    write_run_record(tmp_path / "w", config.to_json(settings), scenes.SCHEMA)
    code = run("train", "--config", CELEBA, "--data_dir", official, "--workdir", tmp_path / "w")
    expect_one_line(capsys, code, "run.json", "36 attributes", "40")


def test_unwritable_workdir(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    expect_one_line(capsys, run("train", "--config", SCENES, "--workdir", blocked / "w"), str(blocked))


def test_evaluating_what_is_no_run(tmp_path, capsys):
    expect_one_line(capsys, run("evaluate", "--workdir", tmp_path), "run.json", "wsca train")


def test_prepare_stores_smaller_images_where_asked_for(official, tmp_path):
    shards = tmp_path / "shards"
    where = ("--data_dir", official, "--output", shards)
    assert run("prepare", "--data", "celeba", *where, "--resize", "9") == ExitCode.DONE
    source = celeba.open_split(shards, "train", celeba.Options())
    assert min(image_shape(source[0].image)) == 9


def test_prepare_then_verify_and_a_flipped_bit(official, tmp_path, capsys):
    shards = tmp_path / "shards"
    assert run("prepare", "--data", "celeba", "--data_dir", official, "--output", shards) == ExitCode.DONE
    assert run("verify", "--data", "celeba", "--data_dir", shards) == ExitCode.DONE
    assert "no problems" in capsys.readouterr().out
    shard = next(shards.glob("**/*train.array_record*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    expect_one_line(capsys, run("verify", "--data", "celeba", "--data_dir", shards), str(shards), "problem")


def test_a_disk_too_small_for_what_is_prepared_has_a_code_of_its_own(official, tmp_path, monkeypatch, capsys):
    free = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 1000)
    command = ("prepare", "--data", "celeba", "--data_dir", official, "--output", tmp_path / "x")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    assert run(*command) == ExitCode.OUT_OF_DISK
    assert "1.0 KiB are free; make room" in capsys.readouterr().err


def test_scenes_have_nothing_to_prepare(tmp_path, capsys):
    code = run("prepare", "--data", "scenes", "--data_dir", tmp_path, "--output", tmp_path / "x")
    expect_one_line(capsys, code, "scenes", "prepare")


def test_inspect_prints_the_dry_run(capsys):
    assert run("inspect", "--config", SCENES) == ExitCode.DONE
    text = capsys.readouterr().out
    for part in ("image", "trunk", "classification", "multiply-adds", "--config.optimizer.learning_rate"):
        assert part in text, part
