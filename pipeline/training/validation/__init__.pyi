from .calibration import BINS as BINS
from .calibration import Reliability as Reliability
from .calibration import bin_of as bin_of
