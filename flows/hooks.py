"""Log line and optional webhook when a flow run ends.

Prefect calls a hook with the keyword arguments `flow`, `flow_run` and `state`. Hooks of runs that fail or complete run
in the flow's process, those of cancelled and crashed runs in the worker's, which has the environment of both.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.utilities.urls import url_for

WEBHOOK = "SCENEMILL_WEBHOOK_URL"
"""Environment variable with the URL; it often holds a secret, so it is never logged."""
TIMEOUT_S = 10.0
MAX_MESSAGE_LENGTH = 2000
"""Characters of a run's message that are sent; the rest is cut off."""


def notify_end(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Log the end of a run and post it to the webhook; an error of the webhook is logged only."""
    log = flow_run_logger(flow_run, flow)
    log.log(logging.INFO if state.is_completed() else logging.ERROR, "run %s: %s", flow_run.name, state.name)
    address = os.environ.get(WEBHOOK, "").strip()
    if not address:
        return
    try:
        post(address, webhook_payload(flow, flow_run, state))
    except urllib.error.HTTPError as error:
        log.warning("the webhook of %s answered %d", WEBHOOK, error.code)
    except (OSError, ValueError, http.client.HTTPException) as error:
        log.warning("the webhook of %s could not be reached: %s", WEBHOOK, type(error).__name__)


ON_END: dict[str, Any] = {
    "on_completion": [notify_end],
    "on_failure": [notify_end],
    "on_cancellation": [notify_end],
    "on_crashed": [notify_end],
}
"""Options of every flow."""


def webhook_payload(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> dict[str, object]:
    """The JSON body for the webhook; chat services show `text`."""
    message = (state.message or "")[:MAX_MESSAGE_LENGTH]
    return {
        "text": f"{flow.name}, {flow_run.name}: {state.name}. {message}".strip(),
        "flow": flow.name,
        "run": flow_run.name,
        "run_id": str(flow_run.id),
        "deployment_id": str(flow_run.deployment_id) if flow_run.deployment_id else None,
        "tags": [*flow_run.tags],
        "state": state.name,
        "type": state.type.value,
        "message": message,
        "url": url_for(flow_run),
    }


def post(address: str, content: dict[str, object]) -> None:
    """POST JSON to an `http` or `https` URL (else ValueError); OSError without an answer of success.

    Redirects are not followed: they would turn the request into a GET, perhaps to another host.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError("a webhook must be an http or https URL")
    request = urllib.request.Request(
        address, data=json.dumps(content).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S) as answer:
        answer.read(1)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Raises HTTPError for a redirect."""

    def redirect_request(self, *_: object) -> None:
        """Refuse it."""
