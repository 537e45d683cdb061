from .registry import Shape as Shape
