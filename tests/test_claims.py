"""The papers' claims: complete, well-formed, and checks that can fail."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from normrepro.claims import declared, load_checks, page
from normrepro.config import ConfigError
from normrepro.norms import MABN, evalnorm

ROOT = Path(__file__).resolve().parents[1]
IDS = {"M": 21, "C": 19, "E": 18, "X": 17}
CLAIMS = declared.load()


@pytest.fixture
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("check_claims", ROOT / "scripts/check_claims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_claim_is_there_once() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert {f"{letter}-{n}" for letter, last in IDS.items() for n in range(1, last + 1)} <= {*ids}


def test_every_check_is_there_and_used() -> None:
    used = {check for claim in CLAIMS for check in claim.checks}
    assert used == set(load_checks())
    assert all(claim.expect for claim in CLAIMS if claim.checks)


def test_what_holds_is_held_to_something() -> None:
    for claim in CLAIMS:
        held = [bound for bound in claim.expect.values() if bound.text]
        assert held or claim.verdict == "open", claim.id
        assert claim.note or claim.verdict in ("holds", "false"), claim.id


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("< 1e-12", 0.0, 1e-12),
        ("<= 0.5", 0.5, 0.51),
        ("> 0.5", 0.6, 0.5),
        (">= -1e-12", 0.0, -1.0),
        ("4 ± 0.05", 4.04, 4.06),
        ("0", 0.0, 1e-300),
        ("-1 ± 0.1", -0.95, 1.0),
    ],
)
def test_bounds(text: str, inside: float, outside: float) -> None:
    bound = declared.bound(text)
    assert bound.met(inside)
    assert not bound.met(outside)
    assert not bound.met(float("nan"))


def test_malformed_claims_are_refused() -> None:
    good = {"claim": "a", "where": "b", "kind": "exact", "verdict": "holds", "note": "c"}
    declared.parse("mabn", "M-1", good)
    for wrong in ({"kind": "sure"}, {"verdict": "true"}, {"note": ""}, {"expect": {"a": "~ 1"}}):
        with pytest.raises(ConfigError):
            declared.parse("mabn", "M-1", good | wrong)
    with pytest.raises(ConfigError, match="tolerance"):
        declared.parse("mabn", "M-1", good | {"tolerance": 1})


def test_a_broken_formula_fails(
    monkeypatch: pytest.MonkeyPatch, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The window's average left out of MABN's backward pass: the check sees it, and the script."""
    monkeypatch.setattr("sys.argv", ["check_claims.py", "--only", "W-6", "M-6"])
    script.main()
    told = capsys.readouterr().out
    assert "W-6 holds" in told
    assert "M-6 **false**" in told
    monkeypatch.setattr(MABN, "_backward_average", lambda self, name, call, it, new: new)
    with pytest.raises(SystemExit, match="W-6: dX over 6 steps"):
        script.main()
    assert page.BROKEN in capsys.readouterr().out


def test_an_evaluation_one_percent_off_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    own = evalnorm.corrected
    changed = lambda x, mean, var, a, *rest: own(x, mean, var, 1.01 * a, *rest)  # noqa: E731
    monkeypatch.setattr(evalnorm, "corrected", changed)
    checks = load_checks()
    for claim in (c for c in CLAIMS if c.id in ("E-1", "E-3", "E-4")):
        measured = {name: checks[name]() for name in claim.checks}
        assert page.verdict(claim, measured) == page.BROKEN


def test_a_number_that_a_check_does_not_give_is_a_failure() -> None:
    claim = next(c for c in CLAIMS if c.id == "M-1")
    assert page.broken(claim, {claim.checks[0]: {"restored_form": 0.0}}) == [
        "M-1: no number 'printed_form'"
    ]


@pytest.mark.slow
def test_the_committed_page_is_what_the_checks_give(script: ModuleType) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = script.measure({check for claim in CLAIMS for check in claim.checks})
    finally:
        torch.set_num_threads(threads)
    assert [text for claim in CLAIMS for text in page.broken(claim, measured)] == []
    text = (ROOT / "results" / "claims.md").read_text(encoding="utf-8")
    assert text == page.render(CLAIMS, measured), "make check-claims, and commit results/claims.md"
