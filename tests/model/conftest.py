"""Small networks and batches that the tests of this room share."""

import pytest
import torch
from networks import SIZES, untrained


@pytest.fixture(autouse=True)
def seeded():
    """One thread, and random numbers that a test's neighbours cannot change."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def network():
    """Makes a small network whose every weight is random, norms and biases too; in eval mode."""

    def make(**sizes):
        model = untrained(11, **SIZES | sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def batch():
    """Four images (4, 3, 16, 16), captions of 11 token ids (4, 12) and their lengths (4,)."""
    length_B = torch.tensor([12, 5, 1, 3])
    tokens_BL = torch.randint(1, 11, (4, 12))
    tokens_BL[torch.arange(12) >= length_B[:, None]] = 0
    return torch.randn(4, 3, 16, 16), tokens_BL, length_B


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test of this room asks the hub of Hugging Face whether it is there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
