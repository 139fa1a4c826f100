"""The lock of a workdir: one run at a time, however the one before ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
import shutil
import socket
import threading
import time

import pytest

from jaxclip import lock
from jaxclip.errors import UserError
from jaxclip.lock import locked


def hold(workdir: pathlib.Path, held, release) -> None:
    with locked(workdir):
        held.set()
        release.wait()
        os._exit(0)  # As a kill: nothing is released.


def test_a_second_run_is_refused_and_told_who_has_the_workdir(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", held, release))
    other.start()
    assert held.wait(60)
    expected = rf"another run writes in \S+/run: process {other.pid} on {re.escape(socket.gethostname())}, since 20"
    with pytest.raises(UserError, match=expected), locked(tmp_path / "run"):
        raise AssertionError("not reached")
    release.set()
    other.join()
    (tmp_path / "run" / "config.json").write_text("{}")
    with locked(tmp_path / "run") as note:
        assert note == f"process {other.pid} on {socket.gethostname()} ended without releasing the workdir"
    with locked(tmp_path / "run") as note:
        assert note == ""


@pytest.mark.parametrize("alive", [True, False])
def test_a_run_on_another_machine_counts_as_ended_if_it_gives_no_sign(tmp_path, monkeypatch, alive):
    """Neither its clock nor ours counts, and a run that was moved goes on."""
    monkeypatch.setattr(lock, "_EVERY", 0.2)
    path = tmp_path / lock.FILE
    path.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "2026-01-01 00:00:00"}))
    beating = threading.Timer(0.1, os.utime, [path])
    if alive:
        beating.start()
        with pytest.raises(UserError, match="process 7 on elsewhere, since 2026-01-01"), locked(tmp_path):
            raise AssertionError("not reached")
    else:
        with locked(tmp_path) as note:
            assert note == "process 7 on elsewhere ended without releasing the workdir"


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[1]", "\x00"])
def test_a_lock_file_that_says_nothing_is_no_lock(tmp_path, content):
    (tmp_path / lock.FILE).write_text(content)
    with locked(tmp_path) as note:
        assert note == ""


def test_a_run_that_could_not_begin_leaves_no_folder(tmp_path):
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").write_text("{}")
    assert (tmp_path / "run" / "config.json").exists()


def test_a_lock_that_was_removed_with_its_folder_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_EVERY", 0.01)
    with locked(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()
        until = time.monotonic() + 60
        while not (tmp_path / "run" / lock.FILE).exists() or not (tmp_path / "run" / lock.FILE).read_text():
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(UserError, match=f"another run writes in .*: process {os.getpid()} on"):
            locked(tmp_path / "run").__enter__()
    with locked(tmp_path / "run") as note:
        assert note == ""


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    expected = r"^--workdir=\S+/file/run cannot be written: Not a directory$"
    with pytest.raises(UserError, match=expected), locked(tmp_path / "file" / "run"):
        raise AssertionError("not reached")
