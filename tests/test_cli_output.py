"""What was worked for is saved, whatever becomes of the terminal; and no foreign text commands one."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_runs import TINY

from mmlib import cli, output
from mmlib.metrics import RetrievalRanks
from mmlib.output import Output

FILES = ["evaluate", "--images", "i.npy", "--texts", "t.npy", "--image-of-text", "m.npy"]
SAVED = [*FILES, "--out", "new/r.json", "--ranks", "new/r.npz"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RUNS", "CACHE", "REPORTS"):
        monkeypatch.setattr(f"mmlib.files.{name}", tmp_path / name.lower())
        monkeypatch.setenv(f"MMLIB_{name}", str(tmp_path / name.lower()))
    rng = np.random.default_rng(0)
    np.save("i.npy", rng.normal(size=(6, 4)))
    np.save("t.npy", rng.normal(size=(12, 4)))
    np.save("m.npy", np.repeat(np.arange(6), 2))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(TINY | {"epochs": 1}))
    return tmp_path


def test_long_work_says_how_far_it_is_line_by_line_where_no_terminal_is(monkeypatch, capsys):
    monkeypatch.setattr(output, "LINE_SECONDS", 0)
    with output.progress(total=40, desc="features", unit="row") as bar:
        for _ in range(4):
            bar.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"features: {n} of 40 rows" for n in (10, 20, 30, 40)]
    assert lines[0].endswith(" left")


def test_short_work_leaves_no_line(capsys):
    assert list(output.progress(range(3), desc="features")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def pipe_without_a_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


BROKEN = [
    pytest.param(pipe_without_a_reader, 0, id="a pipe without a reader"),
    pytest.param(full_disk, 1, id="a full disk"),
]
COMMANDS = {
    "evaluate": SAVED,
    "train": ["train", "a.yaml"],
    "shard": ["shard", "a.yaml", "--out", "shards"],
    "report": ["report"],
    "help": ["train", "--help"],
}
LEFT = {
    "evaluate": "new/r.npz",
    "train": "runs/tiny/model.safetensors",
    "shard": "shards/shards.json",
    "report": "reports/index.html",
    "help": "a.yaml",
}


def saved_all() -> bool:
    saved = json.loads(Path("new/r.json").read_text())["summary"]
    return saved["i2t"]["r1"]["hits"] == (RetrievalRanks.load("new/r.npz").i2t_N == 1).sum()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"image \u2192 text  "),
        ("latin-1", r"image \u2192 text  "),
        ("utf-8", "image → text  "),
    ],
)
def test_what_a_terminal_cannot_show_is_replaced(monkeypatch, capsys, encoding, shown):
    buffer = io.BytesIO()
    with io.TextIOWrapper(buffer, encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main([*SAVED, "--data", "Фото"]) == 0
        assert sys.stdout is stream
        text = buffer.getvalue().decode(encoding)
    assert shown in text
    name = "Фото" if encoding == "utf-8" else r"\u0424\u043e\u0442\u043e"
    dot = r"\xb7" if encoding == "ascii" else "·"
    assert f"{name} {dot} protocol standard {dot} 6 image and 12 caption queries" in text
    assert capsys.readouterr().err == ""
    assert saved_all()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("broken", "code"), BROKEN)
def test_no_print_fails_a_command(folder, monkeypatch, capsys, command, broken, code):
    with os.fdopen(broken(), "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert (
            cli.main([str(folder / word) if word == "a.yaml" else word for word in COMMANDS[command]]) == code
        )
    said = capsys.readouterr().err
    lost = "error: could not print everything: [Errno 28] No space left on device; what is saved is saved\n"
    assert said.endswith(lost) if code else "error" not in said
    assert Path(LEFT[command]).is_file()
    if command == "train":
        assert json.loads(Path("runs/tiny/status.json").read_text())["state"] == "complete"


@pytest.mark.parametrize("broken", [pipe_without_a_reader, full_disk])
def test_an_error_that_cannot_be_shown_keeps_its_exit_code(monkeypatch, broken):
    with os.fdopen(broken(), "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.main(["evaluate", "--images", "i.npy"]) == 2
        assert cli.main(["run", "nothing-of-this-name"]) == 2


@pytest.mark.parametrize(
    ("stdout", "words", "code"), [("pipe", ["--help"], 0), ("full", ["--help"], 1), ("closed", SAVED, 0)]
)
def test_the_process_ends_as_its_work_did(stdout, words, code):
    """Python itself writes once more at its end, and would end with 120; a free descriptor gets no file."""
    command = [sys.executable, "-m", "mmlib", *words]
    stream = {"pipe": pipe_without_a_reader, "full": full_disk}.get(stdout, lambda: None)()
    if stream is None:
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        command, stdout=stream, stderr=subprocess.PIPE, text=True, timeout=100, env=environment
    )
    if stream is not None:
        os.close(stream)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False)
    assert ("No space left on device" in ended.stderr) == (code == 1)
    assert words != SAVED or saved_all()


def test_what_cannot_be_saved_is_still_shown(folder, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mmlib.files.os.replace", full)
    assert cli.main([*FILES, "--ranks", "r.npz"]) == 1
    said = capsys.readouterr()
    assert "protocol standard · 6 image and 12 caption queries" in said.out
    assert said.err.startswith("error: ")
    assert "could not write r.npz: No space left on device" in said.err


# --- foreign text


def test_foreign_text_does_not_reach_the_terminal_as_it_is(capsys):
    evil = "\x1b[2Jgone\x07\u202e"
    assert cli.main([*FILES, "--data", evil]) == 0
    np.savez("x.npz", **{evil: np.zeros(3), "b": np.zeros(3)})
    assert cli.main([*FILES[:-1], "x.npz"]) == 2
    assert cli.main([*FILES[:-1], f"{evil}.npy"]) == 2
    assert cli.main(["run", evil]) == 2
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not set(text) & set("\x1b\x07\u202e")
        assert r"\x1b[2Jgone\x07\u202e" in text


def test_an_output_lets_pass_what_is_asked_for():
    stream = io.StringIO()
    output = Output(stream, moves="\r")
    assert output.write("a\rb\x1b\n\t") == 6
    assert stream.getvalue() == "a\rb\\x1b\n\t"
    assert not output.isatty()
    stream.close()
    output.write("more")
    output.flush()
    assert "closed file" in str(output.error)
