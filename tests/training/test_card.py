"""The card of a run: what it says, when it is written, and that it costs a training nothing."""

import errno
import json
import re
import shlex

import pytest
from tiny_runs import TINY, assert_same, checkpoint, left_behind, tiny_continue, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.cli import main
from mmlib.model import MemoryNetwork
from mmlib.training import run_folder
from mmlib.training.card import card
from mmlib.training.runs import RunFolder

pytestmark = pytest.mark.usefixtures("tiny_place")


def text_of(run: str) -> str:
    return (run_folder(run) / "README.md").read_text(encoding="utf-8")


def numbers_of(run: str) -> str:
    return text_of(run).partition("## Numbers")[2].partition("## Limits")[0]


def change(run: str, name: str, **values) -> None:
    path = run_folder(run) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def command_of(text: str, title: str, monkeypatch) -> list[str]:
    """The arguments of the last command below a heading, as the shell would give them."""
    monkeypatch.setenv("MMLIB_RUNS", str(files.RUNS))
    line = re.search(rf"## {title}\n\n```sh\n(.*?)\n```", text, re.DOTALL)[1].splitlines()[-1]
    words = shlex.split(line.replace("$MMLIB_RUNS", str(files.RUNS)), comments=True)
    assert words[:3] == ["python", "-m", "mmlib"]
    return words[3:]


def test_a_complete_run_has_a_card_that_says_what_it_is():
    tiny_train(epochs=1, lr=0.002)
    text = text_of("tiny")
    assert text.startswith("# tiny\n\nA memory network that finds images by a sentence")
    assert "| train | 24 | 120 | 4.2 % |" in text
    assert "image encoder vit, from scratch; text encoder transformer, from scratch" in text
    assert " lr 0.002," in text
    assert "dropout" not in text.partition("## Recipe")[2].partition("## Numbers")[0]  # at its default
    assert re.search(r"\| validation, epoch 1 \| text → image \| \S+\s%\s\([\d.–]+\), \d+/40 \|", text)
    assert "best by rsum, which flatters a little" in text
    assert "Not evaluated yet: `python -m mmlib evaluate params/demo/03_evaluate.yaml -p runs tiny`" in text
    assert "with one seed (0)" in text
    assert "Held out are 8 val and 8 test images: few, so the intervals are wide" in text
    assert 'python -m mmlib search tiny "a sentence"' in text
    assert json.loads((run_folder("tiny") / "environment.json").read_text())["versions"]["torch"] in text
    assert len(text.split()) < 500


def test_a_card_is_written_again_when_the_run_is_evaluated():
    tiny_train(epochs=1)
    (result,) = tiny_evaluate("tiny", split="val")
    hits = result["protocols"]["standard"]["t2i"]["r1"]["hits"]
    assert re.search(rf"\| val \| text → image \| [^|]*, {hits}/40 \|", numbers_of("tiny"))
    tiny_evaluate("tiny")
    assert "Not evaluated" not in numbers_of("tiny")
    assert "| val | text" not in numbers_of("tiny")
    assert "Evaluation: shapes · test split · protocol standard · 8 image" in numbers_of("tiny")
    assert "epoch 1, checkpoint best." in numbers_of("tiny")


def test_a_card_of_the_last_epoch_says_so():
    tiny_train(epochs=1, select_by="last")
    assert "queries; the last epoch." in numbers_of("tiny")
    assert "tiny ended after epoch 1 of 1" in numbers_of("tiny")


def test_the_card_of_a_continued_run_names_its_parent_and_how_to_make_it_again(monkeypatch, capsys):
    tiny_train(epochs=1)
    tiny_continue(epochs=1, optimizer_state="reset")
    assert "It goes on from [tiny](../tiny/README.md), checkpoint best of epoch 1." in text_of("child")
    assert "child was best after epoch 2 of 2" in text_of("child")
    assert main(command_of(text_of("child"), "Make it again", monkeypatch)) == 0
    assert_same(checkpoint("child", "best")["model"], checkpoint("child-again", "best")["model"])


def test_the_commands_of_a_card_make_the_run_again_and_continue_it(monkeypatch, capsys):
    tiny_train(epochs=1, patch_size=8, min_word_count=3, overwrite=True)  # a char tokenizer counts no words
    text = text_of("tiny")
    assert main(command_of(text, "Make it again", monkeypatch)) == 0
    assert left_behind("tiny")["weights"] == left_behind("tiny-again")["weights"]
    assert main([*command_of(text, "Use", monkeypatch), "-p", "epochs", "1"]) == 0
    assert "It goes on from [tiny]" in text_of("tiny-next")


def test_a_collapsed_run_says_so_at_the_top(monkeypatch):
    embed = MemoryNetwork.embed_images
    monkeypatch.setattr(
        MemoryNetwork, "embed_images", lambda self, x, write=False: embed(self, x, write) * 1e-6 + 1
    )
    tiny_train(epochs=1)
    warning = "**Warning**, epoch 1: the image embeddings have collapsed to one point"
    assert warning in text_of("tiny").partition("## Data")[0]


HOSTILE = "<b>a</b> [x](http://evil) ![y](z) `c`\n# \x1b[31m\u202e*d* | $e$ &amp; _f_"


def test_what_strangers_wrote_is_shown_as_text():
    tiny_train(epochs=1)
    data = json.loads((run_folder("tiny") / "environment.json").read_text())["data"]
    data["name"], data["splits"][HOSTILE] = HOSTILE, data["splits"].pop("test")
    change("tiny", "environment.json", data=data, notes=[HOSTILE], device=HOSTILE, commit=HOSTILE)
    change("tiny", "config.json", image_encoder=f"timm:{HOSTILE}", image_weights="default")
    text = card("tiny")
    shown = r"\<b\>a\</b\> \[x\](http://evil) !\[y\](z) \`c\` # \\x1b\[31m\\u202e\*d\* "
    assert text.count(shown) == 10
    for active in ("\x1b", "\u202e", "\n# \\x1b", "](http", "<b>", " `c`", " *d*", " $e$"):
        assert active not in text.replace(shown, "")
    assert r"\*d\* \| \$e\$ \&amp; \_f\_ | 8 | 40 |" in text  # a row of its table


def test_a_private_run_names_no_photo_and_no_folder_of_the_machine(tmp_path):
    tiny_train(epochs=1)
    notes = ["Photos by split: 9.", "Left out: 2 photos without captions: secret: a.jpg and 1 more."]
    change("tiny", "environment.json", notes=notes)
    place = {"data_root": str(tmp_path), "image_weights": f"{tmp_path}/w.pt", "image_encoder": "timm:x"}
    change("tiny", "config.json", dataset="folder", data_name="holiday", **place)
    assert "2 photos without captions: secret: a.jpg and 1 more." in card("tiny")
    change("tiny", "config.json", private=True)
    text = card("tiny")
    assert "2 photos without captions." in text
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert "image\\_weights" not in text
    assert "image_weights …/w.pt" in text
    assert "timm:x (w.pt)" in text
    assert "Private: photos and captions are not to be passed on." in text
    assert "private True" not in text


def test_a_damaged_evaluation_is_told_of():
    tiny_train(epochs=1)
    tiny_evaluate("tiny")
    (run_folder("tiny") / "results.json").write_text('{"run": "tiny"}')
    (run_folder("tiny") / "README.md").unlink()
    tiny_train(epochs=1, if_complete="show")
    said = "There was an evaluation, which cannot be read (tiny/results.json is damaged: checkpoint: expected"
    assert said in numbers_of("tiny")
    assert "python -m mmlib evaluate" in numbers_of("tiny")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_card_that_cannot_be_written_costs_the_training_nothing(number, monkeypatch, caplog):
    write = RunFolder.write

    def refusing(self, name, data):
        if name == "README.md":
            raise OSError(number, f"could not write {name}")
        write(self, name, data)

    monkeypatch.setattr(RunFolder, "write", refusing)
    tiny_train(epochs=1)
    tiny_evaluate("tiny")
    assert "run tiny has no card that is up to date" in caplog.text
    assert json.loads((run_folder("tiny") / "status.json").read_text())["state"] == "complete"
    assert (run_folder("tiny") / "results.json").is_file()
    monkeypatch.undo()


def test_a_run_that_was_killed_before_its_last_word_has_a_card_after_the_next_command(monkeypatch):
    status = RunFolder.write_status

    def killed(self, state, *rest, **progress):
        if state == "complete":
            raise SystemExit  # the card is there, the last word is not
        status(self, state, *rest, **progress)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_status", killed)
        with pytest.raises(SystemExit):
            tiny_train(epochs=1)
    (run_folder("tiny") / "README.md").unlink()
    tiny_train(epochs=1)
    assert text_of("tiny") == card("tiny")


def test_a_run_of_before_gets_a_card_when_it_is_shown_and_one_that_is_there_stays():
    tiny_train(epochs=1)
    (run_folder("tiny") / "README.md").write_text("mine")
    tiny_train(epochs=1, if_complete="show")
    assert text_of("tiny") == "mine"
    (run_folder("tiny") / "README.md").unlink()
    change("tiny", "environment.json", notes=None, tokenizer_losses=None)
    tiny_train(epochs=1, if_complete="show")
    assert text_of("tiny").startswith("# tiny\n")


def test_a_run_that_is_trained_anew_has_no_card_of_other_weights(monkeypatch):
    tiny_train(epochs=1)
    tiny_evaluate("tiny")
    tiny_train(epochs=1, overwrite=True, lr=TINY["lr"] / 2)
    assert "Not evaluated yet" in numbers_of("tiny")
