"""A bandit with two good actions: VGF keeps both, one mode or one residual for all stands between them."""

import pytest
from benchmarks import two_modes


@pytest.mark.slow
def test_vgf_keeps_both_modes_where_one_mode_falls_between():
    learners = two_modes.learners()
    cloned, vgf, one, residual, seeing = (
        two_modes.summary(two_modes.actions_of(*learners[name], seed=0))
        for name in ("cloned flow", "VGF, L = 3", "TD3+BC", "Gaussian residual", "residual that sees the sample")
    )
    assert vgf[0] > 0.4
    assert vgf[1] < 0.15
    assert vgf[2] > cloned[2] + 0.2
    assert one[0] < 0.05
    assert one[2] < 0.2
    assert residual[1] > 0.25
    assert vgf[2] > residual[2] + 0.15
    # What a residual may look at decides: one that sees the sample moves each mode its own way.
    assert seeing[0] > 0.35
    assert seeing[1] < 0.05
    assert seeing[2] > cloned[2] + 0.2
