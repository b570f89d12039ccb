"""Measures of a set of particles: against a density, against samples of a reference, and by itself.

| you have | use |
|---|---|
| the score ∇ log p of the target | `ksd`, `ksd_test`; `stein_thinning` to keep the best few |
| samples of the target | `wasserstein`, `sliced_wasserstein`, `sinkhorn_divergence`, `mmd`, `energy_distance` |
| the score, and a doubt whether the particles are wide enough | `equipartition`: 1 for draws, below it too narrow |
| the target's variance | `variance_ratio`: have the particles collapsed? |
| log weights | `effective_sample_size` |

A set is an array (n, d), or any PyTree that `transport` takes as particles; an array (n,) holds n numbers. The
particles may have `log_weights`, such as `Solution.log_weights`: then sums over them are weighted, and the empty slots
(−∞), frozen particles among them, are left out. All points of a reference weigh the same; `wasserstein` in more than
one dimension, `ksd_test` and `stein_thinning` take no weights.

Two sets, `x` and `y`, may differ in size, but must agree in dtype (else a TypeError) and in the shape of one particle
(else a ValueError); where a function is not symmetric, `y` is the reference. An argument that is not a set raises a
TypeError, an empty set a ValueError.

Names that end in `_squared` return squares. Results are scalars `()`; distances are in the unit of their kernel or, for
Wasserstein's and the energy distance, as in scipy. Nothing is left out silently: a set that holds NaN has the distance
NaN.

Everything runs under `jax.jit` and `jax.vmap`, and is one compiled program per shape. Matrices of pairs are made by
blocks, so memory is O(block · n), but for `wasserstein` in more than one dimension.
"""

from flowrl.diagnostics._equipartition import Equipartition as Equipartition, equipartition as equipartition
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
