"""results/claims.md: for each claim what was measured, and what is concluded."""

from collections import Counter
from collections.abc import Mapping, Sequence

from normrepro.blocks import Block, Grid, Points, Title, markdown
from normrepro.claims.declared import Claim

WORDS = {
    "holds": "holds",
    "limited": "holds within limits",
    "false": "**false**",
    "open": "open",
}
BROKEN = "**NOT AS EXPECTED**"
PAPERS = {
    "mabn": "MABN",
    "cbn": "CBN",
    "evalnorm": "EvalNorm",
    "xbnblock": "XBNBlock",
    "across": "Across the papers, their tables and their print",
}
Measured = Mapping[str, Mapping[str, float]]


def broken(claim: Claim, measured: Measured) -> list[str]:
    """Say which numbers are out of their bounds, or missing."""
    found = taken(claim, measured)
    lacking = [f"{claim.id}: no number {name!r}" for name in claim.expect if name not in found]
    return lacking + [
        f"{claim.id}: {bound.show(name, found[name])}"
        for name, bound in claim.expect.items()
        if name in found and not bound.met(found[name])
    ]


def verdict(claim: Claim, measured: Measured) -> str:
    """Return what is concluded."""
    return BROKEN if broken(claim, measured) else WORDS[claim.verdict]


def numbers(claim: Claim, measured: Measured) -> str:
    """Write the measured numbers beside their bounds."""
    found, texts = taken(claim, measured), []
    for name, bound in claim.expect.items():
        if name in found and not claim.chaotic:
            texts.append(bound.show(name, found[name]))
        elif name in found and bound.text:
            met = bound.met(found[name])
            texts.append(f"{name.replace('_', ' ')} {'' if met else 'not '}{bound.text}")
    return "; ".join(texts) or "—"


def taken(claim: Claim, measured: Measured) -> Mapping[str, float]:
    """Join the numbers of a claim's checks."""
    return {k: v for check in claim.checks for k, v in measured[check].items()}


def render(claims: Sequence[Claim], measured: Measured) -> str:
    """Render the page."""
    blocks: list[Block] = [
        Title("The papers' claims, checked", 1),
        "Made by `make check-claims`, from the claims in `normrepro/claims/*.yaml` and the checks "
        "beside them: fixed seeds, float64 where a number is to be exact, this project's own "
        "layers. In brackets the bound that a number is held to. Trainings here are of seconds: "
        "they can show a sign or an order, not a number of a paper. Numbers on MNIST, and those of "
        "M-18, are read from the committed runs in `records.jsonl`.",
        *_summary(claims, measured),
    ]
    for paper, name in PAPERS.items():
        own = [claim for claim in claims if claim.paper == paper]
        blocks += [Title(name, 2), Grid(HEAD, [_row(c, measured) for c in own], numbers=False)]
    return markdown(blocks)


HEAD = ("", "claim", "where", "kind", "verdict", "measured", "what it means")


def _row(claim: Claim, measured: Measured) -> list[str]:
    end = verdict(claim, measured), numbers(claim, measured), claim.note
    return [claim.id, claim.claim, claim.where, claim.kind, *end]


def _summary(claims: Sequence[Claim], measured: Measured) -> list[Block]:
    count = Counter(verdict(claim, measured) for claim in claims)
    rows = [
        [word, str(count[word]), _kinds(claims, measured, word)]
        for word in (*WORDS.values(), BROKEN)
        if count[word]
    ]
    found = [Grid(("verdict", "claims", "of which"), rows, numbers=False)]
    for word, title in (
        (BROKEN, "Not as expected: a check failed"),
        (WORDS["false"], "False, by the papers' own formulas or numbers"),
        (WORDS["limited"], "Within limits"),
        (WORDS["open"], "Open"),
    ):
        own = [c for c in claims if verdict(c, measured) == word]
        if own:
            found += [Title(title, 2), Points([_point(c, measured) for c in own])]
    return found


def _point(claim: Claim, measured: Measured) -> str:
    found = numbers(claim, measured)
    middle = f" *{found}.*" if claim.checks and claim.verdict != "limited" else ""
    return f"{claim.id}: {claim.claim}{middle} {claim.note}".rstrip()


def _kinds(claims: Sequence[Claim], measured: Measured, word: str) -> str:
    count = Counter(c.kind for c in claims if verdict(c, measured) == word)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(count.items()))
