"""Signs that a training goes wrong although its loss is finite: collapsed embeddings, a loss that guesses.

Shapes: N images, M captions, D width.
"""

import torch

COLLAPSED = 0.01  # spread below which all embeddings count as one point
GUESSING = 0.98  # share of ln B from which a loss counts as that of guessing


def embedding_health(image_ND: torch.Tensor, caption_MD: torch.Tensor) -> dict[str, float]:
    """How embeddings lie on the unit sphere.

    Args:
        image_ND, caption_MD: embeddings of a split.

    Returns:
        `image_spread` and `caption_spread`, 1 - |mean unit vector|²: 0 if all lie at one point, 1 if they
        cancel out; `modality_gap`, the distance between the two means (Liang et al. 2022).
    """
    image_D, caption_D = (
        torch.nn.functional.normalize(x.double(), dim=1).mean(0) for x in (image_ND, caption_MD)
    )
    return {
        "image_spread": float(1 - image_D @ image_D),
        "caption_spread": float(1 - caption_D @ caption_D),
        "modality_gap": float((image_D - caption_D).norm()),
    }


def collapse_in(row: dict) -> str | None:
    """Which embeddings of this epoch of a history lie at one point, in words; None if none do."""
    if not (health := row.get("health")):
        return None
    spreads = {side: health[f"{side}_spread"] for side in ("image", "caption")}
    side = min(spreads, key=spreads.get)
    if spreads[side] >= COLLAPSED:
        return None
    return f"the {side} embeddings have collapsed to one point (spread {spreads[side]:.3f})"


def health_warning(rows: list[dict]) -> str | None:
    """What is wrong after the last of these epochs, in words; None if nothing is.

    Args:
        rows: of one phase's history, in order.
    """
    healths = [row.get("health") for row in rows]
    if not healths or healths[-1] is None:
        return None
    if collapse := collapse_in(rows[-1]):
        return f"{collapse}: nothing tells them apart; try less dropout, a lower lr or a warm-up"
    last_two = [
        health is not None and health["chance_loss"] and row["train_loss"] >= GUESSING * health["chance_loss"]
        for row, health in zip(rows[-2:], healths[-2:])
    ]
    if len(last_two) == 2 and all(last_two):
        return (
            f"the loss has stayed at ln B = {healths[-1]['chance_loss']:.3f}, that of guessing, for two"
            " epochs; try another lr, or look at the data"
        )
    return None
