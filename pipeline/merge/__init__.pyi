from .record import MergeReport as MergeReport
from .run import merge_scenes as merge_scenes
from .spec import MergeSpec as MergeSpec
