"""Checkpoints that are missing, damaged, foreign or malicious, and a disk that is full."""

import errno
import io
import pickle

import pytest
import torch
from tiny_runs import (
    assert_same,
    before_step,
    checkpoint,
    half_written,
    left_behind,
    press_ctrl_c,
    tiny_continue,
    tiny_evaluate,
    tiny_train,
)

from mmlib import files
from mmlib.training import loop, run_state
from mmlib.training.checkpoint import (
    OTHERS,
    PARTS,
    check_fits,
    checkpoint_bytes,
    load_checkpoint,
    load_weights,
)
from mmlib.training.runs import RunFolder

CONTENT = dict.fromkeys(OTHERS, 0) | {part: dict.fromkeys(names, 0) for part, names in PARTS.items()}
CONTENT |= {"model": {"weight": torch.arange(1000.0)}}


class Malicious:
    """Unpickling it makes the file `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.pt"
    RunFolder(path.parent).write(path.name, checkpoint_bytes(CONTENT))
    return path


def test_what_is_saved_is_loaded(saved):
    assert_same({"format": 1, **CONTENT}, load_checkpoint(saved))


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint: expected .*last\.pt, found nothing there"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(share, saved):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match=r"last\.pt is truncated, damaged or no checkpoint \(\d+ bytes; .*again"
    ):
        load_checkpoint(saved)


def test_flipped_bits_are_found_wherever_they_are(saved):
    whole = saved.read_bytes()
    weights = whole.index(CONTENT["model"]["weight"].numpy().tobytes())
    for place in (0, whole.index(b"data.pkl") + 40, weights, weights + 2002, len(whole) - 20):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated, damaged or no checkpoint"):
            load_checkpoint(saved)


@pytest.mark.parametrize("text", [b"hello\n", bytes(range(256)) * 20, b"PK\x03\x04" + bytes(300)])
def test_something_else_altogether(text, saved):
    saved.write_bytes(text)
    with pytest.raises(ValueError, match="truncated, damaged or no checkpoint"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "its content: input should be a valid dictionary"),
        ({"weight": 1}, "format: expected it, found nothing"),
        ({"format": 9, "model": {}}, "format: input should be 1, found 9"),
    ],
)
def test_a_file_of_torch_that_is_no_checkpoint(value, message, saved):
    torch.save(value, saved)
    with pytest.raises(ValueError, match=f"last.pt is damaged: {message}"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["position", "best", "rng", "optimizer_names"])
def test_a_strangers_checkpoint_that_lacks_a_part_is_refused_by_name(name, saved):
    content = {"format": 1, **CONTENT}
    del content[name]
    torch.save(content, saved)
    message = rf"last\.pt is damaged: {name}: expected it, found nothing; use the run's other checkpoint"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize("part", ["position", "best", "rng", "optimizer"])
def test_a_part_that_is_not_what_it_should_be_is_refused_by_name(part, saved):
    first, *rest = PARTS[part]
    for wrong, message in (
        (7, "input should be .*, found 7"),
        (dict.fromkeys(rest, 0), "expected it, found n"),
    ):
        torch.save({"format": 1, **CONTENT, part: wrong}, saved)
        with pytest.raises(ValueError, match=rf"damaged: {part}(\.{first})?: {message}"):
            load_checkpoint(saved)


def test_code_in_a_checkpoint_is_refused_and_does_not_run(saved, tmp_path):
    marker = tmp_path / "marker"
    content = {"format": 1, "model": {}, "config": Malicious(marker)}
    torch.save(content, saved)
    with pytest.raises(ValueError, match=r"is refused: it asks to run code when it is read \([\w.]*open\)"):
        load_checkpoint(saved)
    assert not marker.exists()
    torch.load(saved, weights_only=False)["config"].close()
    assert marker.exists(), "the file was harmless, so the test showed nothing"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_pickle_or_a_checkpoint_of_old_is_not_even_unpickled(zipped, saved, tmp_path):
    marker = tmp_path / "marker"
    old = io.BytesIO()
    torch.save({"format": 1, "model": Malicious(marker)}, old, _use_new_zipfile_serialization=False)
    saved.write_bytes(old.getvalue() if zipped else pickle.dumps(Malicious(marker)))
    with pytest.raises(ValueError, match="truncated, damaged or no checkpoint"):
        load_checkpoint(saved)
    assert not marker.exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(saved):
    torch.save(torch.nn.Linear(2, 2), saved)
    with pytest.raises(ValueError, match=r"is refused: .*\(torch\.nn\.modules\.linear\.Linear\)"):
        load_checkpoint(saved)


@pytest.mark.usefixtures("tiny_place")
def test_of_another_architecture_names_each_size():
    config = tiny_train(epochs=1) and checkpoint("tiny")["config"]
    path, content = files.RUNS / "tiny" / "last.pt", checkpoint("tiny")
    other = config | {"latent_dim": 32, "max_tokens": 12}
    with pytest.raises(ValueError, match="another architecture") as caught:
        check_fits(path, content, other)
    assert "latent_dim: 16 in the checkpoint, 32 here" in str(caught.value)
    assert "max_tokens: 24 in the checkpoint, 12 here" in str(caught.value)


@pytest.mark.usefixtures("tiny_place")
def test_a_checkpoint_of_before_a_parameter_has_its_default():
    config = tiny_train(epochs=1) and checkpoint("tiny")["config"]
    path, content = files.RUNS / "tiny" / "last.pt", checkpoint("tiny")
    del content["config"]["memory"]
    check_fits(path, content, config)
    with pytest.raises(ValueError, match="memory: 'published' in the checkpoint, 'cosine' here"):
        check_fits(path, content, config | {"memory": "cosine"})


def test_weights_that_do_not_fit_are_named(tmp_path):
    module = torch.nn.Linear(3, 2)
    good = module.state_dict()
    for state, message in (
        (torch.nn.Linear(4, 2).state_dict(), r"size mismatch for weight: .*\[2, 4\]\) .*\[2, 3\]\)"),
        ({"weight": module.weight}, 'Missing key.* "bias"'),
        (good | {"scale": module.bias}, 'Unexpected key.* "scale"'),
        (good | {"bias": 7}, 'named "bias", expected .* received'),
    ):
        with pytest.raises(ValueError, match=rf"does not fit the model: .*{message}"):
            load_weights(tmp_path, module, state)
    with pytest.raises(ValueError, match=r"does not fit the model: .*dict-like"):
        load_weights(tmp_path, module, 7)


@pytest.mark.usefixtures("tiny_place")
def test_the_files_of_other_runs_are_refused_wherever_a_checkpoint_is_read(monkeypatch):
    tiny_train(epochs=1)
    tiny_train(epochs=1, run="wide", latent_dim=32)
    tiny_train(epochs=1, run="words", tokenizer="word")
    place = files.RUNS / "tiny" / "best.pt"
    for run, wrong in (
        ("wide", "latent_dim: 32 in the checkpoint, 16 here"),
        ("words", "tokenizer: 'word' in"),
    ):
        place.write_bytes((files.RUNS / run / "best.pt").read_bytes())
        for use in (tiny_evaluate, tiny_continue):
            with pytest.raises(ValueError, match=wrong):
                use()
    place.unlink()
    for use in (tiny_evaluate, tiny_continue):
        with pytest.raises(FileNotFoundError, match=r"tiny/best\.pt, found nothing there"):
            use()
    assert not (files.RUNS / "child").exists()

    before_step(monkeypatch, 2, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny_train(run="stopped", epochs=1)
    last = files.RUNS / "stopped" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match=r"stopped/last\.pt is truncated.*or train again with overwrite=True"
    ):
        tiny_train(run="stopped", epochs=1)
    assert run_state("stopped")[0] == "interrupted"  # untouched
    tiny_train(run="stopped", epochs=1, overwrite=True)
    assert run_state("stopped")[0] == "complete"


def no_space_for(monkeypatch, name: str, number: int = 1) -> None:
    """Makes the disk full in the middle of the `number`-th writing of a file whose name starts so."""

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open", half_written(name, number, full), raising=False)


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_rest(saved, monkeypatch):
    folder = RunFolder(saved.parent)
    with monkeypatch.context() as patch:
        no_space_for(patch, "last.pt")
        with pytest.raises(
            OSError, match=r"could not write .*last\.pt \(0\.0 MiB\): No space left.*previous one"
        ):
            folder.write("last.pt", checkpoint_bytes(CONTENT | {"config": {"another": 1}}))
        with pytest.raises(
            OSError, match=r"No space left on device; there is none before it\. Free some space"
        ):
            folder.write("last.pt2", checkpoint_bytes(CONTENT))
    assert_same({"format": 1, **CONTENT}, load_checkpoint(saved))
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


@pytest.mark.usefixtures("tiny_place")
@pytest.mark.parametrize("name", ["best.pt", "last.pt", "model.safetensors"])
def test_a_run_on_a_full_disk_fails_and_goes_on_when_there_is_space(name, tmp_path, monkeypatch):
    # Every epoch is the best so far, so that all three files are written twice.
    rsum, summarise = iter(range(99)), loop.summarise
    monkeypatch.setattr(loop, "summarise", lambda ranks: summarise(ranks) | {"rsum": float(next(rsum))})
    with monkeypatch.context() as patch:
        patch.setattr(files, "RUNS", tmp_path / "whole")
        tiny_train()
        whole = left_behind("tiny")
    rsum = iter(range(99))
    with monkeypatch.context() as patch:
        no_space_for(patch, name, number=2)
        with pytest.raises(OSError, match=f"could not write .*{name}.*the previous one is intact"):
            tiny_train()
    state, reason = run_state("tiny")
    assert state == "failed"
    assert "No space left on device" in reason
    assert not list((files.RUNS / "tiny").glob("*.part"))
    assert checkpoint("tiny")["position"]["epoch"] == 2
    rsum = iter(range(1, 99))
    tiny_train()
    assert_same(whole, left_behind("tiny"))
