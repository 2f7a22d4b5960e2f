"""One method per file: losses that see one batch. Importing this package registers them, one line each."""

from .ab import AB as AB
from .at import AT as AT
from .base import Batch as Batch
from .base import Distiller as Distiller
from .base import Output as Output
from .base import Pair as Pair
from .base import find_method as find_method
from .base import method_names as method_names
from .base import method_options as method_options
from .cc import CC as CC
from .fitnet import FitNet as FitNet
from .fsp import FSP as FSP
from .ft import FT as FT
from .icd import ICD as ICD
from .kd import KD as KD
from .kd import kd_loss as kd_loss
from .kdsvd import KDSVD as KDSVD
from .none import NoKD as NoKD
from .nst import NST as NST
from .pkt import PKT as PKT
from .rkd import RKD as RKD
from .sp import SP as SP
from .vid import VID as VID
