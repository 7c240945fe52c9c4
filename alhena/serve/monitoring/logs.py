"""Logs of a server: lines of text, or JSON objects that log collectors read; nothing of what users write unless it is asked for."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
# One line for each request.
access = logging.getLogger("alhena.access")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's ``fields``, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        out = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        out |= getattr(record, "fields", {})
        if record.exc_info:
            out["exception"] = self.formatException(record.exc_info)
        return json.dumps(out, ensure_ascii=False)


def configure(format: LogFormat) -> None:
    """Sends all logs to standard error: as text, warnings and errors; as JSON, a line for each request too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    access.setLevel(logging.INFO if format == "json" else logging.WARNING)
