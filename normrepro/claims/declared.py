"""Claims as they are declared, and the bounds that measured numbers are held to.

A claim of the YAML:
    claim    what is claimed, in our words
    where    equation, section, table of the paper
    kind     exact | statistical | training | arithmetic | design | measured | notation
    verdict  what the check shows if every number is within its bound:
             holds | limited (within limits, which the note names) | false | open
    check    name of the function that measures, or several; without one the note says why
    expect   number -> "< 1e-12", "> 0.5", ">= 0", "4 ± 0.05"; or null: shown, held to nothing
    chaotic  true: a training whose digits hang on the last bits of the machine; only the bounds
             are shown
    note     what it means for a reader
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from normrepro.claims import FOLDER
from normrepro.config import ConfigError

KINDS = ("exact", "statistical", "training", "arithmetic", "design", "measured", "notation")
VERDICTS = ("holds", "limited", "false", "open")
PAPERS = ("mabn", "cbn", "evalnorm", "xbnblock", "across")
BOUND = re.compile(r"(<=|>=|<|>) (\S+)|(-?[\d.e+-]+)(?: ± ([\d.e+-]+))?")
TINY = 1e-6  # a number held below this is rounding: its digits differ from machine to machine


@dataclass(frozen=True)
class Bound:
    """A bound on a number: as written, and the closed or open interval."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    strict: bool = False

    def met(self, value: float) -> bool:
        """Tell whether a number is within; NaN never is."""
        if self.strict:
            return self.low < value < self.high
        return self.low <= value <= self.high

    def show(self, name: str, value: float) -> str:
        """Write a measured number beside its bound."""
        name = name.replace("_", " ")
        if not self.text:
            return f"{name} {digits(value)}"
        edges = [abs(edge) for edge in (self.low, self.high) if math.isfinite(edge)]
        if self.met(value) and abs(value) <= TINY and max(edges) <= TINY:
            return f"{name} {self.text}"
        return f"{name} {digits(value)} ({self.text})"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper; see the head of this file."""

    id: str
    paper: str
    claim: str
    where: str
    kind: str
    verdict: str
    checks: tuple[str, ...]
    expect: Mapping[str, Bound]
    note: str
    chaotic: bool = False


def digits(value: float) -> str:
    """Write a number with three significant digits, or four from 10 on."""
    if not math.isfinite(value):
        return str(value)
    return (
        f"{value:.0f}"
        if value == round(value) and abs(value) < 1e6
        else f"{value:.{4 if abs(value) >= 10 else 3}g}"
    )


def bound(text: Any) -> Bound:
    """Read a bound.

    Raises:
        ConfigError: It is in none of the forms.
    """
    if text is None:
        return Bound("")
    found = BOUND.fullmatch(str(text))
    if not found:
        raise ConfigError(f"bound {text!r} is none of '< x', '> x', '<= x', '>= x', 'x', 'x ± y'")
    sign, limit, middle, play = found.groups()
    if middle is not None:
        width = float(play or 0)
        return Bound(str(text), float(middle) - width, float(middle) + width)
    edge = {"high" if sign[0] == "<" else "low": float(limit)}
    return Bound(str(text), **edge, strict="=" not in sign)


def load() -> list[Claim]:
    """Read all claims, in the order of the papers."""
    return [
        parse(paper, key, value)
        for paper in PAPERS
        for key, value in yaml.safe_load((FOLDER / f"{paper}.yaml").read_text("utf-8")).items()
    ]


def parse(paper: str, key: str, value: Mapping[str, Any]) -> Claim:
    """Read one claim.

    Raises:
        ConfigError: An unknown word, or something missing.
    """
    optional = {"check", "expect", "note", "chaotic"}
    rest = set(value) - {"claim", "where", "kind", "verdict"} - optional
    if rest or not {"claim", "where", "kind", "verdict"} <= set(value):
        raise ConfigError(
            f"claim {key}: has or lacks {sorted(rest) or 'claim, where, kind, verdict'}"
        )
    if value["kind"] not in KINDS or value["verdict"] not in VERDICTS:
        raise ConfigError(f"claim {key}: unknown kind or verdict")
    note = " ".join(str(value.get("note", "")).split())
    if not value.get("check") and not note:
        raise ConfigError(f"claim {key}: neither a check nor a note that says why")
    expect = {name: bound(text) for name, text in (value.get("expect") or {}).items()}
    claim = " ".join(value["claim"].split())
    checks = value.get("check") or ()
    checks = (checks,) if isinstance(checks, str) else tuple(checks)
    kind, verdict = value["kind"], value["verdict"]
    chaotic = bool(value.get("chaotic"))
    return Claim(key, paper, claim, value["where"], kind, verdict, checks, expect, note, chaotic)
