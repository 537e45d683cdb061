from .images import list_images as list_images
from .loop import train as train
from .records import EpochRecord as EpochRecord
from .records import TrainProgress as TrainProgress
from .records import TrainReport as TrainReport
from .settings.spec import TrainSpec as TrainSpec
