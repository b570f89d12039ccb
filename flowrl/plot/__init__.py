"""Plots of a transport: particles and their paths over a target, value against budget, animations.

Each function draws on a matplotlib `Axes`, its argument `ax`, and returns it, so that plots can be combined and changed
afterwards; with `ax=None` it makes a figure of its own, `returned.figure`. Nothing is shown, and the state of pyplot is
left alone: `ax.figure.savefig("picture.png")` writes a file, also where there is no display.

Particles may be any PyTree. Their coordinates are those of `jax.flatten_util.ravel_pytree`, and have names made of the
path and the index: `x[0]`, `x[1]` for an array, `mu`, `theta[0]`, `theta[1]` for `{"mu": (n,), "theta": (n, 2)}`.

Matplotlib is imported when a function is called (`pip install -e ".[plot]"` in a checkout); without it an ImportError
says how to install it.
"""

from flowrl.plot._animate import animate as animate
from flowrl.plot._density import density as density
from flowrl.plot._particles import particles as particles
from flowrl.plot._plane import Coordinates as Coordinates, Limits as Limits
from flowrl.plot._value import value as value
