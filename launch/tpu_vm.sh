#!/usr/bin/env bash
# Training on a Cloud TPU VM, a single host or a whole slice; see usage() below.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh [FLAGS] COMMAND [TRAINER FLAGS]

commands
  create    request the TPU as a queued resource and wait until it is ready; an existing one is used as it is
  run       copy this working tree to every worker, install it there, and start
              python -m jaxclip.main --distributed TRAINER FLAGS
            in the background; it is restarted whenever it exits 75 (stopped after a complete save)
  status    show the queued resource's state, and whether each worker is running or its exit status
  logs      follow the first worker's output
  stop      send SIGTERM to the trainer on every worker: it saves, and is not restarted
  delete    delete the TPU

flags, or the environment variable for each
  --name NAME         TPU_NAME         name of the queued resource and the VM (default: jaxclip)
  --project PROJECT   TPU_PROJECT      project (default: gcloud's)
  --zone ZONE         TPU_ZONE         zone (default: gcloud's)
  --type TYPE         TPU_TYPE         accelerator type (default: v6e-8)
  --runtime VERSION   TPU_RUNTIME      software version (default: by accelerator type)
  --spot                               use a spot TPU: cheaper, but may be preempted
  --dry-run                            print the commands instead of running them

example
  launch/tpu_vm.sh --zone us-east5-b --type v6e-16 create
  launch/tpu_vm.sh --zone us-east5-b run --config=configs/vit_b16.py --workdir=/mnt/runs/b16

The workdir and the data must be on paths that every worker can access. Relative paths start from the copy of the
repository, jaxclip/ in the home folder.
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

# Runs a command, or prints it in a form that a shell can run.
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

# gcloud compute tpus ... in the given project and zone.
tpus() {
  local words=(gcloud compute tpus "$@")
  [[ -z $project ]] || words+=("--project=$project")
  [[ -z $zone ]] || words+=("--zone=$zone")
  do_it "${words[@]}"
}

on_workers() {
  tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

# The software version for JAX on each generation, according to Cloud TPU's documentation.
runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "the software version for --type $1 is unknown; set --runtime" ;;
  esac
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; empty if the queued resource does not exist.
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
  # A preempted or failed resource stays in the list and never becomes active again.
  if [[ $now == SUSPENDED || $now == FAILED ]]; then
    tpus queued-resources delete "$name" --force --quiet
    now=''
  fi
  [[ -n $now ]] || tpus "${words[@]}"
  while true; do
    now=$(state)
    case $now in
      ACTIVE) break ;;
      SUSPEND* | FAILED | '') fail "the queued resource $name is ${now:-gone}; create it again" ;;
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
  # The working tree, including uncommitted files, without the files that git ignores.
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [[ ! -e $file ]] || printf '%s\0' "$file"
  done >"$folder/files"
  do_it tar --null -T "$folder/files" -czf "$folder/jaxclip.tar.gz"
  tpus tpu-vm scp "$folder/jaxclip.tar.gz" "$name:jaxclip.tar.gz" --worker=all
  on_workers all 'mkdir -p jaxclip && tar -xzf jaxclip.tar.gz -C jaxclip && bash jaxclip/launch/tpu_vm.sh worker-install'
  printf -v command ' %q' .venv/bin/python -m jaxclip.main --distributed "$@"
  on_workers all "bash jaxclip/launch/tpu_vm.sh worker-start$command"
}

# ---- On a worker, to which `run` has copied this file ---------------------------------------------------------------

# The VM images' Python may be older than 3.11; uv finds a newer one or downloads it.
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
  ! worker_running || fail "$(hostname) is training already; stop it first"
  rm -f "$HOME/jaxclip.exit"
  cd "$HOME/jaxclip"
  setsid bash launch/tpu_vm.sh worker-loop "$@" >>"$HOME/jaxclip.log" 2>&1 </dev/null &
  echo $! >"$HOME/jaxclip.pid"
  echo "$(hostname): started"
}

# Restarts a command as long as it exits 75, unless this loop receives SIGTERM.
worker_loop() {
  local child='' status=0 stopped=false
  trap 'stopped=true; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  while ! $stopped; do
    "$@" &
    child=$!
    while true; do
      status=0
      wait "$child" || status=$?
      # A signal interrupts the wait; continue until the command has exited.
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
    -*) fail "unknown flag $1; put the trainer's flags after the command, and see --help" ;;
    *) break ;;
  esac
done
(($# > 0)) || fail "no command given; use create, run, status, logs, stop or delete, and see --help"
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
  *) fail "unknown command $command; use create, run, status, logs, stop or delete, and see --help" ;;
esac
