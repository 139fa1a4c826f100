"""The workdir of a run with everything in it."""

from __future__ import annotations

import json
import pathlib

import pytest
from report_workdir import CLASSES, CONFIG, UNSEEN, metric_rows, write_classification, write_metrics, write_retrieval


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run with everything in it: metrics, three evaluations of seen and unseen shapes, and retrieval."""
    workdir = tmp_path / "quickstart"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    write_metrics(workdir, metric_rows())
    for step in (200, 400, 600):
        known = {name: step / 620 for name in CLASSES if name not in UNSEEN}
        write_classification(workdir, step, "shapes_seen", known, classnames=CLASSES)
        write_classification(workdir, step, "shapes_unseen", {name: step / 900 for name in UNSEEN}, classnames=CLASSES)
        write_retrieval(workdir, step, "emoji", step / 2000)
    return workdir
