"""Caption files from strangers: every line becomes a caption or is named, and nothing but that comes out."""

import json
import random
import re

import pytest
import tiny_flickr as tiny
import tiny_sets

from mmlib import files
from mmlib.data.captions import (
    read_caption_csv,
    read_coco_captions,
    read_karpathy,
    read_lines,
    read_token_file,
)
from mmlib.data.photos import load_flickr8k


def assert_refused(read, path, message, error=ValueError):
    with pytest.raises(error, match=re.escape(message)):
        read(path)


# --- quotation marks


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("unclosed", "closing"),
    [('"a dog', 'a board of 5"'), ('"a dog', 'a sign,"'), ('"5"" of snow', 'stop"')],
)
def test_a_quotation_mark_that_is_not_closed_loses_no_caption_silently(tmp_path, end, unclosed, closing):
    """A reader of CSV takes all rows up to the next mark for one caption."""
    path = tmp_path / "captions.txt"
    rows = ["image,caption", "a.jpg,first", f"a.jpg,{unclosed}", "b.jpg,one", "b.jpg,two", f"c.jpg,{closing}"]
    path.write_text(end.join(rows), newline="")
    assert_refused(read_caption_csv, path, "captions.txt, line 3: ")


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ('a.jpg,"a dog\nb.jpg,one\nc.jpg,a board of 5"', "line 3: expected a closing quotation mark before"),
        ('a.jpg,"a dog\nb.jpg,one\nc.jpg,a "red" dog', "line 3: "),
        ('a.jpg,"a dog\nb.jpg,one\nc.jpg,a cat', "line 3: unexpected end of data; correct the row"),
        ('a.jpg,"a dog\nb.jfif,one"', "before the next row, found 'b.jfif,one' in a field"),
        ('a.jpg,"a dog\nb 1.TIFF,one"', "before the next row, found 'b 1.TIFF,one' in a field"),
        ('"a.jpg,one\nb.jpg",two', "before the next row, found 'b.jpg' in a field"),
        ("a.jpg,a dog, a cat", "line 3: expected 2 fields, found 3 in 'a.jpg,a dog, a cat'"),
        ("a.jpg", "line 3: expected 2 fields, found 1 in 'a.jpg'"),
        (",a dog", "line 3: expected 'name.jpg,caption' under the header 'image,caption', found ',a dog'"),
    ],
)
def test_a_malformed_row_is_refused(tmp_path, rows, found):
    path = tmp_path / "captions.txt"
    path.write_text(f"image,caption\n\n{rows}\n")
    assert_refused(read_caption_csv, path, found)


def test_proper_quotes_line_breaks_and_rows_apart_are_read(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + 'image,caption\r\na.jpg,"a dog, a ""cat"""\r\nb.jpg,5" of snow\r\n\r\n'
        'a.jpg,"two\nlines,\r\nthree"\r\nb.jpg,\r\nb.jpg,café 北京'.encode()
    )
    assert read_caption_csv(path) == {
        "a.jpg": ['a dog, a "cat"', "two\nlines,\r\nthree"],
        "b.jpg": ['5" of snow', "", "café 北京"],
    }


# --- bytes


@pytest.mark.parametrize("read", [read_token_file, read_caption_csv, read_karpathy, read_lines])
def test_bytes_that_are_no_text_are_named_by_file_and_line(tmp_path, read):
    path = tmp_path / "captions.any"
    path.write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    assert_refused(read, path, "captions.any, line 2: expected UTF-8 text, found byte 0xe9; convert the file")
    path.write_bytes(b"image,caption\n\na.jpg,a\0dog\n")
    assert_refused(read, path, "captions.any, line 3: expected UTF-8 text, found byte 0x00; convert the file")
    path.write_bytes("image,caption\n".encode("utf-16"))
    if read is not read_caption_csv:  # Excel writes tables so
        assert_refused(read, path, "captions.any, line 1: expected UTF-8 text, found byte 0xff; convert")
    assert_refused(read, tmp_path / "none", "none, found nothing there", FileNotFoundError)


def test_line_ends_of_old_macs_make_no_single_caption(tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_bytes(b"a.jpg#0\ta dog\nb.jpg#0\tone\rb.jpg#1\ttwo\r")
    assert_refused(
        read_token_file, path, "tokens.txt, line 2: expected lines that end in LF or CRLF, found a"
    )


def test_a_file_of_absurd_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files.read_text, "__defaults__", (1000,))
    path = tmp_path / "dataset.json"
    path.write_text(" " * 1001)
    for read in (read_token_file, read_caption_csv, read_karpathy):
        assert_refused(read, path, "dataset.json: expected at most 1,000 bytes, found 1,001")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "dataset.json is damaged: expected JSON, found brackets nested too deeply"),
        (
            '{"images": [' + "9" * 5000 + "]}",
            "dataset.json is damaged: expected JSON, found Exceeds the limit",
        ),
        (
            '{"images": [' + "[" * 900 + "]" * 900 + "]}",
            "dataset.json, images.0: expected a valid dictionary or instance of KarpathyImage, found 'list'",
        ),
    ],
)
def test_json_that_cannot_be_held_names_its_file(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(content)
    assert_refused(read_karpathy, tmp_path / "dataset.json", message)
    if message.startswith("dataset.json is"):
        assert_refused(lambda path: read_coco_captions(path, "val2014"), tmp_path / "dataset.json", message)


def test_names_and_captions_reach_a_message_without_terminal_escapes(tmp_path):
    """Colours, a moved cursor, and text from right to left, in each thing that a message or note quotes."""
    evil = "\x1b[2J\u202e.jpg"
    shown = "\\x1b[2J\\u202e.jpg"
    texts = tiny.captions()
    root = tiny.write_original(tmp_path)
    tiny.write_token_file(root / "Flickr8k.token.txt", {**texts, evil: ["a dog"], "40_d.jpg": [evil]})
    dataset = load_flickr8k(root)
    assert dataset.splits["train"].captions[0] == evil  # kept as published
    tiny.write_token_file(root / "Flickr8k.token.txt", texts)
    (root / "Flickr_8k.testImages.txt").write_text(f"70_g.jpg\n{evil}\n")
    assert_refused(load_flickr8k, root, f"found no {shown}; complete the folder", FileNotFoundError)
    path = tmp_path / "file"
    for read, content in (
        (read_token_file, f"{evil} a dog"),
        (read_token_file, f"{evil}#0\ta\n{evil}#0\tb{evil}"),
        (read_caption_csv, f"{evil},a dog"),
        (read_caption_csv, f"image,caption\n{evil},a{evil},b"),
        (read_karpathy, json.dumps({"images": [{"filename": evil, "split": evil, "sentences": []}]})),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match="expected") as error:
            read(path)
        assert "\x1b" not in str(error.value), content
        assert "\u202e" not in str(error.value), content


# --- anything


def _written(path) -> list[tuple]:
    """A small file of each kind, its reader, and how many captions it read."""
    texts = tiny.captions()
    tiny.write_token_file(path / "tokens.txt", texts)
    tiny.write_csv(path / "captions.csv", texts)
    tiny.write_karpathy_file(path)
    tiny_sets.write_json(path / "coco.json", tiny_sets.annotations("val2014"))
    return [
        (path / "tokens.txt", read_token_file),
        (path / "captions.csv", read_caption_csv),
        (path / "dataset_flickr8k.json", lambda file: read_karpathy(file)[0]),
        (path / "coco.json", lambda file: read_coco_captions(file, "val2014")),
    ]


def _mutated(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at, until = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        until = min(until, at + rng.choice((0, 1, 8, 200)))
        piece = rng.choice(
            (b"", b'"', b",", b"\t", b"\n", b"\r", b"\0", b"#", b"[" * 2000, b"{}", b"null", b"-1", b"1e999",
             b"\xff", b"\xef\xbb\xbf", b"\\ud83d", b"NaN", b'"image_id": true,', content[at : at + 60])
        )  # fmt: skip
        content = content[:at] + piece + content[until:]
    return content


def _fuzz(folder, seed: int, rounds: int) -> tuple[int, int]:
    """How many mutated files were read and refused."""
    rng = random.Random(seed)
    read_well = refused = 0
    sources = [(path, read, path.read_bytes()) for path, read in _written(folder)]
    for _ in range(rounds):
        path, read, content = rng.choice(sources)
        content = _mutated(content, rng)
        path.write_bytes(content)
        message = None
        try:
            captions = read(path)
        except ValueError as error:
            message = str(error)
        if message is not None:
            assert path.name in message, content
            assert files.printable(message) == message, content
            refused += 1
            continue
        read_well += 1
        if read is read_token_file:
            captions = {image: list(texts.values()) for image, texts in captions.items()}
            texts = (
                line.split("\t", 1)[1] for line in content.decode("utf-8-sig").split("\n") if line.strip()
            )
            said = {text for texts in captions.values() for text in texts}
            assert {text.removesuffix("\r") for text in texts} == said, content
        assert all(isinstance(text, str) for texts in captions.values() for text in texts), content
        if read is read_caption_csv:
            rows = re.findall(r"(?m)^\d\d_\w\.jpg,", content.decode("utf-8-sig"))
            assert len(rows) <= sum(map(len, captions.values())), content
    return read_well, refused


def test_mutated_files_are_read_whole_or_refused_by_name(tmp_path):
    read_well, refused = _fuzz(tmp_path, seed=0, rounds=400)
    assert read_well > 40
    assert refused > 40


@pytest.mark.slow
def test_many_mutated_files_are_read_whole_or_refused_by_name(tmp_path):
    _fuzz(tmp_path, seed=1, rounds=100_000)
