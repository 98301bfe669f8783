"""docs/own-photos.md followed word for word: photos and a table, a report, an explorer, a search."""

import csv
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmlib import files
from mmlib.cli import main

PAGE = (files.ROOT / "docs" / "own-photos.md").read_text(encoding="utf-8")
TABLE = re.search(r"^```\n(.*?)^```", PAGE, re.M | re.S)[1]
REPORT, *_ = re.findall(r"^make report .*", PAGE, re.M)
INDEX, SEARCH = re.findall(r"^python -m mmlib (.*)", PAGE, re.M)
SMALL = "-p image_size 16 -p latent_dim 32 -p num_layers 1 -p dropout 0 -p lr 0.003 -p device cpu"
KINDS = 3, 20  # kinds of photos, one for each caption of the page; photos of each


def photo(kind: int, number: int) -> Image.Image:
    """A pattern of its own, in which the kind's colour is strongest."""
    pattern = np.random.default_rng([kind, number]).integers(0, 256, (6, 6, 1))
    pixels = pattern * np.where(np.arange(3) == kind, 1, 0.2)
    return Image.fromarray(pixels.astype(np.uint8)).resize((24, 24))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """An empty clone with the project's notebooks and experiments, which is also where commands are typed."""
    for name in ("params", "notebooks"):
        (tmp_path / name).symlink_to(files.ROOT / name)
        monkeypatch.setattr(files, name.upper(), tmp_path / name)
    for name in ("RUNS", "REPORTS", "CACHE"):
        monkeypatch.delenv(f"MMLIB_{name}", raising=False)
        monkeypatch.setattr(files, name, tmp_path / ("data/cache" if name == "CACHE" else name.lower()))
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "PUBLISHED", tmp_path / "reports" / "published")
    monkeypatch.setenv("MMLIB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(command: str) -> list[str]:
    """The arguments of mmlib that a command of make comes to, by the Makefile itself."""
    _, *words = shlex.split(command)
    makefile = Path(__file__).parents[1] / "Makefile"
    asked = ["make", "--dry-run", "--no-print-directory", "-f", str(makefile), "-o", ".venv/.ready", *words]
    (line,) = subprocess.check_output(asked, text=True).splitlines()
    words = shlex.split(line)
    return words[words.index("mmlib") + 1 :]


def test_the_tutorial_leads_from_photos_to_a_report_and_a_search(lab, capsys):
    header, *rows = csv.reader(TABLE.splitlines())
    captions = [caption for _, caption in rows]
    (lab / "photos").mkdir()
    lines = [header]
    for kind, number in np.ndindex(*KINDS):
        photo(kind, number).save(lab / "photos" / f"{kind}-{number}.png")
        lines.append([f"{kind}-{number}.png", captions[kind]])
    with open(lab / "photos" / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    assert main([*make(REPORT), *shlex.split(SMALL)]) == 0
    report = lab / "reports" / "own"
    assert "State: **complete**" in (report / "README.md").read_text()
    assert "holiday" in (report / "README.md").read_text()
    assert (report / "explore.html").is_file()
    assert main(shlex.split(INDEX)) == 0
    assert "60 images can be searched" in capsys.readouterr().out
    assert main(shlex.split(SEARCH)) == 0
    asked = captions.index(shlex.split(SEARCH)[2])
    found = re.findall(r"(\d)-\d+\.png", capsys.readouterr().out)
    assert found[0] == str(asked)  # a photo of which it was said
    assert (lab / "found.html").is_file()
