"""Prefect flows: thin; what they do is in `pipeline`, how it is run and retried is here.

Prefect's usage telemetry is off unless the operator turns it on: batch machines are often cut off from
the internet, and nothing here phones home unasked.
"""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
