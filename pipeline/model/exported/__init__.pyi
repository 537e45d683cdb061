from .conformance import trial_tiles as trial_tiles
from .load import SUFFIX as SUFFIX
from .load import ExportedFacts as ExportedFacts
from .load import describe_exported as describe_exported
