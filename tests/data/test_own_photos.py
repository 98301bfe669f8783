"""One's own photos: every layout of captions, splits that stay, what is left out, what is refused."""

import json
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_runs import TINY, tiny_evaluate

from mmlib import files
from mmlib.config import ParameterError, TrainConfig, ask, build
from mmlib.data import load_dataset
from mmlib.search import Retriever
from mmlib.training import train

SIZES = {"batch_size": 4, "epochs": 1, "lr": 0.001, "run": "own"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(files, "RUNS", tmp_path / "runs")
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def paint(root, *names):
    """A different noisy picture for each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 24)).save(path)


def load(root, **changes):
    return load_dataset(build(TrainConfig, {**SIZES, "dataset": "folder", "data_root": str(root), **changes}))


def everything(dataset) -> dict[str, list[str]]:
    """Image → captions, over all splits."""
    found = {name: [] for split in dataset.splits.values() for name in split.images}
    for split in dataset.splits.values():
        for caption, image in zip(split.captions, split.image_of_caption_M):
            found[split.images[image]].append(caption)
    return found


NAMES = [f"{number:02d}.png" for number in range(40)]
SAID = {name: [f"photo, number {number}", f'said "{number}" ünd 🎈'] for number, name in enumerate(NAMES)}


def table(separator: str, quoted: bool = True) -> str:
    def cell(text):
        return '"' + text.replace('"', '""') + '"' if quoted else text

    rows = [separator.join([name, cell(text)]) for name, said in SAID.items() for text in said]
    return "\n".join([separator.join(["image", "caption"]), *rows]) + "\n"


CSV = {
    "comma": table(",").encode(),
    "semicolon, BOM, CRLF": b"\xef\xbb\xbf" + table(";").replace("\n", "\r\n").encode(),
    "tab, unquoted": table("\t", quoted=False).replace('"', "'").encode(),
    "Excel's mark": b"sep=;\r\n" + table(";").encode(),
    "Excel's Unicode text": table("\t").encode("utf-16"),
    "other names, more columns": table(",").replace("image,caption", "Text_Id,File_Name,Caption", 1)
    .replace("\n0", "\n7,0").replace("\n1", "\n7,1").replace("\n2", "\n7,2").replace("\n3", "\n7,3").encode(),
}  # fmt: skip


@pytest.mark.parametrize("content", CSV.values(), ids=CSV)
def test_tables_of_many_makers_are_read(root, content):
    paint(root, *NAMES)
    (root / "captions.csv").write_bytes(content)
    plain = {name: [text.replace('"', "'") for text in said] for name, said in SAID.items()}
    found = {name: [text.replace('"', "'") for text in said] for name, said in everything(load(root)).items()}
    assert found == plain


def test_the_layouts_of_image_folders_are_read(root):
    paint(root, *NAMES)
    lines = [{"file_name": name, "text": said} for name, said in SAID.items()]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = load(root)
    assert everything(expected) == SAID
    (root / "metadata.jsonl").unlink()
    rows = [
        f'{name},"{text}"' for name, said in SAID.items() for text in (t.replace('"', '""') for t in said)
    ]
    (root / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    assert load(root).fingerprint == expected.fingerprint
    (root / "metadata.csv").unlink()
    for name, said in SAID.items():
        (root / name).with_suffix(".txt").write_text("\n".join(said) + "\n\n")
    assert load(root).fingerprint == expected.fingerprint


def test_parquet_is_read_where_pyarrow_is_and_asked_for_where_not(root, monkeypatch):
    paint(root, *NAMES)
    (root / "metadata.parquet").write_bytes(b"PAR1")
    frame = pd.DataFrame({"file_name": NAMES, "text": [np.array(SAID[name]) for name in NAMES]})
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    assert everything(load(root)) == SAID

    def missing(path):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(ValueError, match="needs pyarrow, which is not installed; pip install pyarrow"):
        load(root)


def test_metadata_in_split_folders(root):
    for folder in ("train", "validation", "test"):
        paint(root, f"{folder}/a.png", f"{folder}/deep/b.png")
        (root / folder / "metadata.csv").write_text(f"file_name,text\na.png,{folder} a\ndeep/b.png,b\n")
    dataset = load(root)
    assert dataset.splits["val"].images == ("validation/a.png", "validation/deep/b.png")
    assert dataset.splits["train"].captions == ("train a", "b")


def test_a_split_column_beats_folders_and_folders_beat_drawing(root):
    paint(root, "train/a.png", "dev/b.png", "test/c.png")
    (root / "captions.csv").write_text("image,caption\na.png,one\nb.png,two\ntest/c.png,three\n")
    assert {s: load(root).splits[s].images for s in ("train", "val", "test")} == {
        "train": ("train/a.png",), "val": ("dev/b.png",), "test": ("test/c.png",),
    }  # fmt: skip
    (root / "captions.csv").write_text(
        "image,caption,split\na.png,one,Test\nb.png,two,train\nc.png,three,dev\n"
    )
    assert load(root).splits["test"].images == ("train/a.png",)


def test_drawn_splits_stay_when_photos_are_added(root):
    paint(root, *NAMES)
    (root / "captions.csv").write_bytes(CSV["comma"])
    before = {name: split.name for split in load(root).splits.values() for name in split.images}
    more = [f"new{number}.png" for number in range(20)]
    paint(root, *more)
    with open(root / "captions.csv", "a") as file:
        file.writelines(f"{name},new\n" for name in more)
    after = {name: split.name for split in load(root).splits.values() for name in split.images}
    assert {name: after[name] for name in before} == before
    other = {name: split.name for split in load(root, split_seed=1).splits.values() for name in split.images}
    assert other != after
    shares = {split: list(after.values()).count(split) / 60 for split in ("val", "test")}
    assert all(0.02 < share < 0.35 for share in shares.values())


def test_what_is_left_out_is_counted_and_named(root):
    paint(root, *NAMES, "unused.png")
    (root / "captions.csv").write_bytes(CSV["comma"] + b"gone.png,nothing\ngone2.png,nothing\n00.png,\n")
    paint(root, "twin.png")
    (root / "twin.png").write_bytes((root / NAMES[0]).read_bytes())
    notes = "\n".join(load(root).notes)
    assert "captions of 2 photos without a file: gone.png and 1 more" in notes
    assert "2 photos without captions: twin.png and 1 more" in notes
    assert "1 empty caption" in notes
    assert "drawn by split_seed 0, val_fraction 0.15, test_fraction 0.15" in notes


def test_photos_beside_the_folders_of_the_splits_are_left_out_and_named(root):
    names = ["train/a.png", "val/b.png", "test/c.png", "more/d.png"]
    paint(root, *names)
    (root / "captions.csv").write_text("image,caption\n" + "".join(f"{name},said\n" for name in names))
    dataset = load(root)
    assert "more/d.png" not in everything(dataset)
    assert any("1 photo outside the folders of the splits: more/d.png" in note for note in dataset.notes)


def test_a_table_is_found_and_its_columns_are_read_in_any_spelling(root):
    paint(root, *NAMES)
    (root / "Captions.CSV").write_text(table(",").replace("image,caption", "File Name,CAPTION", 1))
    assert everything(load(root)) == SAID


def test_captions_that_are_missing_in_json_and_parquet_are_left_out(root, monkeypatch):
    paint(root, *NAMES)
    lines = [{"file_name": name, "text": [said[0], None, ""]} for name, said in SAID.items()]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset = load(root)
    assert everything(dataset) == {name: said[:1] for name, said in SAID.items()}
    assert any("80 empty captions" in note for note in dataset.notes)
    (root / "metadata.jsonl").rename(root / "metadata.parquet")
    frame = pd.DataFrame({"file_name": NAMES, "text": [float("nan"), *(SAID[name][0] for name in NAMES[1:])]})
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    assert NAMES[0] not in everything(load(root))


def test_too_few_photos_are_told_what_would_do(root):
    paint(root, "a.png", "b.png", "c.png")
    (root / "captions.csv").write_text("image,caption\na.png,x\n")
    with pytest.raises(ValueError, match=r"captions of at least 3 photos, .* found 1; add captions"):
        load(root)
    (root / "captions.csv").write_text("image,caption\na.png,x\nb.png,y\nc.png,z\n")
    with pytest.raises(ValueError, match=r"found none in .*; use split_seed \d+, or add photos") as caught:
        load(root)
    seed = int(re.search(r"split_seed (\d+), or", str(caught.value))[1])
    assert all(load(root, split_seed=seed).splits[split].images for split in ("train", "val", "test"))


def test_what_lies_elsewhere_or_is_of_another_kind_is_named(root):
    paint(root, "photos/a.png", "photos/b.png", "photos/c.png")
    (root / "photos" / "captions.csv").write_text("image,caption\na.png,x\n")
    expected = r"expected captions .* found captions.csv in photos; name that folder: -p data_root \S+/photos"
    with pytest.raises(FileNotFoundError, match=expected):
        load(root)
    (root / "iphone").mkdir()
    (root / "iphone" / "a.HEIC").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"found none but \.heic; save them as JPEG"):
        load(root / "iphone")


def test_empty_text_files_are_told_of_as_such(root):
    names = ("train/a", "val/b", "test/c", "train/d")
    paint(root, *(f"{name}.png" for name in names))
    for name in names:
        (root / f"{name}.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected captions, found only empty ones; fill them in"):
        load(root)
    for name in names[:3]:
        (root / f"{name}.txt").write_text("one\n\ntwo\n")
    notes = load(root).notes
    assert "Left out: 1 empty caption." in notes
    assert "Left out: 1 photo without captions: train/d.png." in notes


@pytest.mark.parametrize(
    ("place", "column", "said"),
    [
        ("", ",split\n", "as the column split says); write them into the column, or take it out"),
        ("train/", "\n", "by sub-folders); put photos into train/, val/ and test/, or all into a folder of"),
    ],
)
def test_photos_that_are_all_in_one_split_are_told_what_would_do(root, place, column, said):
    paint(root, *(f"{place}{name}.png" for name in "abc"))
    part = ",train\n" if column == ",split\n" else "\n"
    rows = "".join(f"{place}{name}.png,x{part}" for name in "abc")
    (root / "captions.csv").write_text(f"image,caption{column}{rows}")
    with pytest.raises(ValueError, match=re.escape(f"none in val and test (train 3, val 0, test 0; {said}")):
        load(root)


def test_a_photo_that_is_in_two_splits_leaves_training(root):
    paint(root, "train/a.png", "train/b.png", "val/c.png", "test/d.png")
    (root / "test" / "copy.png").write_bytes((root / "train" / "b.png").read_bytes())
    rows = "".join(f"{name},said\n" for name in ("a.png", "b.png", "c.png", "d.png", "copy.png"))
    (root / "captions.csv").write_text("image,caption\n" + rows)
    dataset = load(root)
    assert dataset.splits["train"].images == ("train/a.png",)
    assert any("Leak guard: left out 1" in note for note in dataset.notes)


def test_names_of_other_systems_find_their_files(root):
    paint(root, "train/caf\u00e9 0.png", "val/x.png", "test/y.png")
    (root / "captions.csv").write_text("image,caption\ntrain\\cafe\u0301 0.png,a\n./val/X.png,b\ny.png,c\n")
    assert everything(load(root)) == {"train/café 0.png": ["a"], "val/x.png": ["b"], "test/y.png": ["c"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("picture,words\na.png,x\n", r"with the image's name, called file_name or image, found 'picture'"),
        ("imagee,caption\na.png,x\n", r"did you mean 'image'"),
        ("image,caption\na.png,one, two\n", r"line 2: expected 2 fields, found 3 .* in double quotes"),
        ("image,caption\na.png\n", r"line 2: expected 2 fields, found 1"),
        ("image,caption\n,x\n", r"line 2: expected the name of an image, found ''"),
        ('image,caption\na.png,"x\nb.png,y\nc.png,"z"\n', r"line 2: "),
        ('image,caption\na.png,"x\nb.png,y\n"\n', r"expected a closing quotation mark before the next row"),
        ("image,caption\nother.png,x\n", r"found none for any: it names other.png, the folder has a.png"),
        ("image,caption\n", r"expected captions below the header, found none"),
        ("image,caption,split\na.png,x,trian\n", r"expected a split of train, .*, found 'trian'"),
        ("image,caption,split\na.png,x,train\na.png,y,test\n", r"in one split, found test after train"),
        ("image,caption,split\na.png,x,train\nb.png,y,\n", r"expected a split of train, .*, found ''"),
        ("image,caption\na.png,\nb.png, \n", r"expected captions, found only empty ones; fill them in"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used_are_explained(root, content, message):
    paint(root, "a.png", "b.png", "c.png")
    (root / "captions.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load(root)


def test_photos_without_captions_captions_without_photos_and_two_tables(root):
    with pytest.raises(FileNotFoundError, match=r"expected images \(JPEG, PNG"):
        load(root)
    paint(root, "a.png", "more/a.png")
    with pytest.raises(FileNotFoundError, match="with the columns image and caption"):
        load(root)
    (root / "captions.csv").write_text("image,caption\nother/a.png,x\n")
    with pytest.raises(ValueError, match=r"found a.png and more/a.png; write the folder before the name"):
        load(root)
    (root / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(ValueError, match=r"found captions.csv and metadata.csv; keep one"):
        load(root)
    with pytest.raises(FileNotFoundError, match=r"expected a folder of photos at .*, found none; name it"):
        load(root / "nowhere")
    with pytest.raises(FileNotFoundError, match="found a file; name it"):
        load(root / "captions.csv")


def test_a_table_of_another_name_and_links_that_lead_out_are_named(root, tmp_path):
    paint(tmp_path, "outside.png")
    (root / "a.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(FileNotFoundError, match=r"found none but 1 link out of it, which are not followed"):
        load(root)
    (root / "a.png").unlink()
    paint(root, "a.png")
    (root / "labels.csv").write_text("image,caption\na.png,x\n")
    with pytest.raises(FileNotFoundError, match=r"found labels.csv; save it as captions.csv with the col"):
        load(root)
    (root / "captions.csv").write_bytes("image,caption\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 2: expected UTF-8 text, .* \(in Excel: Save As, CSV UTF-8\)"):
        load(root)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '{"file_name": 3, "text": "x"}',
        '{"file_name": "a.png", "text": [4]}',
        '{"file_name": "a.png", "text": 4}',
        '{"file_name": "a.png", "text": {"en": "x"}}',
        "{",
    ],
)
def test_json_lines_that_are_none_are_named(root, line):
    paint(root, "a.png")
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        load(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave no photo to train on"),
        ({"data_name": "coco"}, "is the name of a published set"),
        ({"dataset": "shapes", "split_seed": 3}, "split_seed"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ParameterError, match=message):
        ask(TrainConfig, {**SIZES, "dataset": "folder", **changes})


def test_photos_are_trained_on_evaluated_and_searched(root):
    paint(root, *NAMES)
    (root / "captions.csv").write_bytes(CSV["comma"])
    sizes = {n: v for n, v in TINY.items() if not n.startswith("shapes_")}
    own = {**sizes, **SIZES, "dataset": "folder", "data_root": str(root), "data_name": "holiday"}
    train(build(TrainConfig, own), lambda line: None)
    (result,) = tiny_evaluate("own")
    assert result["data"]["name"] == "holiday"
    assert result["protocols"]["standard"]["i2t"]["n"] == result["data"]["splits"]["test"]["images"]
    assert np.load(files.RUNS / "own" / "gallery.npz")["redistributable"]
    retriever = Retriever.load("own")
    assert retriever.index(root).images == len(NAMES)
    assert len(retriever.search(text="photo", top=3)) == 3
