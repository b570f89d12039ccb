"""Metrics in a dashboard as well: TensorBoard, Weights & Biases, trackio. The CSV of a run does not depend on them."""

import importlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from flowrl._distribution import require


class Tracker:
    """One tracker of a run, to which rows of metrics are sent. A context manager.

    Attributes:
        kind: which.
    """

    def __init__(self, kind: str, path: str | os.PathLike[str], config: dict[str, Any], *, name: str | None = None):
        """Open a tracker's run.

        Args:
            kind: "tensorboard" writes event files into `path`; "wandb" and "trackio" start a run of the project
                "flowrl", by their own settings (WANDB_MODE=offline and the like).
            path: the run directory.
            config: what the run is.
            name: of the run in wandb and trackio; None takes the last part of `path`.

        Raises:
            ImportError: the package is missing; the message names the extra.
            ValueError: another kind.
        """
        if kind not in ("tensorboard", "wandb", "trackio"):
            raise ValueError(f"tracker must be 'tensorboard', 'wandb' or 'trackio', got {kind!r}.")
        self.kind = kind
        path = Path(path)
        module = "tensorboard.summary" if kind == "tensorboard" else kind
        require(module, extra="tracking")
        package: Any = importlib.import_module(module)
        if kind == "tensorboard":
            self._writer = package.Writer(str(path))
        else:
            # wandb writes into `dir`; trackio keeps its runs in a place of its own.
            place = {"dir": str(path)} if kind == "wandb" else {}
            self._writer = package.init(project="flowrl", name=name or path.name, config=config, **place)

    def __enter__(self) -> "Tracker":
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the tracker's run."""
        if self.kind == "tensorboard":
            self._writer.close()
        else:
            self._writer.finish()

    def log(self, row: dict[str, Any], step: int) -> None:
        """Send the numbers of a row, apart from its step within the phase; other entries are left out.

        Args:
            row: metrics by name.
            step: updates so far, over all phases.
        """
        # trackio keeps the name "step" for itself, and warns whenever a metric has it.
        numbers = {name: float(x) for name, x in row.items() if isinstance(x, int | float) and name != "step"}
        if self.kind == "tensorboard":
            for name, x in numbers.items():
                self._writer.add_scalar(name, x, step)
        else:
            self._writer.log(numbers, step=step)
