"""Files that are whole or absent, locks, checkpoints, signals: what long runs stand on."""

from flowrl._io._checkpoint import (
    load_checkpoint as load_checkpoint,
    load_meta as load_meta,
    save_checkpoint as save_checkpoint,
    write_text as write_text,
)
from flowrl._io._files import (
    DamagedError as DamagedError,
    atomic_write as atomic_write,
    check_space as check_space,
    fsync_dir as fsync_dir,
    lock as lock,
    make_dir as make_dir,
    only_one as only_one,
    parse_json as parse_json,
    read_json_object as read_json_object,
    read_npz as read_npz,
    read_table as read_table,
    remove_halves as remove_halves,
    resolve_dir as resolve_dir,
    sha256_file as sha256_file,
    write_npz as write_npz,
)
from flowrl._io._memory import available_memory as available_memory, check_memory as check_memory
from flowrl._io._signals import stops_wait as stops_wait
from flowrl._io._software import code_digest as code_digest, software as software
