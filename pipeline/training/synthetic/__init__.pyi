from .paint import COVERS as COVERS
from .town import BANDS as BANDS
from .town import Town as Town
from .town import build_town as build_town
from .town import write_town as write_town
