"""Losses that remember samples between batches. Each import line registers a method."""

from .crd import CRD as CRD
from .pskd import PSKD as PSKD
from .rrd import RRD as RRD
