from .entry import CatalogEntry as CatalogEntry
from .entry import describe_entry as describe_entry
from .read import SUFFIXES as SUFFIXES
from .read import list_scenes as list_scenes
from .read import read_catalog as read_catalog
from .spec import CatalogSpec as CatalogSpec
