"""The page about other packages: every claim about this one names a page or a test that exists."""

import pathlib
import re

import diffrax
from problems import draw, log_normal

import flowrl

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "concepts" / "peers.md"


def _claims():
    """Return capability and cell of the column about this library, of the tables that have one."""
    inside = False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| | flowrl |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not cells[1].startswith("---"):
            yield cells[0], cells[1]


def test_every_claim_links_or_names_its_proof():
    claims = dict(_claims())
    assert len(claims) >= 25
    for capability, claim in claims.items():
        links = re.findall(r"\]\(([^)#]+)", claim)
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", claim)
        assert links or tests or claim == "no", (capability, claim)
        for link in links:
            assert (PAGE.parent / link).is_file(), (capability, link)
        for path, name in tests:
            assert f"\ndef {name}(" in (ROOT / path).read_text(), (capability, path, name)


def test_continuous_time_shows_its_progress(capfd):
    solver = flowrl.Diffrax(progress_meter=diffrax.TextProgressMeter())
    particles, budget = draw(0, (1, 1)), flowrl.Budget(10, 0.1)
    flowrl.transport(flowrl.Boltzmann(log_normal), particles, budget, flow=flowrl.Ascent(), solver=solver)
    assert "100.00%" in capfd.readouterr().out
