"""The memory block against REFERENCE §1, written out.

Shapes: B items, S slots, D width, K slots written at once.
"""

import pytest
import torch
from torch.nn import functional as F

from mmlib.analysis.memory import read_sharpness
from mmlib.model.network import COSINE_TEMPERATURE, CosineMemory, MemoryBlock

S, D, HEADS, K = 6, 16, 2, 3


@pytest.fixture
def block():
    return MemoryBlock(S, D, HEADS, write_top=K).eval()


def test_slots_start_small():
    slots_SD = MemoryBlock(500, 64, 1).slots_SD
    assert slots_SD.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(slots_SD.mean().item()) < 0.001


def test_a_read_equals_one_attention_per_item_over_the_slots_repeated(block):
    item_BD = torch.randn(5, D)
    expected, expected_weights = [], []
    for item_D in item_BD:
        query_11D = item_D.view(1, 1, D)
        slots_1SD = block.slots_SD.repeat(1, 1, 1)
        attended_11D, weight_1H1S = block.attention(
            query_11D, slots_1SD, slots_1SD, average_attn_weights=False
        )
        expected.append(F.layer_norm(attended_11D[0, 0] + item_D, (D,), block.norm.weight, block.norm.bias))
        expected_weights.append(weight_1H1S[0, :, 0])
    read_BD, weight_BHS = block.read(item_BD, weights=True)
    torch.testing.assert_close(read_BD, torch.stack(expected))
    torch.testing.assert_close(weight_BHS, torch.stack(expected_weights))
    torch.testing.assert_close(weight_BHS.sum(2), torch.ones(5, HEADS))
    torch.testing.assert_close(block(item_BD), read_BD)
    assert block.read(item_BD)[1] is None


def test_a_read_equals_attention_by_its_formula(block):
    """Vaswani et al. 2017, eq. 1 and section 3.2.2, head by head."""
    item_BD = torch.randn(3, D)
    bias_3D = torch.randn(3 * D)
    with torch.no_grad():
        block.attention.in_proj_bias.copy_(bias_3D)
    weight_q, weight_k, weight_v = block.attention.in_proj_weight.chunk(3)
    bias_q, bias_k, bias_v = bias_3D.chunk(3)
    query_BD = item_BD @ weight_q.T + bias_q
    key_SD, value_SD = block.slots_SD @ weight_k.T + bias_k, block.slots_SD @ weight_v.T + bias_v
    heads = []
    for part in torch.arange(D).chunk(HEADS):
        score_BS = query_BD[:, part] @ key_SD[:, part].T / (D / HEADS) ** 0.5
        heads.append(score_BS.softmax(-1) @ value_SD[:, part])
    attended_BD = block.attention.out_proj(torch.cat(heads, dim=1))
    torch.testing.assert_close(block(item_BD), block.norm(attended_BD + item_BD))


def test_an_item_reads_the_same_alone_and_in_a_batch(block):
    item_BD = torch.randn(4, D)
    alone_BD = torch.cat([block(item_BD[b : b + 1]) for b in range(4)])
    torch.testing.assert_close(block(item_BD), alone_BD)


def test_a_write_moves_exactly_the_most_similar_slots_by_the_formula(block):
    content_BD = torch.randn(5, D)
    before_SD = block.slots_SD.detach().clone()
    mean_D = content_BD.mean(0)
    similarity_S = torch.stack([slot @ mean_D / (slot.norm() * mean_D.norm()) for slot in before_SD])
    nearest = similarity_S.argsort(descending=True)[:K].tolist()

    written = block.write(content_BD)

    assert written.tolist() == nearest
    for s in range(S):
        if s not in nearest:
            assert torch.equal(block.slots_SD[s], before_SD[s])
            continue
        pair_E = torch.cat([before_SD[s], mean_D])
        gate_D, new_D = torch.sigmoid(block.write_gate(pair_E)), block.write_content(pair_E)
        expected_D = before_SD[s] * (1 - 0.1 * gate_D) + 0.1 * gate_D * new_D
        torch.testing.assert_close(block.slots_SD[s], expected_D)
        assert not torch.equal(block.slots_SD[s], before_SD[s])


def test_a_write_of_more_slots_than_there_are_moves_them_all():
    block = MemoryBlock(2, D, HEADS, write_top=8)
    assert sorted(block.write(torch.randn(3, D)).tolist()) == [0, 1]


def test_a_write_leaves_the_slots_trainable(block):
    block.write(torch.randn(3, D))
    assert block.slots_SD.requires_grad
    assert block.slots_SD.is_leaf


def test_a_block_without_writing_networks_refuses_to_be_written():
    block = MemoryBlock(S, D, HEADS)
    before_SD = block.slots_SD.detach().clone()
    assert not any("write" in name for name, _ in block.named_parameters())
    with pytest.raises(RuntimeError, match="build the model with memory_write=True"):
        block.write(torch.randn(3, D))
    assert torch.equal(block.slots_SD, before_SD)


@pytest.fixture
def cosine():
    memory = CosineMemory(S, D, HEADS)
    with torch.no_grad():
        memory.gain.fill_(0.5)
    return memory


def test_a_cosine_memory_reads_by_its_formula(cosine):
    item_BD = torch.randn(3, D)
    query_BD = item_BD @ cosine.query.weight.T
    heads, weights = [], []
    for head, part in enumerate(torch.arange(D).chunk(HEADS)):
        key_SE = cosine.key_SHE[:, head]
        score_BS = F.cosine_similarity(query_BD[:, None, part], key_SE, dim=-1) / COSINE_TEMPERATURE
        weights.append(score_BS.softmax(-1))
        heads.append(weights[-1] @ cosine.value_SHE[:, head])
    expected_BD = item_BD + 0.5 * torch.cat(heads, dim=1) @ cosine.output.weight.T
    torch.testing.assert_close(cosine(item_BD), expected_BD)
    torch.testing.assert_close(cosine.attention(item_BD), torch.stack(weights, dim=1))


def test_a_cosine_memory_starts_as_if_it_were_not_there_and_learns_from_the_first_step():
    memory, item_BD = CosineMemory(S, D, HEADS), torch.randn(4, D)
    assert torch.equal(memory(item_BD), item_BD)
    memory(item_BD).square().sum().backward()
    assert memory.gain.grad.abs() > 0


def test_the_reads_of_a_cosine_memory_are_sharp_and_differ_where_those_of_the_published_one_are_even():
    torch.manual_seed(0)
    item_BD = torch.randn(200, 64)
    published_BHS = MemoryBlock(64, 64, 4).read(item_BD, weights=True)[1]
    cosine_BHS = CosineMemory(64, 64, 4).attention(item_BD)
    entropy, live = read_sharpness(published_BHS)
    assert entropy > 0.999
    assert live == 0
    entropy, live = read_sharpness(cosine_BHS)
    assert entropy < 0.7
    assert live == 64
    assert len(cosine_BHS[:, 0].argmax(-1).unique()) > 32


def test_the_sharpness_of_known_reads():
    one, even = torch.eye(4)[[1, 1, 3]].unsqueeze(1), torch.full((2, 3, 4), 0.25)
    assert read_sharpness(one) == (0.0, 2)
    assert read_sharpness(even) == (pytest.approx(1.0), 0)
    assert read_sharpness(torch.cat([one.expand(3, 3, 4), even]))[0] == pytest.approx(2 / 5)
