"""Counts of skipped records, and the limit above which a run stops."""

from __future__ import annotations

import pytest

from jaxclip.data.skips import SkipLog
from jaxclip.errors import UserError


def looked_at(skips: SkipLog, good: int, bad: int) -> None:
    for number in range(bad):
        skips.add("not an image", f"a.tar:{number}")
    skips.check_rate(good + bad, bad)


def test_a_share_up_to_the_limit_goes_on_for_ever():
    skips = SkipLog(0.1)
    for _ in range(300):
        looked_at(skips, 90, 10)
    assert skips.total == 3000


def test_a_larger_share_stops_and_says_why():
    skips = SkipLog(0.1)
    with pytest.raises(
        UserError, match=r"120 of the last 1,000 records cannot be used, more than .*0\.1 allows.*a\.tar:0"
    ):
        for _ in range(10):
            looked_at(skips, 88, 12)


def test_what_was_good_long_ago_does_not_excuse_what_is_bad_now():
    skips = SkipLog(0.1)
    for _ in range(100):
        looked_at(skips, 100, 0)
    with pytest.raises(UserError, match="of the last"):
        for _ in range(10):
            looked_at(skips, 50, 50)


def test_few_records_are_not_judged():
    looked_at(SkipLog(0.0), 0, 999)
    with pytest.raises(UserError):
        looked_at(SkipLog(0.0), 999, 1)


def test_keys_in_messages_cannot_affect_a_terminal():
    skips = SkipLog()
    skips.add("missing file", "t.csv:\x1b[31m\x07\ud800.png")
    assert str(skips) == "1 x missing file (such as t.csv:\ufffd[31m\ufffd\ufffd.png)"


def test_larger_blocks_tolerate_a_bad_run():
    skips = SkipLog(0.1, block=10_000)
    for bad in (0, 900, 0):
        for _ in range(5):
            looked_at(skips, 1000 - bad // 5, bad // 5)
