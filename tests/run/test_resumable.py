"""The keys that may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from configs import quickstart
from jaxclip.config import Config, DataConfig
from jaxclip.errors import UserError
from jaxclip.parsing import parse, to_dict
from jaxclip.resume import check_resumable


@pytest.fixture
def run(tmp_path: pathlib.Path) -> tuple[Config, pathlib.Path]:
    """A config, and the folder of a run of it that has a checkpoint."""
    config = parse(Config, quickstart.get_config())
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    return config, tmp_path


def changed(config: Config, **data) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def test_a_run_goes_on_with_its_own_config_and_with_other_data(run):
    config, workdir = run
    check_resumable(config, workdir)
    check_resumable(dataclasses.replace(config, steps=7, log_every=3), workdir)
    check_resumable(changed(config, train="other.tar", max_skip_rate=0.9), workdir)


@pytest.mark.parametrize(("key", "value"), [("flip", True), ("shuffle_window", 7), ("captions", "first")])
def test_a_key_that_changes_the_batches_may_not_change(run, key, value):
    config, workdir = run
    with pytest.raises(UserError, match=f"config.data.{key} is "):
        check_resumable(changed(config, **{key: value}), workdir)


def test_keys_that_a_run_did_not_know_have_their_defaults(run):
    config, workdir = run
    written = to_dict(config)
    del written["method"]["pixels"], written["method"]["image"]["pool"], written["init_only"]
    for key in ("captions", "augment", "shuffle_window"):
        assert written["data"][key] == to_dict(DataConfig(train="x", train_vocabulary=600))[key]
        del written["data"][key]
    (workdir / "config.json").write_text(json.dumps(written))
    check_resumable(config, workdir)
    with pytest.raises(UserError, match="config.data.captions is 'first' and the run in .* has 'random'"):
        check_resumable(changed(config, captions="first"), workdir)


def test_a_key_of_the_method_may_not_change_even_one_that_the_run_did_not_know(run):
    config, workdir = run
    written = to_dict(config)
    del written["method"]["image"]["activation"]
    (workdir / "config.json").write_text(json.dumps(written))
    check_resumable(config, workdir)
    other = parse(Config, quickstart.get_config())
    other.method["image"]["activation"] = "gelu"
    with pytest.raises(UserError, match="config.method.image.activation is 'gelu' and the run in .* has 'quick_gelu'"):
        check_resumable(other, workdir)
