"""How good a set of particles is: against a density, against samples of a reference, and by itself.

| you have | ask |
|---|---|
| the score ∇ log p of the target | `ksd`, `ksd_test`; `stein_thinning` to keep the best few |
| samples of the target | `wasserstein`, `sliced_wasserstein`, `sinkhorn_divergence`, `mmd`, `energy_distance` |
| the target's variance | `variance_ratio`: have the particles collapsed? |
| log weights | `effective_sample_size` |

A set is an array (n, d), or any PyTree that `transport` takes as particles; an array (n,) holds n numbers. All
particles of a set weigh the same. Two sets, `x` and `y`, may differ in size, not in dtype or in the shape of one
particle. Where a function is not symmetric, `y` is the reference.

Names that end in `_squared` give squares. The other distances are in the unit of their kernel or, for Wasserstein's and
the energy distance, as scipy gives them. Nothing is left out silently: a set that holds NaN has the distance NaN.

Everything runs under `jax.jit` and `jax.vmap`, and is one compiled program per shape. Matrices of pairs are made by
blocks, so memory is O(block · n), but for `wasserstein` in more than one dimension.
"""

from flowrl.diagnostics._kernels import (
    energy_distance as energy_distance,
    mmd as mmd,
    mmd_squared as mmd_squared,
)
from flowrl.diagnostics._moments import (
    effective_sample_size as effective_sample_size,
    variance_ratio as variance_ratio,
)
from flowrl.diagnostics._stein import (
    KSDTest as KSDTest,
    ksd as ksd,
    ksd_squared as ksd_squared,
    ksd_test as ksd_test,
    scores as scores,
)
from flowrl.diagnostics._thinning import stein_thinning as stein_thinning
from flowrl.diagnostics._wasserstein import (
    sinkhorn_divergence as sinkhorn_divergence,
    sliced_wasserstein as sliced_wasserstein,
    wasserstein as wasserstein,
)
