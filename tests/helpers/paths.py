"""Paths of folders with test data."""

from __future__ import annotations

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"
MODELS = TESTS / "models"  # small SentencePiece models
