"""The evaluation that CONTRIBUTING.md shows, run."""

from __future__ import annotations

import re
import sys
import types

import numpy as np
import pytest
from look_up import LookUp, NoRecords, embedded_set
from paths import ROOT

from jaxclip.data.skips import SkipLog


def test_the_example_of_an_evaluation_is_one(monkeypatch):
    """By hand: the captions of three images on three axes find theirs first, third and first."""
    (source,) = re.findall(r"```python\n(.*?Evaluator.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    module = types.ModuleType("median_rank")
    monkeypatch.setitem(sys.modules, "median_rank", module)
    exec(source, module.__dict__)
    table = {"a": [1.0, 0.1, 0.0], "b": [0.5, 0.1, 0.2], "c": [0.0, 0.2, 0.9]}
    encoder = LookUp(table, embedded_set(np.eye(3), captions=[["a"], ["b"], ["c"]]))
    found = module.Evaluator("data").run(encoder, None, NoRecords(), SkipLog(), None)
    assert found.metrics == {"median_rank": pytest.approx(1.0)}
    assert found.summary == "median rank 1.0 of 3" and found.tables[0].rows == {"": (1.0, 3)}
