"""Your own images on the real command line: what works, and what a new user gets wrong."""

import json

import pytest
from official_folder import OfficialFolder

from wsca_jax import cli
from wsca_jax.errors import ExitCode

CONFIG = "configs/folder.py"
TINY = (
    "--config.model.trunk.width=8",
    "--config.model.hidden_size=16",
    "--config.model.attr_dim=8",
    "--config.data.images.size=16",
    "--config.train.batch_size=8",
    "--config.evaluation.batch_size=8",
)
CAPTIONS = (
    "--config.data.text.captions=source",
    "--config.data.text.vocabulary=128",
    "--config.model.encoder=default",
    "--config.model.encoder.depth=1",
    "--config.model.encoder.num_heads=2",
    "--config.model.text=default",
    "--config.model.text.depth=1",
    "--config.model.text.num_heads=2",
)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    return OfficialFolder(tmp_path / "mine")


def run(*words):
    return cli.main([str(word) for word in words])


def verify(data_dir):
    return run("verify", "--data", "folder", "--data_dir", data_dir)


def train(data_dir, workdir, epochs, *more):
    settings = (*TINY, f"--config.train.epochs={epochs}", *more)
    return run("train", "--config", CONFIG, "--data_dir", data_dir, "--workdir", workdir, *settings)


@pytest.mark.slow
def test_train_evaluate_prepare_and_evaluate_again(mine, tmp_path, capsys):
    workdir, shards = tmp_path / "run", tmp_path / "shards"
    mine.schema = "name: toys\ngroups: {form: [round], hue: [red, light_blue]}"
    assert train(mine.write(), workdir, 8) == ExitCode.DONE  # of 2 images: two steps
    record = json.loads((workdir / "run.json").read_text())
    assert record["schema"]["groups"] == ["form", "hue"]
    report = json.loads((workdir / "training_report.json").read_text())
    assert report["truth"] == "labels of each image"
    assert report["steps"]["last"] == 2
    assert run("evaluate", "--workdir", workdir, "--split", "test") == ExitCode.DONE
    assert "Truth: labels of each image" in capsys.readouterr().out
    assert run("prepare", "--data", "folder", "--data_dir", mine.folder, "--output", shards) == ExitCode.DONE
    before = json.loads((workdir / "evaluation_test.json").read_text())
    assert run("evaluate", "--workdir", workdir, "--split", "test", "--data_dir", shards) == ExitCode.DONE
    after = json.loads((workdir / "evaluation_test.json").read_text())
    assert after["results"] == before["results"]
    assert after["truth"] == before["truth"] == "labels of each image"


def test_inspect_reads_the_schema_and_no_image(mine, capsys):
    mine.images = {}
    assert run("inspect", "--config", CONFIG, "--data_dir", mine.write(), *TINY) == ExitCode.DONE
    assert "[8, 3]" in capsys.readouterr().out.replace("(", "[").replace(")", "]")


@pytest.mark.slow
def test_compile_reads_the_schema_and_no_image(mine, tmp_path):
    mine.images = {}
    found = tmp_path / "found.json"
    words = ("--topology", "cpu:1", *TINY, "--json", found)
    assert run("compile", "--config", CONFIG, "--data_dir", mine.write(), *words) == ExitCode.DONE
    assert json.loads(found.read_text())[0]["batch_size"] == 8


def test_inspect_without_the_folder_is_one_line(capsys):
    expect_one_line(capsys, run("inspect", "--config", CONFIG), "folder: no data folder", "--data_dir")


def test_prepare_then_verify(mine, tmp_path, capsys):
    shards = tmp_path / "shards"
    where = ("--data_dir", mine.write(), "--output", shards)
    assert run("prepare", "--data", "folder", *where) == ExitCode.DONE
    assert verify(shards) == verify(mine.folder) == ExitCode.DONE
    assert capsys.readouterr().out.count("no problems") == 2


def expect_one_line(capsys, code, *parts):
    assert code == ExitCode.BAD_INPUT
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("wsca: ")]
    assert "Traceback" not in printed
    for part in parts:
        assert part in line


def break_cell(row, column, value):
    def change(mine):
        mine.rows[row][column] = value

    return change


def misspell_attribute(mine):
    mine.schema = "groups:\n  form: [rond]\n  hue: [red, light_blue]"


def rename_path(mine):
    mine.header[0] = "filename"


def repeat_column(mine):
    mine.header[4] = "red"


def drop_image(mine):
    del mine.images["a.jpg"]


def drop_rows(mine):
    mine.rows = []


def only_paths(mine):
    mine.header, mine.rows = mine.header[:2], [row[:2] for row in mine.rows]


def cut_image(mine):
    mine.images["b.png"] = mine.images["b.png"][:200]


WRONG = {
    "a misspelt attribute": (misspell_attribute, ("schema.yaml, line 2", "did you mean 'round'")),
    "a split of another name": (break_cell(0, 1, "trian"), ("line 2", "'trian'", "did you mean 'train'")),
    "an image that is not there": (drop_image, ("line 2", "there is no image", "a.jpg")),
    "no rows": (drop_rows, ("line 1", "no image has a row")),
    "a column twice": (repeat_column, ("line 1", "columns 3 and 5 are both called 'red'")),
    "no column of paths": (rename_path, ("line 1", "if 'filename' is that column, call it 'path'")),
    "no path, no hint": (
        lambda mine: mine.header.__setitem__(0, "what"),
        ("line 1", "expected a column 'path'", "add it"),
    ),
    "no header": (
        lambda mine: mine.header.__setitem__(slice(None), mine.rows.pop(0)),
        ("line 1", "expected a header such as path,split,red,round", "found 'a.jpg'"),
    ),
    "paths of another folder": (break_cell(2, 0, "c.jpeg"), ("line 4", "is it 'deep/er/c.jpeg'?")),
    "no attributes": (only_paths, ("line 1", "expected a column for each attribute")),
    "words for labels": (break_cell(1, 3, "yes"), ("line 3", "'round'", "write 1 for yes")),
    "-1 for absent": (break_cell(1, 3, "-1"), ("line 3", "'round'", "-1 may mean absent or unknown")),
    "an absolute path": (break_cell(0, 0, "/home/me/a.jpg"), ("line 2", "relative to the table's folder")),
    "a path twice": (break_cell(1, 0, "a.jpg"), ("line 3", "has a row on line 2 already")),
    "a cell too few": (lambda mine: mine.rows[2].pop(), ("line 4", "expected 5 cells")),
    "no image format": (break_cell(0, 0, "a.webp"), ("line 2", "convert the image")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_is_one_line_that_says_where(mine, capsys, wrong):
    change, parts = WRONG[wrong]
    change(mine)
    expect_one_line(capsys, verify(mine.write()), str(mine.folder), *parts)


def test_a_damaged_image_is_named(mine, tmp_path, capsys):
    cut_image(mine)
    expect_one_line(capsys, train(mine.write(), tmp_path / "run", 1), "image b.png", "get the image again")
    assert verify(mine.folder) == ExitCode.BAD_INPUT
    assert "image b.png" in capsys.readouterr().out


def test_the_table_itself_is_no_folder(mine, capsys):
    expect_one_line(capsys, verify(mine.write() / "attributes.csv"), "expected a folder", "found a file")


def test_an_empty_table_is_one_line(mine, capsys):
    expect_one_line(capsys, verify(mine.write(table=b"")), "line 1", "path,split,red,round")


def test_training_without_training_images_is_one_line(mine, tmp_path, capsys):
    mine.rows = [[row[0], "test", *row[2:]] for row in mine.rows]
    expect_one_line(capsys, train(mine.write(), tmp_path / "run", 1), "no split 'train'", "it holds test")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("--config.weak_labels.class_level=True", "needs examples with classes"),
        ("--config.data.text.captions=source", "no training image has a caption"),
    ],
)
def test_what_the_data_lacks_is_one_line_before_anything_is_compiled(mine, tmp_path, capsys, wanted, message):
    expect_one_line(capsys, train(mine.write(), tmp_path / "run", 1, wanted), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_captions_keep_their_ids_in_other_data(mine, tmp_path):
    """A run's words are those of its own training captions, whatever it is measured on later."""
    workdir = tmp_path / "run"
    mine.header.append("caption")
    mine.rows = [[*row, f"a zebra {row[0][0]}x"] for row in mine.rows]
    assert train(mine.write(), workdir, 8, *CAPTIONS, "--config.evaluation.captions=True") == ExitCode.DONE
    before = json.loads((workdir / "run.json").read_text())["words"]
    assert before == "zebra ax bx"
    assert run("evaluate", "--workdir", workdir) == ExitCode.DONE
    first = json.loads((workdir / "evaluation_validation.json").read_text())["results"]
    for row in mine.rows[:2]:
        row[-1] = "some tram or other"  # other words in training, the same in validation
    assert run("evaluate", "--workdir", workdir, "--data_dir", mine.write()) == ExitCode.DONE
    again = json.loads((workdir / "evaluation_validation.json").read_text())["results"]
    assert again == first
    assert train(mine.folder, workdir, 8, *CAPTIONS, "--config.evaluation.captions=True") == ExitCode.DONE
    assert json.loads((workdir / "run.json").read_text())["words"] == before
