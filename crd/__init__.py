"""Losses that remember samples between batches. Importing this package registers them, one line each."""

from .crd import CRD as CRD
from .pskd import PSKD as PSKD
from .rrd import RRD as RRD
