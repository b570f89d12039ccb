"""A posterior without tuning: `sample`, what it returns, and its verdict."""

from flowrl._sample._sample import sample as sample
from flowrl._sample._samples import Samples as Samples
from flowrl._sample._verdict import Verdict as Verdict
