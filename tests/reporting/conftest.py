from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sharing import Shared

from okdc.progress import Silent
from okdc.reporting import report
from okdc.reporting.run import Wanted


@pytest.fixture(scope="session")
def facts(shipped: Path, shared: Shared) -> dict[str, Any]:
    """All that a page says of a whole run, as `okdc report --json` prints it. Nobody changes it."""

    def make(path: Path) -> None:
        path.write_text(json.dumps(report.facts([shipped.parent], Wanted(), None, Silent())), encoding="utf-8")

    tables: dict[str, Any] = json.loads(shared.made("report.json", make).read_text(encoding="utf-8"))
    return tables
