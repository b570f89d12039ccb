"""What long runs need, whatever they learn: run directories, checkpoints, statistics, optional packages."""

from flowrl._distribution import require as require
from flowrl._io import (
    DamagedError as DamagedError,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from flowrl.runs import statistics as statistics
from flowrl.runs._progress import progress_line as progress_line
from flowrl.runs._run import RunDirectory as RunDirectory, to_csv as to_csv
from flowrl.runs._trackers import Tracker as Tracker
