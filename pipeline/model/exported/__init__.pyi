from .conformance import trial_tiles as trial_tiles
from .load import SUFFIX as SUFFIX
from .load import ExternalFacts as ExternalFacts
from .load import describe_external as describe_external
