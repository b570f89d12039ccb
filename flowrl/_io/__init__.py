"""Files that are whole or absent, locks, checkpoints, signals, optional packages: what long runs stand on."""

from flowrl._io._checkpoint import (
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
    write_text as write_text,
)
from flowrl._io._files import (
    DamagedError as DamagedError,
    atomic_write as atomic_write,
    fsync_dir as fsync_dir,
    only_one as only_one,
    remove_halves as remove_halves,
    resolve_dir as resolve_dir,
)
from flowrl._io._memory import check_memory as check_memory
from flowrl._io._optional import require as require
from flowrl._io._signals import stops_wait as stops_wait
from flowrl._io._software import software as software
