from .regions import plan_parts as plan_parts
from .regions import stacks as stacks
from .strips import MOST_READERS as MOST_READERS
from .tiles import Tiling as Tiling
from .tiles import resolve_tiling as resolve_tiling
