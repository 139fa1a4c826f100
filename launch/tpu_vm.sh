#!/usr/bin/env bash
# Trains on a Cloud TPU VM, one host or a whole slice. usage() below says how.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh [FLAGS] COMMAND [TRAINER FLAGS]

commands
  create    ask for the TPU by a queued resource and wait until it is there; one that is there is used as it is
  run       copy this working tree to every worker, install it there, and start
              python -m jaxclip.main --distributed TRAINER FLAGS
            in the background; it starts again whenever it exits 75 (stopped after a complete save)
  status    the queued resource's state, and on every worker: running, or the exit status
  logs      follow the first worker's output
  stop      SIGTERM to the trainer on every worker: it saves, and does not start again
  delete    give the TPU back

flags, or the variable of the environment that stands for each
  --name NAME         TPU_NAME         of the queued resource and the VM (jaxclip)
  --project PROJECT   TPU_PROJECT      gcloud's own default where not given
  --zone ZONE         TPU_ZONE         gcloud's own default where not given
  --type TYPE         TPU_TYPE         accelerator type (v6e-8)
  --runtime VERSION   TPU_RUNTIME      software version; chosen by the accelerator type where not given
  --spot                               a spot TPU: cheaper, and may be taken away
  --dry-run                            print the commands and run none of them

example
  launch/tpu_vm.sh --zone us-east5-b --type v6e-16 create
  launch/tpu_vm.sh --zone us-east5-b run --config=configs/vit_b16.py --workdir=/mnt/runs/b16

The workdir and the data have to be paths that every worker sees. Relative ones start from the repository's copy,
jaxclip/ in the home folder.
END
}

fail() {
  echo "launch/tpu_vm.sh: $*" >&2
  exit 2
}

name=${TPU_NAME:-jaxclip}
project=${TPU_PROJECT:-}
zone=${TPU_ZONE:-}
type=${TPU_TYPE:-v6e-8}
runtime=${TPU_RUNTIME:-}
spot=false
dry_run=false

# ---- On this machine ------------------------------------------------------------------------------------------------

# Runs a command, or prints it so that a shell would read it back.
do_it() {
  if ! $dry_run; then
    "$@"
    return
  fi
  local word line='' quote="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$quote}'"
    line+=" $word"
  done
  echo "${line# }"
}

# gcloud compute tpus ... in the project and zone that were asked for.
tpus() {
  local words=(gcloud compute tpus "$@")
  [[ -z $project ]] || words+=("--project=$project")
  [[ -z $zone ]] || words+=("--zone=$zone")
  do_it "${words[@]}"
}

on_workers() {
  tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

# The software version that Cloud TPU's documentation gives for JAX on each generation.
runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "no software version known for --type $1: name it by --runtime" ;;
  esac
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; empty where there is no such queued resource.
state() {
  tpus queued-resources list "--filter=name~/$name\$" '--format=value(state.state)'
}

create() {
  local now words
  [[ -n $runtime ]] || runtime=$(runtime_of "$type")
  words=(queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  ! $spot || words+=(--spot)
  if $dry_run; then
    tpus "${words[@]}"
    return
  fi
  now=$(state)
  # What was taken away or refused stays in the list and never comes back.
  if [[ $now == SUSPENDED || $now == FAILED ]]; then
    tpus queued-resources delete "$name" --force --quiet
    now=''
  fi
  [[ -n $now ]] || tpus "${words[@]}"
  while true; do
    now=$(state)
    case $now in
      ACTIVE) break ;;
      SUSPEND* | FAILED | '') fail "the queued resource $name is ${now:-gone}: create it again" ;;
    esac
    echo "$name: $now"
    sleep 30
  done
  echo "$name: ACTIVE"
}

run() {
  local folder command
  (($# > 0)) || fail "run needs the trainer's flags, such as --config=configs/vit_b16.py --workdir=/mnt/runs/b16"
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  folder=$(mktemp -d)
  # shellcheck disable=SC2064  # the folder's name is needed after the function has returned
  trap "rm -rf '$folder'" EXIT
  # The files as they are, committed or not, without what git ignores.
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [[ ! -e $file ]] || printf '%s\0' "$file"
  done >"$folder/files"
  do_it tar --null -T "$folder/files" -czf "$folder/jaxclip.tar.gz"
  tpus tpu-vm scp "$folder/jaxclip.tar.gz" "$name:jaxclip.tar.gz" --worker=all
  on_workers all 'mkdir -p jaxclip && tar -xzf jaxclip.tar.gz -C jaxclip && bash jaxclip/launch/tpu_vm.sh worker-install'
  printf -v command ' %q' .venv/bin/python -m jaxclip.main --distributed "$@"
  on_workers all "bash jaxclip/launch/tpu_vm.sh worker-start$command"
}

# ---- On a worker, where `run` has put this file ---------------------------------------------------------------------

# The images' own Python may be older than 3.11; uv finds a newer one or fetches it.
worker_install() {
  cd "$HOME/jaxclip"
  if [[ ! -x .venv/bin/python ]]; then
    python3 -m venv "$HOME/.jaxclip-uv" 2>/dev/null ||
      { sudo apt-get update -qq && sudo apt-get install -y -qq python3-venv && python3 -m venv "$HOME/.jaxclip-uv"; }
    "$HOME/.jaxclip-uv/bin/pip" install --quiet uv
    "$HOME/.jaxclip-uv/bin/uv" venv --quiet --seed --python '>=3.11,<3.14' .venv
  fi
  .venv/bin/python -m pip install --quiet -r requirements.lock
  .venv/bin/python -m pip install --quiet --no-build-isolation -e '.[tpu]'
}

worker_running() {
  [[ -f $HOME/jaxclip.pid ]] && kill -0 "$(<"$HOME/jaxclip.pid")" 2>/dev/null
}

worker_start() {
  ! worker_running || fail "$(hostname) is training already: stop it first"
  rm -f "$HOME/jaxclip.exit"
  cd "$HOME/jaxclip"
  setsid bash launch/tpu_vm.sh worker-loop "$@" >>"$HOME/jaxclip.log" 2>&1 </dev/null &
  echo $! >"$HOME/jaxclip.pid"
  echo "$(hostname): started"
}

# Runs a command again as long as it exits 75, unless this loop itself was told to stop.
worker_loop() {
  local child='' status=0 stopped=false
  trap 'stopped=true; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  while ! $stopped; do
    "$@" &
    child=$!
    while true; do
      status=0
      wait "$child" || status=$?
      # A signal ends a wait early: wait on until the command has gone.
      kill -0 "$child" 2>/dev/null || break
    done
    ((status == 75)) || break
    echo "launch/tpu_vm.sh: the trainer stopped after a complete save"
  done
  echo "$status" >"$HOME/jaxclip.exit"
}

worker_stop() {
  if worker_running; then kill -TERM "$(<"$HOME/jaxclip.pid")"; fi
}

worker_status() {
  if worker_running; then
    echo "$(hostname): running"
  elif [[ -f $HOME/jaxclip.exit ]]; then
    echo "$(hostname): exit status $(<"$HOME/jaxclip.exit")"
  else
    echo "$(hostname): not running"
  fi
}

# ---------------------------------------------------------------------------------------------------------------------

while (($# > 0)); do
  case $1 in
    --name | --project | --zone | --type | --runtime)
      (($# > 1)) || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --spot) spot=true && shift ;;
    --dry-run) dry_run=true && shift ;;
    -h | --help) usage && exit ;;
    -*) fail "no flag $1 (the trainer's flags stand after the command; --help tells the rest)" ;;
    *) break ;;
  esac
done
(($# > 0)) || fail "no command: create, run, status, logs, stop or delete (--help tells more)"
command=$1
shift
case $command in
  create) create ;;
  run) run "$@" ;;
  status)
    tpus queued-resources describe "$name" '--format=value(state.state)'
    on_workers all 'bash jaxclip/launch/tpu_vm.sh worker-status'
    ;;
  logs) on_workers 0 'tail -n 200 -F jaxclip.log' ;;
  stop) on_workers all 'bash jaxclip/launch/tpu_vm.sh worker-stop' ;;
  delete) tpus queued-resources delete "$name" --force --quiet ;;
  worker-install) worker_install ;;
  worker-start) worker_start "$@" ;;
  worker-loop) worker_loop "$@" ;;
  worker-stop) worker_stop ;;
  worker-status) worker_status ;;
  *) fail "no command $command: create, run, status, logs, stop or delete (--help tells more)" ;;
esac
