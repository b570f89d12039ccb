"""Where particles of texts live."""

from flowrl.rlhf._space._base import AbstractReferenceSpace as AbstractReferenceSpace, AbstractSpace as AbstractSpace
from flowrl.rlhf._space._latent import LatentSpace as LatentSpace
from flowrl.rlhf._space._logit import LogitSpace as LogitSpace
from flowrl.rlhf._space._reference import ReferenceSpace as ReferenceSpace
from flowrl.rlhf._space._token import TokenSpace as TokenSpace
