"""The keys that may change when a run goes on, and where its data then goes on."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from configs import quickstart
from jaxclip.config import Config, DataConfig
from jaxclip.errors import UserError
from jaxclip.parsing import parse, to_dict
from jaxclip.resume import changes, first_batch, resized

WORKDIR = pathlib.Path("runs/x")


@pytest.fixture
def run() -> tuple[Config, dict]:
    """A config, and what a checkpoint of a run of it holds of it."""
    config = parse(Config, quickstart.get_config())
    return config, json.loads(json.dumps(to_dict(config)))


def changed(config: Config, **data) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def test_a_run_goes_on_with_its_own_config_and_with_other_data(run):
    config, saved = run
    assert changes(config, saved, WORKDIR) == []
    assert changes(dataclasses.replace(config, steps=7, log_every=3), saved, WORKDIR) == []
    assert changes(changed(config, train="other.tar", max_skip_rate=0.9), saved, WORKDIR) == []


@pytest.mark.parametrize(("key", "value"), [("flip", True), ("shuffle_window", 7), ("captions", "first")])
def test_a_key_that_changes_the_batches_may_not_change_unless_it_is_allowed(run, key, value):
    config, saved = run
    other = changed(config, **{key: value})
    with pytest.raises(UserError, match=f"config.data.{key} is .*; keep it, allow it by --allow_change=data.{key}, or"):
        changes(other, saved, WORKDIR)
    before = getattr(config.data, key)
    expected = [{"key": f"data.{key}", "before": before, "after": value}]
    assert changes(other, saved, WORKDIR, [f"data.{key}"]) == expected
    assert changes(other, saved, WORKDIR, ["data"]) == expected
    assert changes(other, None, WORKDIR) == []


def test_keys_that_a_run_did_not_know_have_their_defaults(run):
    config, saved = run
    del saved["method"]["pixels"], saved["method"]["image"]["pool"], saved["init_only"]
    for key in ("captions", "augment", "shuffle_window"):
        assert saved["data"][key] == json.loads(json.dumps(to_dict(DataConfig(train="x", train_vocabulary=600))))[key]
        del saved["data"][key]
    assert changes(config, saved, WORKDIR) == []
    with pytest.raises(UserError, match="config.data.captions is 'first' and the run in .* has 'random'"):
        changes(changed(config, captions="first"), saved, WORKDIR)


def test_a_key_of_the_method_may_never_change_even_one_that_the_run_did_not_know(run):
    config, saved = run
    del saved["method"]["image"]["activation"]
    assert changes(config, saved, WORKDIR) == []
    other = parse(Config, quickstart.get_config())
    other.method["image"]["activation"] = "gelu"
    with pytest.raises(UserError, match="image.activation is 'gelu' and the run in .* 'quick_gelu'; keep it, or give"):
        changes(other, saved, WORKDIR)
    with pytest.raises(UserError, match="--allow_change=method.image: a run cannot change it"):
        changes(other, saved, WORKDIR, ["method.image"])


def test_a_key_that_is_none_cannot_be_allowed_to_change(run):
    config, saved = run
    with pytest.raises(UserError, match="--allow_change=learning_rate: the config has no such key"):
        changes(config, saved, WORKDIR, ["learning_rate"])


def test_the_batches_follow_the_steps_unless_some_were_passed_over():
    assert first_batch([], 7) == 7
    rewind = {"event": "rewind", "step": 9, "to": 5, "batches": 4}
    assert first_batch([rewind], 5) == 9 and first_batch([rewind, {"event": "change"}], 6) == 10


@pytest.mark.parametrize(("before", "after", "expected"), [(8, 16, 5), (16, 8, 20), (8, 12, 7), (8, 8, 10)])
def test_other_batch_sizes_go_on_with_the_records_that_were_not_seen(before, after, expected):
    events = [{"event": "change", "batches": resized([], 10, before, after)}]
    assert first_batch(events, 10) == expected
    assert expected * after >= 10 * before > (expected - 1) * after
