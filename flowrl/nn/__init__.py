"""Networks that reinforcement learning and language alignment share."""

from flowrl.nn._mlp import MLP as MLP, Linear as Linear, stack as stack
