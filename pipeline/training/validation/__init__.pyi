from .calibration import BINS as BINS
from .calibration import Reliability as Reliability
from .calibration import bin_of as bin_of
from .ratios import FORMULAS as FORMULAS
from .ratios import confusion_ratio as confusion_ratio
from .ratios import divide_or_nan as divide_or_nan
