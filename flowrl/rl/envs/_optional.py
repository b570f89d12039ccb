"""The optional packages of this room, and what to say when they are missing."""

import contextlib
import functools
import importlib
import io
from typing import Any

from flowrl._io import _optional as _extras

#: Makes sure that modules of the extra "rl" can be imported.
require = functools.partial(_extras.require, room="flowrl.rl.data", extra="rl")


def robotics() -> Any:
    """Imports gymnasium-robotics, without the notice that it prints about environments which are not used here."""
    with contextlib.redirect_stderr(io.StringIO()):
        require("gymnasium_robotics")
    return importlib.import_module("gymnasium_robotics")
