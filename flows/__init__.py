"""Prefect flows: the work is in `pipeline`; retries, concurrency limits and artifacts are here.

Prefect's usage telemetry is off unless the operator turns it on: batch machines are often cut off from
the internet, and send no data by default.
"""

import os

from pipeline.text import escape_messages

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

escape_messages()
