"""What a store answers, whatever words it uses, is one of four errors."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from pipeline.errors import AccessError, ConflictError, MissingError, TransientError
from pipeline.storage.s3 import translate_store_errors


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", MissingError),
        (404, "OwnWordForAbsent", MissingError),
        (200, "NoSuchUpload", MissingError),
        (401, "OwnWordForWho", AccessError),
        (403, "AccessDenied", AccessError),
        (409, "OwnWordForBusy", ConflictError),
        (412, "OwnWordForChanged", ConflictError),
        (200, "PreconditionFailed", ConflictError),
        (500, "InternalError", TransientError),
        (503, "SlowDown", TransientError),
        (400, "InvalidRange", TransientError),
    ],
)
def test_an_answer_is_translated_by_its_status_and_its_code(status: int, code: str, kind: type[Exception]) -> None:
    answer = {"Error": {"Code": code, "Message": "m."}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(TransientError, match=r"^s3://b/k: ") as caught, translate_store_errors("s3://b/k"):
        raise ClientError(answer, "PutObject")  # type: ignore[arg-type]
    assert type(caught.value) is kind
