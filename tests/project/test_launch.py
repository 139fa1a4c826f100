"""The scripts under launch/, run by bash with substitutes for the cluster's programs on the PATH."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import pytest
from paths import ROOT

TPU_VM, SLURM = ROOT / "launch" / "tpu_vm.sh", ROOT / "launch" / "slurm.sh"
TRAINER = [".venv/bin/python", "-m", "jaxclip.main", "--distributed"]
FLAGS = ["--config=configs/vit_b16.py", "--workdir=/mnt/runs/b16", "--config.data.train=it's a b/{0..4}.tar"]


def program(folder: pathlib.Path, name: str, body: str) -> None:
    """Puts an executable bash script into a folder."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


def run(
    script: pathlib.Path, *arguments: str, cwd: pathlib.Path = ROOT, **variables: str
) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "SLURM_"))}
    return subprocess.run(
        ["bash", script, *arguments], cwd=cwd, env=clean | variables, capture_output=True, text=True, timeout=60
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", [TPU_VM, SLURM, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checked = subprocess.run(["shellcheck", script], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


# ---- tpu_vm.sh --------------------------------------------------------------------------------------------------


def dry_run(*arguments: str, **variables: str) -> list[list[str]]:
    """The commands that tpu_vm.sh would run, each split into words as a shell would."""
    ran = run(TPU_VM, "--dry-run", "--name", "b16", *arguments, **variables)
    assert ran.returncode == 0, ran.stderr
    return [shlex.split(line) for line in ran.stdout.splitlines()]


def test_create_asks_for_a_queued_resource():
    [command] = dry_run("--project", "p", "--zone", "z", "--type", "v5litepod-16", "--spot", "create")
    assert command[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "b16"]
    assert set(command[6:]) == {
        "--node-id=b16",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
        "--project=p",
        "--zone=z",
    }


def test_environment_variables_set_flags_and_flags_take_precedence():
    [command] = dry_run("--zone", "flag", "delete", TPU_PROJECT="from-environment", TPU_ZONE="from-environment")
    assert command[5:] == ["b16", "--force", "--quiet", "--project=from-environment", "--zone=flag"]


def test_run_copies_installs_and_starts_the_trainer_on_every_worker():
    pack, copy, install, start = dry_run("run", *FLAGS)
    assert pack[0] == "tar"
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    for command in (copy, install, start):
        assert "--worker=all" in command
    remote = start[-1].removeprefix("--command=")
    assert shlex.split(remote) == ["bash", "jaxclip/launch/tpu_vm.sh", "worker-start", *TRAINER, *FLAGS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command"),
        (["fly"], "unknown command fly"),
        (["--speed", "9", "create"], "unknown flag --speed"),
        (["--zone"], "--zone needs a value"),
        (["--type", "v9-8", "create"], "set --runtime"),
        (["run"], "run needs the trainer's flags"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments, message):
    ran = run(TPU_VM, "--dry-run", *arguments)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_help_names_every_command():
    shown = run(TPU_VM, "--help")
    assert shown.returncode == 0
    for command in ("create", "run", "status", "logs", "stop", "delete", "--dry-run"):
        assert f"  {command} " in shown.stdout


def test_create_waits_until_the_tpu_is_there_and_replaces_one_that_was_taken_away(tmp_path):
    calls = tmp_path / "calls"
    program(
        tmp_path / "bin",
        "gcloud",
        f"""
        echo "$4" >>{shlex.quote(str(calls))}
        [[ $4 == list ]] || exit 0
        case $(grep -c list {shlex.quote(str(calls))}) in
          1) echo SUSPENDED ;;
          2) echo PROVISIONING ;;
          *) echo ACTIVE ;;
        esac""",
    )
    program(tmp_path / "bin", "sleep", "")
    ran = run(TPU_VM, "create", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert ran.returncode == 0, ran.stderr
    assert calls.read_text().split() == ["list", "delete", "create", "list", "list"]
    assert ran.stdout.splitlines()[-1] == "jaxclip: ACTIVE"


@pytest.fixture
def worker(tmp_path):
    """A home folder as on a worker after worker-install, its trainer a script that the test writes."""
    (tmp_path / "jaxclip" / "launch").mkdir(parents=True)
    shutil.copy(TPU_VM, tmp_path / "jaxclip" / "launch")
    return tmp_path


def on_worker(home: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    return run(home / "jaxclip" / "launch" / "tpu_vm.sh", *arguments, cwd=home, HOME=str(home))


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.02)


@pytest.mark.parametrize(("exits", "last"), [([75, 75, 0], 0), ([75, 2], 2), ([1], 1)])
def test_a_worker_starts_the_trainer_again_after_75_only(worker, exits, last):
    trainer = 'echo "$@" >>runs; shift $(($(wc -l <runs) - 1)); exit "$1"'
    program(worker / "jaxclip", "trainer", trainer)
    on_worker(worker, "worker-start", "./trainer", *map(str, exits))
    wait_for((worker / "jaxclip.exit").exists, "the trainer to end")
    wait_for(lambda: "exit status" in on_worker(worker, "worker-status").stdout, "the loop to end")
    assert len((worker / "jaxclip" / "runs").read_text().splitlines()) == len(exits)
    assert on_worker(worker, "worker-status").stdout.endswith(f"exit status {last}\n")


def test_stop_lets_the_trainer_save_and_does_not_start_it_again(worker):
    program(
        worker / "jaxclip",
        "trainer",
        "trap 'sleep 0.2; echo saved; exit 75' TERM; echo up; while :; do sleep 0.1; done",
    )
    log = worker / "jaxclip.log"
    on_worker(worker, "worker-start", "./trainer")
    try:
        wait_for(lambda: "up" in log.read_text(), "the trainer")
        assert on_worker(worker, "worker-status").stdout.endswith("running\n")
        assert "training already" in on_worker(worker, "worker-start", "./trainer").stderr
        on_worker(worker, "worker-stop")
        wait_for((worker / "jaxclip.exit").exists, "the trainer to end")
    finally:
        session = int((worker / "jaxclip.pid").read_text())
        if not (worker / "jaxclip.exit").exists():
            os.killpg(session, signal.SIGKILL)
    assert log.read_text().split("\n")[:2] == ["up", "saved"]
    assert log.read_text().count("up\n") == 1
    assert (worker / "jaxclip.exit").read_text() == "75\n"


# ---- slurm.sh ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path):
    """A folder to submit from, with substitutes for srun and scontrol that record their arguments."""
    program(tmp_path / ".venv" / "bin", "python", "exit 0")
    program(tmp_path / "bin", "srun", 'printf "%s\\n" "$@" >srun.called; exit "${SRUN_EXIT:-0}"')
    program(tmp_path / "bin", "scontrol", 'echo "$@" >scontrol.called')
    return tmp_path


def submit(cluster: pathlib.Path, *arguments: str, srun_exit: int = 0) -> subprocess.CompletedProcess:
    return run(
        SLURM,
        *arguments,
        cwd=pathlib.Path("/"),
        PATH=f"{cluster / 'bin'}:{os.environ['PATH']}",
        SLURM_SUBMIT_DIR=str(cluster),
        SLURM_JOB_ID="17",
        SLURM_CPUS_PER_TASK="6",
        SRUN_EXIT=str(srun_exit),
    )


def test_a_job_runs_the_trainer_with_the_flags_as_they_were_given(cluster):
    assert submit(cluster, *FLAGS).returncode == 0
    assert (cluster / "srun.called").read_text().splitlines() == ["--cpus-per-task=6", *TRAINER, *FLAGS]


@pytest.mark.parametrize("status", [0, 1, 2, 75, 143])
def test_a_job_goes_back_to_the_queue_after_75_only(cluster, status):
    assert submit(cluster, *FLAGS, srun_exit=status).returncode == status
    requeued = cluster / "scontrol.called"
    assert (requeued.read_text() if requeued.exists() else "") == ("requeue 17\n" if status == 75 else "")


def test_a_job_outside_an_installed_clone_is_an_error(cluster):
    shutil.rmtree(cluster / ".venv")
    ran = submit(cluster, *FLAGS)
    assert ran.returncode == 2
    assert "run make install and sbatch" in ran.stderr


def test_a_job_may_be_requeued_and_is_warned_before_its_time_is_up():
    options = [line.split()[1] for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= set(options)
