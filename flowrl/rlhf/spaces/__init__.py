"""Spaces in which particles of texts live."""

from flowrl.rlhf.spaces._base import AbstractReferenceSpace as AbstractReferenceSpace, AbstractSpace as AbstractSpace
from flowrl.rlhf.spaces._latent import LatentSpace as LatentSpace
from flowrl.rlhf.spaces._logit import LogitSpace as LogitSpace
from flowrl.rlhf.spaces._reference import ReferenceSpace as ReferenceSpace, straight_through as straight_through
from flowrl.rlhf.spaces._token import TokenSpace as TokenSpace
