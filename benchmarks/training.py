"""Pairs per second and peak memory of training: ours beside open_clip's loop and a textbook's."""

from benchmarks.harness import Contender, compare
from benchmarks.steps import CHARACTERS, config_of, open_clip_loop, ours, textbook

# Equal work: a plain pair of encoders, all positions read by both, no dropout, no random crops.
EQUAL = {
    "memory": "none", "feedback_steps": 0, "dropout": 0.0, "tokenizer": "char-reference",
    "padding_mask": False, "mlp_ratio": 4, "optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 1.0,
    "learn_temperature": True,
}  # fmt: skip
SMALL = {
    "image_size": 64, "patch_size": 8, "latent_dim": 256, "num_layers": 4, "num_heads": 4,
    "max_tokens": 32, "batch_size": 64,
}  # fmt: skip
REFERENCE = {
    "image_size": 224, "patch_size": 16, "latent_dim": 512, "num_layers": 4, "num_heads": 8,
    "max_tokens": 77, "batch_size": 64,
}  # fmt: skip
TINY = {
    "image_size": 32, "patch_size": 8, "latent_dim": 64, "num_layers": 2, "num_heads": 2,
    "max_tokens": 16, "batch_size": 32,
}  # fmt: skip
DEMO = {
    "image_size": 64, "patch_size": 8, "latent_dim": 96, "num_layers": 2, "num_heads": 4, "max_tokens": 24,
    "memory_slots": 32, "feedback_steps": 2, "dropout": 0.0, "tokenizer": "word", "padding_mask": True,
    "mlp_ratio": 4, "optimizer": "adamw", "weight_decay": 0.0, "clip_norm": 1.0, "batch_size": 64,
    "precision": "fp32",
}  # fmt: skip
TEXTBOOK_NOTE = "its two worker processes' memory is not counted"


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """open_clip at equal work in float32 and bfloat16, then the textbook loop on the demo's network."""
    if device == "cuda":
        cases = [(REFERENCE, "bf16", 64), (REFERENCE, "bf16", 1024)][: 1 if quick else 2]
    else:
        cases = [(TINY, "fp32", 32)] if quick else [(SMALL, "fp32", 64), (SMALL, "bf16", 64)]
    steps = 4 if quick else 6 if device == "cpu" else 60
    found = []
    for sizes, precision, batch in cases:
        values = {**EQUAL, **sizes, "precision": precision, "device": device, "batch_size": batch}
        found += at_equal_work(values, steps)
    values = {**DEMO, "device": device}
    found += compare(
        "training, the demo's network",
        Contender("mmlib train", ours, _arguments(values, 4 * steps)),
        [Contender("textbook loop", textbook, _arguments(values, 4 * steps))],
        work="64 px in patches of 8, D 96, 2 layers, memory of 32 slots, batch 64, fp32, AdamW;"
        " from 500-pixel pictures (ours: packed once before)",
        amount=4 * steps * values["batch_size"], unit="pairs/s", notes={"textbook loop": TEXTBOOK_NOTE},
    )  # fmt: skip
    return found


def at_equal_work(values: dict, steps: int) -> list[dict]:
    """One row against open_clip; what makes the work equal stands in it."""
    ours_size, theirs_size = size_of(ours, values), size_of(open_clip_loop, values)
    side = values["image_size"] // values["patch_size"]
    work = (
        f"{values['image_size']} px in patches of {values['patch_size']}, {side * side + 1} + "
        f"{values['max_tokens']} tokens, {CHARACTERS} token ids, D {values['latent_dim']},"
        f" {values['num_layers']} layers each, batch {values['batch_size']}, {values['precision']}, AdamW;"
        f" ours {ours_size[0] / 1e6:.2f} M parameters and {ours_size[1] / 1e9:.1f} GFLOP a step,"
        f" open_clip {theirs_size[0] / 1e6:.2f} M and {theirs_size[1] / 1e9:.1f}"
    )
    return compare(
        f"training, two encoders, batch {values['batch_size']}, {values['precision']}",
        Contender("mmlib train", ours, _arguments(values, steps)),
        [Contender("open_clip train_one_epoch", open_clip_loop, _arguments(values, steps))],
        work=work, amount=steps * values["batch_size"], unit="pairs/s", repetitions=7,
        notes={"open_clip train_one_epoch": "its batches lie ready in memory"},
    )  # fmt: skip


def size_of(make, values: dict) -> tuple[int, float]:
    """Parameters, and floating-point operations of one step."""
    work = make(values, 1, count=True)
    work()
    return work.clock.parameters, work.clock.flops


def _arguments(values: dict, steps: int) -> dict:
    config_of(values, steps)  # refused now rather than in another process
    return {"values": values, "steps": steps}
