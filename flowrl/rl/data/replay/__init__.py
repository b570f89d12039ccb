"""Rows as training reads them: on the device, in a ring, in host memory."""

from flowrl.rl.data.replay._buffer import Buffer as Buffer
from flowrl.rl.data.replay._host_buffer import Batches as Batches, HostBuffer as HostBuffer
from flowrl.rl.data.replay._replay import Replay as Replay, Standardizer as Standardizer, make_replay as make_replay
from flowrl.rl.data.replay._windows import Rows as Rows, Windows as Windows, check_rows_agree as check_rows_agree
