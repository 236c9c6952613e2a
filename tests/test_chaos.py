"""A small dose of scripts/chaos.py: kills at random moments lose no bit."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment


@pytest.mark.slow
@pytest.mark.dist
def test_ten_kills_lose_no_bit() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--kills", "10"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| the driver of a table | 1 | 0 |" in done.stdout
