"""A new loss is two files to change, and a new text encoder one: both are added to a copy and used."""

import os
import shutil
import subprocess
import sys

from mmlib import files

# File of mmlib → what is written into it: (before which line, what).
LOSS = {
    "config/parameters.py": ('["infonce", "sigmoid", "triplet"]', '["infonce", "sigmoid", "triplet", "toy"]'),
    "model/losses.py": (
        "# Every loss by its name in the config.\n",
        """
class ToyLoss(Loss):
    def cost(self, sim_RB, positive_RB, own_R):
        return (1 - sim_RB.gather(1, own_R[:, None]))[:, 0]


# Every loss by its name in the config.
""",
    ),
}
LOSS_LINE = (
    '    "infonce": lambda',
    '    "toy": lambda c: ToyLoss(c.identity_positives, share=0.5),\n    "infonce": lambda',
)
TEXT_ENCODER = {
    "model/encoders.py": (
        "# Every encoder that is trained from scratch",
        """
class ToyEncoder(Encoder):
    def __init__(self, config, vocabulary):
        super().__init__()
        self.token = nn.EmbeddingBag(vocabulary, config.latent_dim)

    def forward(self, tokens_BL, length_B):
        return self.token(tokens_BL)


# Every encoder that is trained from scratch""",
    ),
}
ENCODER_LINE = ('    "gru": GRU', '    "toy": ToyEncoder,\n    "gru": GRU')
WORK = """\
import torch
from mmlib.config import TrainConfig, build
from mmlib.model import build_loss, build_model

config = build(TrainConfig, {
    "run": "x", "epochs": 1, "lr": 0.1, "loss": "toy", "text_encoder": "toy", "image_size": 16,
    "latent_dim": 16, "memory_slots": 4,
})
tokens_BL, length_B = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
model, loss = build_model(config, vocabulary=6), build_loss(config)
value = loss(*model(torch.randn(2, 3, 16, 16), tokens_BL, length_B), torch.arange(2))
value.backward()
assert 0 < value.item() < 2, value
assert model.text_encoder.token.weight.grad.abs().sum() > 0
"""


def write_into(package, changes, *more):
    for file, change in changes.items():
        text = (package / file).read_text(encoding="utf-8")
        for old, new in (change, *more):
            if old in text:
                text = text.replace(old, new, 1)
        (package / file).write_text(text, encoding="utf-8")


def test_a_loss_touches_two_files_and_a_text_encoder_one(tmp_path):
    package = tmp_path / "copy" / "mmlib"
    shutil.copytree(files.ROOT / "mmlib", package, ignore=shutil.ignore_patterns("__pycache__"))
    write_into(package, LOSS, LOSS_LINE)
    write_into(package, TEXT_ENCODER, ENCODER_LINE)
    environment = os.environ | {"PYTHONPATH": str(package.parent), "MMLIB_ROOT": str(tmp_path)}
    command = [sys.executable, "-c", WORK]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
