#!/usr/bin/env bash
# Trains with several processes of this machine (or of the machines of a host file) by mpirun: one a GPU, or as many as
# are asked for on CPUs.
#
#   scripts/launch.sh [-n PROCESSES] [--hosts FILE] [--dry-run] train CONFIG [ARGUMENTS OF polaron...]
#
# -n         processes; without it one for each GPU that may be used (CUDA_VISIBLE_DEVICES, else nvidia-smi), else one
# --hosts    Open MPI's host file, a line "NAME slots=GPUS" for each machine. polaron, the config and the data must be
#            under the same paths on all of them. -n must be given.
# --dry-run  prints the command instead of running it
#
# POLARON names the program (otherwise the one built last below build/), MPIRUN the launcher. A process takes the GPU of
# its number on its machine; in excess of the GPUs they share them, which works but sends everything through host memory
# (polaron warns). Ends with polaron's exit code: 6 means stopped after a checkpoint; --resume goes on from there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  sed -n '2,/^set -euo/{/^set /d;s/^# \{0,1\}//;p}' "$0"
}
refuse() {
  echo "error: $*" >&2
  exit 2
}

processes='' hosts='' dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    -n) [ $# -gt 1 ] || refuse "-n needs a number"; processes=$2; shift 2 ;;
    --hosts) [ $# -gt 1 ] || refuse "--hosts needs a file"; hosts=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) refuse "unknown option $1 (scripts/launch.sh --help)" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || refuse "what to run is missing: train CONFIG (scripts/launch.sh --help)"
[ -z "$hosts" ] || [ -n "$processes" ] || refuse "--hosts needs -n: the GPUs of other machines are not counted"
[ -z "$hosts" ] || [ -r "$hosts" ] || refuse "there is no host file $hosts"

# Devices that a process of this machine may use.
gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    local list=()
    IFS=, read -ra list <<<"$CUDA_VISIBLE_DEVICES"
    echo ${#list[@]}
  elif command -v nvidia-smi >/dev/null; then
    { nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU' || true
  else
    echo 0
  fi
}

if [ -z "$processes" ]; then
  processes=$(gpus)
  [ "$processes" -gt 0 ] || processes=1
fi
case $processes in
  *[!0-9]* | 0) refuse "-n $processes: a number of processes, 1 or more" ;;
esac

polaron=${POLARON:-}
if [ -z "$polaron" ]; then
  # The one built last. Builds that are slow on purpose do not count, and that of the quickstart, which has no CUDA
  # backend, only where there is no other.
  quickstart=$root/build/quickstart/polaron
  for candidate in "$root"/build/*/polaron "$root"/build/polaron; do
    case ${candidate#"$root/build"} in
      /portable/polaron | /sanitize/polaron | /thread/polaron | /quickstart/polaron) continue ;;
    esac
    if [ -f "$candidate" ] && [ -x "$candidate" ] && { [ -z "$polaron" ] || [ "$candidate" -nt "$polaron" ]; }; then
      polaron=$candidate
    fi
  done
  [ -n "$polaron" ] || [ ! -x "$quickstart" ] || polaron=$quickstart
fi
[ -n "$polaron" ] || polaron=$(command -v polaron || true)
[ -n "$polaron" ] ||
  refuse "polaron is not built: cmake --preset release && cmake --build --preset release, or set POLARON to its path"

mpirun=${MPIRUN:-mpirun}
command=("$mpirun" -n "$processes")
# Options of Open MPI; others take the plain command. A process has threads, so it must not be bound to one core.
if "$mpirun" --version 2>/dev/null | grep -qi "open mpi\|openrte"; then
  command+=(--bind-to none)
  [ -z "$hosts" ] || command+=(--hostfile "$hosts")
  [ "$(id -u)" -ne 0 ] || command+=(--allow-run-as-root)
  # mpirun takes the environment to this machine's processes by itself, to other machines' what is named.
  for name in $(compgen -e); do
    case $name in
      NCCL_* | CUDA_* | OMP_* | LD_LIBRARY_PATH) [ -z "$hosts" ] || command+=(-x "$name") ;;
    esac
  done
else
  [ -z "$hosts" ] || refuse "--hosts is for Open MPI's mpirun only"
fi
command+=("$polaron" "$@")

if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
