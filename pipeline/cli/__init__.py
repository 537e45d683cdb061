"""The command line: one module for each group of commands. Start reading at `pipeline.cli.app`."""

from pipeline.cli.app import main

__all__ = ["main"]
