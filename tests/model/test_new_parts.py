"""A new loss is two files to change, and a new text encoder one: both are added to a copy and trained."""

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
from mmlib.config import TrainConfig
from mmlib.training import train

(row,) = train(TrainConfig(
    run="x", epochs=1, lr=1e-3, loss="toy", text_encoder="toy", shapes_train=16, shapes_val=8, shapes_test=8,
    image_size=16, latent_dim=16, memory_slots=4, batch_size=8, device="cpu",
))
assert 0 < row["train_loss"] < 2, row
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
    environment |= {"MMLIB_RUNS": str(tmp_path / "runs"), "MMLIB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WORK]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
