from .regions import group_adjacent as group_adjacent
from .regions import plan_parts as plan_parts
from .strips import MAX_READERS as MAX_READERS
from .tiles import Tiling as Tiling
from .tiles import resolve_tiling as resolve_tiling
