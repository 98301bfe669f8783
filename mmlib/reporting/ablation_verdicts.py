"""What may be said of an ablation's claims: a sentence each, with the numbers that it rests on."""

import html
from dataclasses import dataclass

from mmlib.metrics.compare import p_in_words
from mmlib.reporting.scope import DIRECTIONS, SPLIT_NAMES, percent
from mmlib.reporting.style import DIRECTION_NAMES
from mmlib.training.stored import DECIDES

_WORDS = {
    "supported": "Supported: “{claim}”",
    "contradicted": "Contradicted: “{claim}”; the opposite was found",
    "no evidence": "No evidence that “{claim}”",
    "not judged": "Not judged: “{claim}”",
}


@dataclass(frozen=True)
class Verdicts:
    """One sentence for each claim, and how they were reached."""

    sentences: tuple[str, ...]
    note: str = ""

    def __repr__(self) -> str:
        return "\n".join([*self.sentences, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        items = "".join(f"<li><strong>{html.escape(sentence)}</strong></li>" for sentence in self.sentences)
        return f"<ul>{items}</ul><p><small>{html.escape(self.note)}</small></p>"


def ablation_verdicts(record: dict) -> Verdicts:
    """One sentence for each claim, with the numbers that it rests on.

    Args:
        record: of `mmlib.training.ablation`; its claims are judged by `mmlib.training.ablation`.
    """
    claims = record["claims"]
    judged = [claim for claim in claims if claim["verdict"] != "not judged"]
    if not claims:
        return Verdicts(("No claim was put to the test.",))
    sentences = tuple(
        _sentence(claim, record) if claim in judged else _why_not_judged(claim, record) for claim in claims
    )
    return Verdicts(sentences, _how(judged) if judged else "")


def _how(judged: list[dict]) -> str:
    holm = f", corrected over the {len(judged)} claims (Holm)" if len(judged) > 1 else ""
    several = ", over seeds and queries together" if any(len(c["seeds"]) > 1 for c in judged) else ""
    return (
        "A claim is supported only if two things agree: the 95 % interval of the difference lies above"
        f" zero{several}, and a permutation test by image gives p < 0.05{holm}. What decides is the mean of"
        " both directions' R@1. No evidence is no proof of the contrary: the interval says how large a"
        " difference there may still be."
    )


def _sentence(claim: dict, record: dict) -> str:
    number, where = claim["metrics"][DECIDES], record["scope"]
    directions = "; ".join(
        f"{DIRECTION_NAMES[d]} {percent(both['b'])} against {percent(both['a'])}"
        for d in DIRECTIONS
        for both in (claim["metrics"][f"{d}_r1"],)
    )
    low, high = _points(number["low"]), _points(number["high"])
    holm = f", Holm over {claim['judged']} claims" if claim["judged"] > 1 else ""
    return (
        f"{_WORDS[claim['verdict']].format(**claim)}: {claim['arm']} {percent(number['b'])} % against"
        f" {claim['over']} {percent(number['a'])} % (mean R@1; {directions}; {_seeds(claim, record)},"
        f" n = {where['images']:,} images and {where['captions']:,} captions of the"
        f" {SPLIT_NAMES[where['split']]} split). Difference {_points(number['difference'])} points,"
        f" 95 % {low} to {high} over {claim['interval']}; {p_in_words(claim['p_holm'])}{holm}."
    )


def _seeds(claim: dict, record: dict) -> str:
    count, asked = len(claim["seeds"]), len(record["seeds"])
    if count == 1 and asked == 1:
        return "1 seed, which says nothing of others"
    return f"{count} seeds" if count == asked else f"{count} of {asked} seeds, the others failed"


def _why_not_judged(claim: dict, record: dict) -> str:
    arms = {arm["name"]: arm for arm in record["arms"]}
    reasons = []
    for name in (claim["arm"], claim["over"]):
        failed = [run for run in arms[name]["runs"] or arms[name]["tried"] if run["state"] != "complete"]
        reasons += [f"{run['run']}: {run['reason']}" for run in failed]
    return f"{_WORDS['not judged'].format(**claim)}: no seed with both arms complete. {'; '.join(reasons)}"


def _points(fraction: float) -> str:
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(100 * fraction, 2) + 0.0:+.2f}"
