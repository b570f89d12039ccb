"""A run directory: what a run was, how far it got, and what it measured.

`config.json` says what the run is; `checkpoint.npz` holds the state and every row of metrics up to it, so that
`metrics.csv` can be rewritten from it: a killed run that goes on writes the very file the uninterrupted one would have.
The checkpoint before it is `checkpoint.1.npz`, from which a run goes on if the last one cannot be read.
`timing.csv` holds what depends on the machine and is not part of that promise.
"""

import contextlib
import csv
import errno
import io
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flowrl._io import (
    DamagedError,
    fsync_dir,
    load_checkpoint,
    only_one,
    read_json_object,
    read_table,
    remove_halves,
    save_checkpoint,
    software,
    write_text,
)

T = TypeVar("T")


class RunDirectory:
    """The files of one run. A context manager: it holds a lock, so that two processes cannot share a run.

    Attributes:
        path: the directory.
        rows: metrics so far, one dictionary per evaluation or interval.
        arrays: what the checkpoint that was loaded holds beside the state, by name; its reader may drop them.
        grown: what has grown since the run was last opened, by key of the configuration: the number before.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: dict[str, Any],
        *,
        resume: bool = False,
        free: Sequence[str] = (),
        grows: Sequence[str] = (),
        ends: Sequence[str] = (),
        keep: int = 2,
    ):
        """Open a directory and hold its lock.

        Args:
            path: the directory; made if missing.
            config: JSON values that determine the run.
            resume: go on with the run that is there.
            free: keys of `config` that may differ when a run goes on.
            grows: keys of `config` that may be larger when a run goes on, such as its length: a finished run is
                extended so.
            ends: files of a finished run, which are removed when it is extended, since they would be of a shorter one.
            keep: checkpoints that are kept, >= 1; the older ones are there for the case that the last is damaged.

        Raises:
            FileExistsError: there is a run already and `resume` is false.
            FileNotFoundError: `resume` is true and there is no run.
            OSError: the directory cannot be written to, or another process has it.
            ValueError: the run there has another configuration (the message names what differs), or `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}.")
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self._config = json.loads(json.dumps(config, allow_nan=False))
        self._free, self._grows = frozenset(free), frozenset(grows)
        self.grown: dict[str, Any] = {}
        self._written: set[str] = set()
        self._checkpoints = [self.checkpoint, *(self.path / f"checkpoint.{i}.npz" for i in range(1, keep))]
        config_path = self.path / "config.json"
        if resume and not config_path.exists():
            raise FileNotFoundError(f"nothing to resume in {self.path}: it holds no config.json. Leave --resume out.")
        with contextlib.ExitStack() as stack:
            # The lock comes first: what is looked at afterwards, nobody else changes.
            with self._writing():
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_one(self.path / ".lock"))
            # A run that ended before its first checkpoint has nothing to lose.
            if not resume and config_path.exists() and any(path.exists() for path in self._checkpoints):
                raise FileExistsError(
                    f"{self.path} holds a run already. Go on with it by --resume, or choose another directory by --out."
                )
            if resume:
                self._compare(config_path)
            remove_halves(self.path)
            with self._writing():
                # First: where they are, the run of this configuration is finished.
                for name in ends if self.grown else ():
                    (self.path / name).unlink(missing_ok=True)
                fsync_dir(self.path)
                self._write_config()
            self._stack = stack.pop_all()

    def __enter__(self) -> "RunDirectory":
        """Use as a context manager."""
        return self

    def __exit__(self, *details: object) -> None:
        """Release the lock.

        Raises:
            FileNotFoundError: the block ended without an error, but files that it wrote are gone.
        """
        self._stack.close()
        gone = sorted(name for name in self._written if not (self.path / name).exists())
        if gone and details[0] is None:
            raise FileNotFoundError(
                errno.ENOENT,
                f"files of the run were removed from {self.path} while it ran: {', '.join(gone)}. What is there is not "
                "the whole run; bring them back, or run again with another --out.",
            )

    @property
    def checkpoint(self) -> Path:
        """Return the path of the last checkpoint."""
        return self.path / "checkpoint.npz"

    def save(self, state: Any, arrays: dict[str, np.ndarray] | None = None) -> None:
        """Write the state with all metrics so far, then `metrics.csv`.

        Args:
            state: PyTree of arrays.
            arrays: what else is to be kept, by name, of any shapes.

        Raises:
            OSError: the disk is full or read-only; the checkpoints that are there stay as they are.
        """
        if not (self.path / "config.json").exists():
            self._write_config()  # without it nothing could go on from the checkpoint
        config = {k: v for k, v in self._config.items() if k not in self._free}
        new = self.path / ".checkpoint.new.npz"
        save_checkpoint(new, state, {**(arrays or {}), "config": config, "rows": self.rows})
        # Only now that the new one is on the disk do the others move; there is a last checkpoint at every moment.
        for newer, older in reversed(list(itertools.pairwise(self._checkpoints))):
            if newer.exists():
                older.unlink(missing_ok=True)
                _link(newer, older)
        os.replace(new, self.checkpoint)
        fsync_dir(self.path)
        self._written.add(self.checkpoint.name)
        self._write_metrics()

    def load(self, template: T) -> T | None:
        """Read the state and the metrics of the last checkpoint, and set `metrics.csv` back to it.

        If the last checkpoint is damaged or foreign, it is put aside as `checkpoint.npz.damaged`, a warning says so,
        and the one before takes its place: the run goes on from there, and ends as it would have.

        Args:
            template: a state of the same structure.

        Returns:
            The state, or None if the run was killed before its first checkpoint.

        Raises:
            DamagedError: (a ValueError) no checkpoint can be read.
            ValueError: the checkpoint is of another configuration.
        """
        there = [path for path in self._checkpoints if path.exists()]
        if not there:
            return None
        reasons: list[str] = []
        for path in there:
            try:
                state, meta = load_checkpoint(path, template)
                if not isinstance(meta.get("rows"), list) or not isinstance(meta.get("config"), dict):
                    raise DamagedError(f"{path}: not the checkpoint of a run; it holds no rows or no configuration.")
            except DamagedError as error:
                reasons.append(str(error))
                continue
            break
        else:
            raise DamagedError("no checkpoint of the run can be read: " + " ".join(reasons))
        self._same(meta["config"], path)
        if reasons:
            for damaged in there[: len(reasons)]:
                os.replace(damaged, damaged.with_name(f"{damaged.name}.damaged"))
            os.replace(path, self.checkpoint)
            warnings.warn(f"{' '.join(reasons)} Going on from the checkpoint before it.", stacklevel=2)
        self._written.add(self.checkpoint.name)
        self.rows = meta["rows"]
        self.arrays = {name: value for name, value in meta.items() if isinstance(value, np.ndarray)}
        self._write_metrics()
        return state

    def write(self, name: str, text: str) -> None:
        """Write another file of the run, whole or not at all.

        Args:
            name: file name.
            text: its content.
        """
        write_text(self.path / name, text)
        self._written.add(name)

    def write_software(self, **more: str) -> None:
        """Write `software.json`: versions, a digest of flowrl's code, device, and precision of matrix products.

        A run that goes on with other software may not end with the same bits. It goes on all the same, a warning says
        what differs, and the entries that do become lists, of the first value to the last.

        Args:
            more: further entries, such as the protocol of an evaluation.
        """
        path, here = self.path / "software.json", {**more, **software()}
        entries: dict[str, str | list[str]] = dict(here)
        if path.exists() and any(checkpoint.exists() for checkpoint in self._checkpoints):
            there = read_json_object(path)
            past = {k: v if isinstance(v, list) else [v] for k, v in there.items()}
            past = {k: past.get(k, ["unknown"]) for k in here}
            changed = [k for k, values in past.items() if values[-1] != here[k]]
            entries = {k: [*v, here[k]] if k in changed else v if len(v) > 1 else v[0] for k, v in past.items()}
            if changed:
                differs = "; ".join(f"{k}: {past[k][-1]} there, {here[k]} here" for k in changed)
                warnings.warn(
                    f"{self.path} goes on with other software, so its bits may differ: {differs}.", stacklevel=2
                )
        self.write(path.name, json.dumps(entries, indent=2) + "\n")

    def append_timing(self, **row: Any) -> None:
        """Add a row to `timing.csv`; a configuration with a seed has it in every row.

        Args:
            row: columns; one that earlier rows do not have is empty there.

        Raises:
            DamagedError: (a ValueError) the file is damaged.
        """
        path = self.path / "timing.csv"
        before = read_table(path) if path.exists() else []
        seed = {"seed": self._config["seed"]} if "seed" in self._config else {}
        # Written again rather than appended to: a disk that becomes full must leave no half line.
        self.write(path.name, to_csv([*before, {**seed, **row}]))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Name the directory and the option in the error of a directory that cannot be written to."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write to {self.path} ({error.strerror}); choose another --out."
            ) from error

    def _write_metrics(self) -> None:
        self.write("metrics.csv", to_csv(self.rows))

    def _write_config(self) -> None:
        self.write("config.json", json.dumps(self._config, indent=2, sort_keys=True) + "\n")

    def _compare(self, config_path: Path) -> None:
        there = read_json_object(config_path)
        self._same(there, config_path)
        self.grown = {name: there[name] for name in self._grows if there.get(name) != self._config.get(name)}

    def _same(self, there: dict[str, Any], source: Path) -> None:
        """Raise a ValueError if the configuration is another one; `free` keys may differ, others only grow."""
        keys = sorted((set(there) | set(self._config)) - self._free)
        changed = [k for k in keys if there.get(k, "(missing)") != self._config.get(k, "(missing)")]
        changed = [k for k in changed if k not in self._grows or not _less(there.get(k), self._config.get(k))]
        if changed:
            lines = [
                f"{k}: {there.get(k, '(missing)')} there, {self._config.get(k, '(missing)')} here" for k in changed
            ]
            only = "".join(f" {k} can only grow." for k in changed if k in self._grows)
            raise ValueError(f"cannot resume {source} with another configuration; {'; '.join(lines)}.{only}")


def _less(before: Any, now: Any) -> bool:
    numbers = (int, float)
    return isinstance(before, numbers) and isinstance(now, numbers) and before < now


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV text; the columns are all keys in order of appearance, missing entries are empty.

    Args:
        rows: dictionaries of numbers and strings. Floats are written so that they read back exactly.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _link(source: Path, name: Path) -> None:
    """Link a file under a second name, or copy it where the file system has no links."""
    try:
        os.link(source, name)
    except OSError:
        shutil.copyfile(source, name)
