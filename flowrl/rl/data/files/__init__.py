"""Files of data: written whole, downloaded, checked."""

from flowrl.rl.data.files._hdf5 import read_hdf5 as read_hdf5
from flowrl.rl.data.files._published import Published as Published, is_published as is_published, obtain as obtain
from flowrl.rl.data.files._store import (
    Manifest as Manifest,
    is_complete as is_complete,
    read_manifest as read_manifest,
    validation_path as validation_path,
    versions as versions,
    write_manifest as write_manifest,
)
