"""The memory network against REFERENCE §1 and §2, written out.

Shapes: B items, S slots, D latent width.
"""

import math

import pytest
import torch
from networks import untrained
from torch.nn import functional as F

from mmlib.config import TrainConfig, build
from mmlib.model import DualEncoder, InfoNCE, MemoryNetwork, build_loss, build_model

REFERENCE = {
    "max_tokens": 77, "image_size": 224, "patch_size": 16, "latent_dim": 512, "num_layers": 4, "num_heads": 8,
    "mlp_ratio": 4, "dropout": 0.1, "memory_slots": 128, "feedback_steps": 2, "padding_mask": False,
}  # fmt: skip


def by_hand(model, image_BD=None, text_BD=None):
    """Fusion, central read and feedback of what the modality memories gave, in eval mode."""
    rows = []
    for b in range(len(image_BD if image_BD is not None else text_BD)):
        zero_D = torch.zeros(model.type_2D.shape[1])
        image_D = (zero_D if image_BD is None else image_BD[b]) + model.type_2D[0]
        text_D = (zero_D if text_BD is None else text_BD[b]) + model.type_2D[1]
        bits_2 = torch.tensor([float(image_BD is not None), float(text_BD is not None)])
        x = torch.cat([image_D, text_D, bits_2])
        wide, wide_norm, _, _, narrow, narrow_norm = model.fusion
        x = narrow_norm(narrow(F.relu(wide_norm(wide(x)))))
        z_1D = model.central_memory(x[None])
        for _ in range(model.feedback_steps):
            linear, norm = model.feedback[0], model.feedback[1]
            z_1D = z_1D + F.relu(norm(linear(z_1D)))
            z_1D = model.central_memory(z_1D)
        rows.append(z_1D)
    return torch.cat(rows)


@pytest.mark.parametrize("feedback_steps", [0, 1, 2])
def test_the_latents_are_those_written_out(network, batch, feedback_steps):
    model = network(feedback_steps=feedback_steps)
    image_BCHW, *caption = batch
    image_BD = model.modality_memory["image"](model.image_encoder(image_BCHW))
    text_BD = model.modality_memory["text"](model.text_encoder(*caption))

    torch.testing.assert_close(model.embed_images(image_BCHW), by_hand(model, image_BD=image_BD))
    torch.testing.assert_close(model.embed_captions(*caption), by_hand(model, text_BD=text_BD))
    both_BD = model.centre({"image": image_BD, "text": text_BD})
    torch.testing.assert_close(both_BD, by_hand(model, image_BD, text_BD))
    both = model(*batch)
    torch.testing.assert_close(both[0], model.embed_images(image_BCHW))
    torch.testing.assert_close(both[1], model.embed_captions(*caption))


def test_every_latent_has_the_latent_width(network, batch):
    model = network(latent_dim=32)
    assert [tuple(x.shape) for x in model(*batch)] == [(4, 32)] * 2


def test_an_item_has_the_same_latent_alone_and_in_a_batch(network, batch):
    model = network()
    image_BD, text_BD = model(*batch)
    for b in range(4):
        alone = model(*(x[b : b + 1] for x in batch))
        torch.testing.assert_close(
            torch.cat(alone), torch.stack([image_BD[b], text_BD[b]]), atol=1e-5, rtol=1e-5
        )


def test_dropout_is_where_the_reference_has_it():
    model = untrained(
        34, **REFERENCE | {"patch_size": 112, "latent_dim": 16, "num_layers": 1, "dropout": 0.25}
    )
    dropouts = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.25]
    assert [n for n in dropouts if "encoder" not in n] == ["fusion.3", "feedback.3"]
    assert len([n for n in dropouts if "encoder" in n]) == 6  # three in each layer, as in Vaswani et al. 2017
    assert all(
        block.attention.dropout == 0 for block in [*model.modality_memory.values(), model.central_memory]
    )


def test_the_reference_sizes_have_the_number_of_weights_that_their_definition_gives():
    with torch.device("meta"):
        model = untrained(34, **REFERENCE)
    D, L, P = 512, 77, 196
    norm, linear, attention = 2 * D, D * D + D, 4 * (D * D + D)
    layer = attention + 2 * norm + (D * 4 * D + 4 * D) + (4 * D * D + D)
    text = 34 * D + L * D + 4 * layer + norm + linear
    image = (3 * 16 * 16 * D + D) + D + (P + 1) * D + 4 * layer + norm
    memories = 3 * (attention + norm) + (64 + 64 + 128) * D
    fusion = 2 * D + ((2 * D + 2) * 2 * D + 2 * D) + 2 * (2 * D) + (2 * D * D + D) + norm
    feedback = linear + norm
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted == text + image + memories + fusion + feedback == 31_165_952
    assert len(model.modality_memory["image"].slots_SD) == len(model.modality_memory["text"].slots_SD) == 64
    assert len(model.central_memory.slots_SD) == 128


def test_the_reference_recipe_starts_near_the_logarithm_of_its_batch():
    """ln 64 = 4.159 (REFERENCE §2), and a little more for what random weights make of differing items."""
    model = untrained(34, **REFERENCE | {"image_size": 32, "max_tokens": 16})  # fewer positions, same widths
    loss = InfoNCE(0.07, identity_positives=False)
    images = F.interpolate(torch.randn(64, 3, 4, 4), size=32, mode="bicubic")
    with torch.no_grad():
        latents = model(images, torch.randint(0, 34, (64, 16)), torch.full((64,), 16))
    assert loss(*latents, torch.arange(64)).item() == pytest.approx(math.log(64), abs=0.4)


@pytest.mark.parametrize("padding_mask", [True, False])
def test_a_gradient_reaches_every_trainable_weight(network, batch, padding_mask):
    model = network(padding_mask=padding_mask).train()
    loss = InfoNCE(learned=True)
    loss(*model(*batch), torch.arange(4)).backward()
    weights = [*model.named_parameters(), *loss.named_parameters()]
    assert [name for name, p in weights if p.grad is None] == []
    # Keys share their bias, which a softmax does not see: its gradient is zero up to rounding.
    assert [name for name, p in weights if not p.grad.abs().sum() > 0] == []


def test_a_read_tells_which_slots_were_read(network, batch):
    model = network()
    image_BCHW, tokens_BL, length_B = batch
    for modality, inputs in (("image", (image_BCHW,)), ("text", (tokens_BL, length_B))):
        reads = model.slot_reads(modality, *inputs)
        assert list(reads) == [modality, f"central_{modality}"]
        modality_BHS, central_BHS = reads.values()
        assert (modality_BHS.shape, central_BHS.shape) == ((4, 2, 4), (4, 2, 8))
        torch.testing.assert_close(modality_BHS.sum(2), torch.ones(4, 2))
        torch.testing.assert_close(central_BHS.sum(2), torch.ones(4, 2))
    item_BD, weight_BHS = model.modality_memory["text"].read(
        model.text_encoder(tokens_BL, length_B), weights=True
    )
    torch.testing.assert_close(modality_BHS, weight_BHS)
    fused_BD = model._fuse({"text": item_BD})
    torch.testing.assert_close(central_BHS, model.central_memory.read(fused_BD, weights=True)[1])


def test_a_write_follows_the_read_and_changes_what_the_next_batch_reads(network, batch):
    model = network(memory_write=True, memory_slots=32)
    image_BCHW, *caption = batch
    slots = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("slots_SD")}

    def changed():
        now = dict(model.named_parameters())
        return {name: int((now[name] != before).any(1).sum()) for name, before in slots.items()}

    image_before_BD, text_before_BD = model(*batch)
    assert changed() == dict.fromkeys(slots, 0)
    torch.testing.assert_close(model.embed_images(image_BCHW, write=True), image_before_BD)
    assert changed() == {
        "modality_memory.image.slots_SD": 4,
        "modality_memory.text.slots_SD": 0,
        "central_memory.slots_SD": 8,
    }
    assert not torch.allclose(model.embed_images(image_BCHW), image_before_BD)
    assert not torch.allclose(model.embed_captions(*caption), text_before_BD)  # by way of the central memory
    model.embed_captions(*caption, write=True)
    assert changed()["modality_memory.text.slots_SD"] == 4


def test_a_write_is_refused_by_a_network_built_without_it(network, batch):
    model = network()
    with pytest.raises(RuntimeError, match="build the model with memory_write=True"):
        model.embed_images(batch[0], write=True)


def test_a_config_builds_the_network_and_the_loss_that_it_names():
    config = build(
        TrainConfig,
        {
            "run": "r", "epochs": 1, "lr": 0.1, "image_size": 32, "patch_size": 16, "max_tokens": 9,
            "latent_dim": 24, "num_layers": 3, "num_heads": 3, "mlp_ratio": 2, "dropout": 0.3,
            "memory_slots": 10, "feedback_steps": 1, "padding_mask": False, "memory_write": True,
            "temperature": 0.2, "learn_temperature": True, "identity_positives": False,
        },
    )  # fmt: skip
    model, loss = build_model(config, vocabulary=13), build_loss(config)
    text = model.text_encoder
    assert (text.token.weight.shape, text.position_LD.shape) == ((13, 24), (9, 24))
    assert model.image_encoder.position_1PD.shape == (1, 5, 24)
    assert (len(text.layers.layers), len(model.image_encoder.layers.layers)) == (3, 3)
    layer = text.layers.layers[0]
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (3, 48, 0.3)
    assert (model.central_memory.slots_SD.shape, model.modality_memory["text"].slots_SD.shape) == (
        (10, 24),
        (5, 24),
    )
    assert (model.feedback_steps, text.padding_mask) == (1, False)
    assert (model.central_memory.write_top, model.modality_memory["image"].write_top) == (8, 4)
    assert (loss.temperature, loss.identity_positives) == (pytest.approx(0.2), False)
    assert loss.log_scale.requires_grad


def test_with_a_cosine_memory_both_encoders_read_one_memory_and_nothing_follows(network, batch):
    model = network(memory="cosine")
    image_BD, text_BD = model(*batch)
    torch.testing.assert_close(image_BD, model.central_memory(model.image_encoder(batch[0])))
    assert image_BD.shape == text_BD.shape
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"image_encoder", "text_encoder", "central_memory"}
    with torch.no_grad():
        model.central_memory.gain.fill_(0.1)
    InfoNCE()(*model(*batch), torch.arange(4)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert {n: r.shape for n, r in model.slot_reads("image", batch[0]).items()} == {
        "central_image": (4, 2, 8)
    }
    assert list(model.slot_reads("text", *batch[1:])) == ["central_text"]


def test_without_slots_the_encoders_stand_alone(network, batch):
    model = network(memory="none")
    assert type(model) is DualEncoder
    image_BD, text_BD = model(*batch)
    assert torch.equal(image_BD, model.image_encoder(batch[0]))
    assert torch.equal(text_BD, model.text_encoder(*batch[1:]))
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"image_encoder", "text_encoder"}
    assert issubclass(MemoryNetwork, DualEncoder)
