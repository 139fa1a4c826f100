"""metrics.jsonl, whatever has happened to it, and the figures of throughput."""

from __future__ import annotations

import json
import shutil

import pytest

from jaxclip import monitor
from jaxclip.monitor import MetricLog, Throughput

ROWS = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]


def steps(log) -> list[int]:
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(ROWS).encode() + b"\n",
        "\n".join(ROWS).encode() + b'\n{"step": 4, "lo',
        "\n".join([ROWS[0], ROWS[0], *ROWS[1:]]).encode() + b"\n\n",
        "\n".join(ROWS).encode() + b'\n{"step": 2, "\xff\xfe": 1}\nnonsense\n[1]\n',
        "\n".join([*ROWS, *ROWS]).encode(),
    ],
)
def test_each_step_has_one_row_whatever_a_kill_or_a_disk_has_left(tmp_path, content):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(content)
    written = MetricLog(tmp_path, 2)
    assert written.has(2) and not written.has(3)
    written.write(3, {"loss": float("nan")})
    written.close()
    assert steps(log) == [1, 2, 3] and json.loads(log.read_text().splitlines()[-1])["loss"] is None


def test_a_file_that_was_removed_under_a_run_is_written_again_whole(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    written = MetricLog(workdir, 0)
    written.write(1, {"loss": 1.0})
    assert not written.is_lost()
    shutil.rmtree(workdir)
    written.write(2, {"loss": 1.0})
    assert written.is_lost()
    written.recover()
    written.write(3, {"loss": 1.0})
    written.close()
    assert steps(workdir / "metrics.jsonl") == [1, 2, 3]


def test_steps_that_end_together_share_their_time_and_pauses_do_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now[0])
    throughput = Throughput()
    now[0] += 30.0
    throughput.pause(30.0)  # compiling
    now[0] += 2.0
    throughput.waited(0.5)
    throughput.settled(2, 64)
    assert throughput.read() == {"images_per_second": 32.0, "data_wait": 0.25}
    assert throughput.seconds_per_step == 1.0
    now[0] += 10.0
    throughput.pause(10.0)  # evaluating
    now[0] += 1.0
    throughput.settled(1, 32)
    assert throughput.read()["images_per_second"] == 32.0
    assert throughput.seconds_per_step == 1.0
