"""Evaluation: the same figures every time, those that the embeddings give, and a gallery that agrees."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import before_step, press_ctrl_c, tiny_config, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.config import ParameterError
from mmlib.data import load_dataset, open_store, shapes
from mmlib.data.batches import SplitTensors
from mmlib.files import InUse
from mmlib.metrics import paired_ranks, retrieval_ranks, summarise
from mmlib.metrics.protocols import PROTOCOLS, protocols_of
from mmlib.metrics.ranks import RetrievalRanks
from mmlib.reporting import results_table
from mmlib.training import evaluation, read_arrays, read_result
from mmlib.training.checkpoint import checkpoint_bytes, load_checkpoint
from mmlib.training.embed import embed_split
from mmlib.training.evaluation import load_run

pytestmark = pytest.mark.usefixtures("tiny_place")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_cache):
    """Run folders with one evaluated run, made once."""
    torch.set_num_threads(1)
    runs = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RUNS", runs)
        patch.setattr(files, "CACHE", tiny_cache)
        tiny_train()
        tiny_evaluate()
    return runs


@pytest.fixture
def evaluated(trained, tiny_place, monkeypatch):
    monkeypatch.setattr(files, "RUNS", trained)


def split_of(parts, split: str) -> SplitTensors:
    dataset = load_dataset(parts.config)
    store = open_store(dataset, parts.config.image_size, parts.config.resize)
    device = torch.device("cpu")
    return SplitTensors(
        dataset, store, parts.tokenizer, split, parts.config.max_tokens, parts.config.padding_mask, device
    )


@pytest.mark.usefixtures("evaluated")
def test_the_results_are_those_of_the_embeddings():
    parts = load_run("tiny", "best", torch.device("cpu"))
    data = split_of(parts, "test")
    image_ND, text_MD = embed_split(parts.model, data)
    ranks = retrieval_ranks(image_ND, text_MD, data.split.image_of_caption_M)
    paired = paired_ranks(image_ND, text_MD, data.split.image_of_caption_M)
    expected = {"standard": summarise(ranks), "paired": summarise(paired)}
    result = read_result("tiny")
    assert result["protocols"] == json.loads(json.dumps(expected))
    assert (result["run"], result["checkpoint"], result["split"]) == ("tiny", "best", "test")
    assert result["data"]["splits"]["test"] == {"images": 8, "captions": 40}
    kept = RetrievalRanks.load(files.RUNS / "tiny" / "ranks.npz")
    assert np.array_equal(kept.i2t_N, ranks.i2t_N)
    assert np.array_equal(kept.t2i_M, ranks.t2i_M)


@pytest.mark.usefixtures("evaluated")
def test_two_evaluations_leave_the_same_files():
    names = ("results.json", "gallery.npz", "slots.npz", "ranks.npz")
    folder = files.RUNS / "tiny"
    before = (folder / "results.json").read_bytes()
    arrays = {name: read_arrays("tiny", name) for name in ("gallery", "slots")}
    tiny_evaluate()
    assert (folder / "results.json").read_bytes() == before
    for name, there in arrays.items():
        here = read_arrays("tiny", name)
        assert here.keys() == there.keys()
        assert all(np.array_equal(there[key], here[key]) for key in there)
    assert {path.name for path in folder.iterdir()} >= set(names)
    assert not list(folder.glob("*.part"))


def test_the_whole_pipeline_gives_the_same_results_from_the_same_seed(tmp_path, monkeypatch):
    texts = []
    for place in ("one", "two"):
        monkeypatch.setattr(files, "RUNS", tmp_path / place)
        tiny_train(epochs=1)
        tiny_evaluate()
        texts.append((files.RUNS / "tiny" / "results.json").read_text())
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("evaluated")
@pytest.mark.parametrize("batch_size", [1, 7, 250])
def test_embeddings_depend_on_no_batch_and_are_in_the_splits_order(batch_size):
    parts = load_run("tiny", "best", torch.device("cpu"))
    data = split_of(parts, "val")
    image_ND, text_MD = embed_split(parts.model, data, batch_size)
    with torch.no_grad():
        for n in range(data.images):
            alone_1D = parts.model.embed_images(data.image_batch(torch.tensor([n])))
            torch.testing.assert_close(image_ND[n], alone_1D[0], rtol=1e-4, atol=1e-5)
        lengths = [len(caption) for caption in data.split.captions]
        assert lengths != sorted(lengths), "in order of length already, so the test would show nothing"
        for m in range(0, data.captions, 3):
            alone_1D = parts.model.embed_captions(*data.caption_batch(torch.tensor([m])))
            torch.testing.assert_close(text_MD[m], alone_1D[0], rtol=1e-4, atol=1e-5)
    assert image_ND.dtype == text_MD.dtype == torch.float32


@pytest.mark.usefixtures("evaluated")
@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_its_mode_and_dropout_is_off_meanwhile(training):
    parts = load_run("tiny", "best", torch.device("cpu"))
    data = split_of(parts, "val")
    parts.model.train(training)
    first, second = embed_split(parts.model, data), embed_split(parts.model, data)
    assert parts.model.training is training
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    with pytest.raises(AttributeError):
        embed_split(parts.model, None)
    assert parts.model.training is training


@pytest.mark.usefixtures("evaluated")
def test_the_gallery_agrees_with_the_ranks():
    gallery = read_arrays("tiny", "gallery")
    assert gallery["t2i_query"].shape == (4,)
    assert gallery["t2i_thumbs"].shape == (4, 5, 128, 128, 3)
    assert gallery["i2t_query"].shape == (4, 128, 128, 3)
    assert gallery["i2t_captions"].shape == (4, 5)
    for direction in ("t2i", "i2t"):
        hit_QK, rank_Q = gallery[f"{direction}_hit"], gallery[f"{direction}_rank"]
        for hit_K, rank in zip(hit_QK, rank_Q):
            first = int(hit_K.argmax()) + 1 if hit_K.any() else None
            assert first == (rank if rank <= 5 else None)
    dataset = load_dataset(tiny_config())
    test = dataset.splits["test"]
    for query, hit_K in zip(gallery["t2i_query"], gallery["t2i_hit"]):
        image = test.images[test.image_of_caption_M[test.captions.index(str(query))]]
        picture = np.asarray(dataset.source.load(image, 128))
        place = gallery["t2i_query"].tolist().index(query)
        shown = [np.array_equal(thumb, picture) for thumb in gallery["t2i_thumbs"][place]]
        assert shown == hit_K.tolist()
    assert bool(gallery["redistributable"])


@pytest.mark.usefixtures("evaluated")
def test_the_attention_on_the_slots_sums_to_one():
    slots = read_arrays("tiny", "slots")
    for read, count in (("image", 2), ("text", 2), ("central_image", 4), ("central_text", 4)):
        weight_S = slots[f"{read}_weight"]
        assert weight_S.shape == (count,)
        assert weight_S.sum() == pytest.approx(1, abs=1e-5)
        top = json.loads(str(slots[f"{read}_top"]))
        assert [slot["share"] for slot in top] == sorted(weight_S.tolist(), reverse=True)
        assert all(weight_S[slot["slot"]] == pytest.approx(slot["share"]) for slot in top)


@pytest.mark.usefixtures("evaluated")
def test_a_gallery_of_nothing_is_empty():
    tiny_evaluate(gallery_queries=0)
    gallery = read_arrays("tiny", "gallery")
    assert gallery["t2i_thumbs"].shape == (0, 5, 128, 128, 3)
    assert gallery["i2t_captions"].shape == (0, 5)
    tiny_evaluate()


def test_several_runs_of_data_sets_of_different_sizes():
    tiny_train(epochs=1)
    tiny_train(epochs=1, run="fewer", shapes_train=12, shapes_test=6)
    results = tiny_evaluate("tiny", "fewer")
    assert [r["run"] for r in results] == ["tiny", "fewer"]
    assert [r["data"]["splits"]["test"]["images"] for r in results] == [8, 6]


def test_the_checkpoint_and_the_split_asked_for_are_used():
    tiny_train(epochs=2)
    result = tiny_evaluate(checkpoint="last", split="val")[0]
    assert (result["checkpoint"], result["epoch"], result["split"]) == ("last", 2, "val")


def test_a_test_time_write_is_repeatable():
    tiny_train(epochs=1, memory_write=True)
    assert tiny_evaluate() == tiny_evaluate()


def test_a_run_that_is_not_complete_is_refused(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no run 'tiny'"):
        tiny_evaluate()
    before_step(monkeypatch, 2, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny_train()
    with pytest.raises(ValueError, match="'tiny' is not complete but interrupted"):
        tiny_evaluate()
    assert not (files.RUNS / "tiny" / "results.json").exists()


@pytest.mark.usefixtures("evaluated")
def test_other_data_are_refused_with_both_fingerprints(monkeypatch):
    there = read_result("tiny")["data"]["fingerprint"]
    monkeypatch.setattr(shapes, "RENDERER_VERSION", 99)
    with pytest.raises(
        ValueError, match=rf"other data: shapes with fingerprint {there} there, shapes with \w{{16}}"
    ):
        tiny_evaluate()


@pytest.mark.usefixtures("evaluated")
def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ParameterError, match="device: expected a CUDA GPU, found none; use device='auto' or 'cpu'"
    ):
        tiny_evaluate(device="cuda")


@pytest.mark.usefixtures("evaluated")
def test_damaged_arrays_are_named(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "slots.npz").write_bytes((files.RUNS / "tiny" / "slots.npz").read_bytes()[:300])
    monkeypatch.setattr(files, "RUNS", tmp_path)
    with pytest.raises(ValueError, match=r"slots\.npz is damaged .*evaluate the run again"):
        read_arrays("tiny", "slots")
    with pytest.raises(FileNotFoundError, match=r"'tiny' was not evaluated: expected .*gallery\.npz"):
        read_arrays("tiny", "gallery")


@pytest.mark.usefixtures("evaluated")
def test_a_folder_is_refused_where_the_data_are_drawn():
    with pytest.raises(
        ParameterError, match=r"data_root is read by dataset 'folder', .* has dataset 'shapes'"
    ):
        tiny_evaluate("tiny", data_root="data/x")


def test_a_run_that_is_trained_anew_while_it_is_evaluated_keeps_its_own_results(tiny_place, monkeypatch):
    """Numbers of the weights that were must not stand beside those that are."""
    tiny_train(epochs=1)
    folder, diagnose = tiny_place / "tiny", evaluation.diagnose

    def meanwhile(act):
        def found(*arguments):
            act()
            return diagnose(*arguments)

        monkeypatch.setattr(evaluation, "diagnose", found)

    meanwhile(lambda: tiny_train(epochs=1, lr=0.02, overwrite=True))
    with pytest.raises(InUse, match="'tiny' was trained anew while it was evaluated; nothing was written"):
        tiny_evaluate()
    assert not (folder / "results.json").exists()
    meanwhile(lambda: shutil.rmtree(folder))
    with pytest.raises(FileNotFoundError, match="no run 'tiny'"):
        tiny_evaluate()
    assert not folder.exists()


@pytest.mark.parametrize(
    "change",
    [{"kind": 0}, {"kind": {}}, {"vocabulary": 1.5}, {"vocabulary": [{}, 1]}, {"vocabulary": None}, {}],
)
def test_a_damaged_tokenizer_is_refused_by_the_name_of_its_file(change, trained, tiny_place):
    shutil.copytree(trained / "tiny", tiny_place / "tiny")
    path = tiny_place / "tiny" / "best.pt"
    content = load_checkpoint(path)
    content["tokenizer"] = content["tokenizer"] | change if change else {}
    path.write_bytes(checkpoint_bytes(content))
    with pytest.raises(ValueError, match=r"tiny/best\.pt is damaged: expected a tokenizer, found"):
        tiny_evaluate()


def test_a_run_on_coco_is_evaluated_under_the_protocols_of_coco(tmp_path, monkeypatch):
    parts = ["train"] * 12 + ["val"] * 10 + ["test"] * 10
    entries = []
    for number, split in enumerate(parts):
        name = f"COCO_val2014_{number:012}.jpg"
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        (tmp_path / "val2014").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "val2014" / name)
        said = [{"raw": f"a thing of kind {number} {word}", "tokens": []} for word in ("here", "there")]
        entries.append({"filepath": "val2014", "filename": name, "split": split, "sentences": said})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for name, images in (("coco_5k", 10), ("coco_1k_folds", 2)):
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(PROTOCOLS[name], images=images))
    tiny_train(run="coco", dataset="coco", data_root=str(tmp_path), batch_size=8)
    (result,) = tiny_evaluate("coco")
    assert list(result["protocols"]) == ["standard", "paired", "coco_5k", "coco_1k_folds"]
    assert read_result("coco")["protocols"] == result["protocols"]
    protocols = result["protocols"]
    assert protocols["coco_5k"] == protocols["standard"] | {"protocol": "coco_5k"}
    assert protocols["coco_1k_folds"]["i2t"]["n"] == 10
    assert protocols["coco_1k_folds"]["i2t"]["gallery"] == 4
    for name in ("coco_5k", "coco_1k_folds"):
        assert f"test split · protocol {name} · 10 image and 20 caption queries" in repr(
            results_table([result], name)
        )
    (on_val,) = tiny_evaluate("coco", split="val")
    assert list(on_val["protocols"]) == ["standard", "paired"]


def test_a_protocol_is_of_one_data_set_and_one_size():
    def names(*given):
        return [protocol.name for protocol in protocols_of(*given)]

    assert names("coco", "test", 5000) == ["coco_5k", "coco_1k_folds"]
    assert names("flickr30k", "test", 1000) == ["flickr30k_1k"]
    for other in (("coco", "test", 1000), ("coco", "val", 5000), ("flickr8k", "test", 1000)):
        assert names(*other) == []


def test_joined_image_encoders_are_trained_on_and_named_with_their_weights(tmp_path):
    import timm
    from safetensors.torch import save_file
    from torchvision.models import mobilenet_v3_small

    files_of_weights = [tmp_path / "e.safetensors", tmp_path / "m.pth"]
    save_file(timm.create_model("test_efficientnet").state_dict(), files_of_weights[0])
    torch.save(mobilenet_v3_small().state_dict(), files_of_weights[1])
    name = "timm:test_efficientnet+torchvision:mobilenet_v3_small"
    changes = {"image_encoder": name, "image_weights": "+".join(map(str, files_of_weights))}
    tiny_train(run="joined", image_size=32, image_tune="none", epochs=1, **changes)
    for file in files_of_weights:
        file.unlink()  # the checkpoint has the weights
    (result,) = tiny_evaluate("joined")
    assert result["pretraining"] == f"image: {name} (e.safetensors+m.pth)"
