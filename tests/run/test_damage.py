"""Damaged checkpoints: always noticed, passed over for an older one by a run, refused by `jaxclip.load`."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from test_checkpoint import MODEL, bits, filled, saved, step_on, three

import jaxclip
from jaxclip import checkpoint, methods, upgrade
from jaxclip.checkpoint import Checkpoints, Damaged, Restored, folder
from jaxclip.data import tokenizers
from jaxclip.errors import UserError

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run's folder with the checkpoints of steps 1, 2 and 3, each of other numbers."""
    return three(tmp_path_factory.mktemp("whole"), MODEL)


@pytest.fixture
def workdir(whole, tmp_path) -> pathlib.Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def restored(workdir: pathlib.Path) -> Restored | None:
    checkpoints = Checkpoints(workdir / "checkpoints", 3)
    found = checkpoints.restore(step_on(1).abstract_state)
    checkpoints.close()
    return found


def largest(path: pathlib.Path) -> pathlib.Path:
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip(file: pathlib.Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_an_undamaged_checkpoint_is_restored_with_its_values(workdir):
    found = restored(workdir)
    assert (found.step, found.values, found.damaged) == (3, MODEL | {"step": 3}, ())
    assert bits(found.state) == bits(filled(step_on(1), seed=3))


def test_a_flipped_bit_in_the_arrays_is_noticed_wherever_it_is(workdir):
    """Orbax itself restores most of them without a word: its chunks have no checksums."""
    file = largest(workdir / "checkpoints" / "3" / "state")
    content = file.read_bytes()
    whole = bits(filled(step_on(1), seed=3))
    noticed = 0
    for bit in np.random.default_rng(0).integers(0, 8 * len(content), 25).tolist():
        file.write_bytes(content)
        flip(file, bit)
        try:
            state = folder.load_state(workdir / "checkpoints" / "3", folder.pack(step_on(1).abstract_state))
        except Damaged:
            noticed += 1
        else:
            assert bits(folder.unpack(state, step_on(1).abstract_state)) == whole, bit
    assert noticed >= 20


DAMAGES = {
    "arrays cut": lambda path: largest(path / "state").write_bytes(largest(path / "state").read_bytes()[:1000]),
    "manifest emptied": lambda path: (path / "state" / "manifest.ocdbt").write_bytes(b""),
    "metadata renamed": lambda path: _replace(path / "state" / "_METADATA", "attention_out_bias", "attention_out_biat"),
    "no arrays": lambda path: shutil.rmtree(path / "state"),
    "no values": lambda path: shutil.rmtree(path / "model"),
    "nothing": lambda path: (shutil.rmtree(path), path.mkdir()),
    "other values": lambda path: _replace(path / "model" / "_strings.json", "ein B", "ein C"),
    "values cut": lambda path: largest(path / "model").write_text(largest(path / "model").read_text()[:50]),
}


def _replace(file: pathlib.Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(workdir, damage):
    DAMAGES[damage](workdir / "checkpoints" / "3")
    found = restored(workdir)
    assert found.step == 2 and found.values == MODEL | {"step": 2}
    assert bits(found.state) == bits(filled(step_on(1), seed=2))
    (line,) = found.damaged
    assert line.startswith("checkpoint 3 is damaged (") and line.endswith("); it is now 3.damaged")
    assert sorted(child.name for child in (workdir / "checkpoints").iterdir()) == ["1", "2", "3.damaged"]
    # Its place is free for the run's own save, and the one that was set aside is no checkpoint any more.
    saved(workdir, filled(step_on(1), seed=9), 3)
    assert restored(workdir).damaged == () and checkpoint.find(workdir).name == "3"


@pytest.mark.parametrize("damage", DAMAGES)
def test_load_refuses_a_damaged_checkpoint_and_names_another(workdir, damage):
    DAMAGES[damage](workdir / "checkpoints" / "3")
    with pytest.raises(UserError, match=r"^\S+/3 is damaged: .* take another one by step=2 \(--step=2\)$"):
        path = checkpoint.find(workdir)
        checkpoint.load_model(path)
        checkpoint.load_variables(path, step_on(1).abstract_state.params, {})


def test_a_run_without_any_whole_checkpoint_does_not_start_afresh(workdir):
    for step in (1, 2, 3):
        flip(workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt", 100)
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    with pytest.raises(UserError, match="no checkpoint is whole, of 3; the newest, 3, is damaged: "):
        restored(workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before


def test_a_parameter_that_is_missing_is_damage_and_one_of_another_model_is_not(workdir, tmp_path):
    path = workdir / "checkpoints" / "3"
    abstract = folder.pack(step_on(1).abstract_state)
    more = abstract | {"params": abstract["params"] | {"extra": abstract["step"]}}
    with pytest.raises(UserError, match="has no params/extra; it is of another model") as refused:
        folder.load_state(path, more)
    assert not isinstance(refused.value, Damaged)
    _replace(path / "state" / "_METADATA", "logit_scale", "logit_scalf")
    with pytest.raises(Damaged, match="it lacks "):
        folder.load_state(path, abstract)


def test_checkpoints_without_fingerprints_are_still_read(tmp_path):
    """Those of version 0.1."""
    state = filled(step_on(1))
    values = {"config": {"seed": 0}, "tokenizer": "{}"}
    ocp.save_checkpointables(tmp_path / "checkpoints" / "5", {"state": folder.pack(state), "model": values})
    found = restored(tmp_path)
    assert found.values == values and bits(found.state) == bits(state)


def test_a_file_that_orbax_does_without_is_no_damage(workdir):
    (workdir / "checkpoints" / "3" / "state" / "array_metadatas" / "process_0").unlink()
    found = restored(workdir)
    assert found.step == 3 and bits(found.state) == bits(filled(step_on(1), seed=3))


def test_the_fingerprints_are_those_of_what_is_stored(workdir):
    stored = json.loads(ocp.load_checkpointables(workdir / "checkpoints" / "3", {"model": None})["model"]["json"])
    assert stored["fingerprints"].keys() == upgrade.paths(folder.pack(step_on(1).abstract_state)).keys()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    """Such as those of a run of version 0.1 that diverged."""
    state = filled(step_on(1))
    params = state.params | {"logit_scale": state.params["logit_scale"] * np.nan}
    tokenizer = tokenizers.train(["red green"] * 9, 520).to_json()
    method = methods.to_config(step_on(1).method)
    checkpoint.save_variables(tmp_path / "weights", params, {}, {"method": method, "tokenizer": tokenizer})
    with pytest.raises(UserError, match=r"^\S+/weights: logit_scale has numbers that are not finite"):
        jaxclip.load(tmp_path / "weights")
