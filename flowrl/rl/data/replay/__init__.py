"""Rows as training reads them: on the device, in a ring, in host memory."""

from flowrl.rl.data.replay._buffer import AbstractBuffer as AbstractBuffer, Buffer as Buffer
from flowrl.rl.data.replay._host_buffer import HostBuffer as HostBuffer
from flowrl.rl.data.replay._replay import (
    AbstractBatchSource as AbstractBatchSource,
    Batches as Batches,
    Replay as Replay,
    make_replay as make_replay,
)
from flowrl.rl.data.replay._standardizer import Standardizer as Standardizer
from flowrl.rl.data.replay._windows import Rows as Rows, Windows as Windows, check_rows_agree as check_rows_agree
