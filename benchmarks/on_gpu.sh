#!/usr/bin/env bash
# For a machine with a GPU that is there for a quarter of an hour: builds, tests, checks and times everything.
#
#   benchmarks/on_gpu.sh [--dry-run] [--skip-build] OUT
#
# Needs python3 with torch, pip, setuptools, ninja, pytest, pytest-xdist and hypothesis, a C++ compiler and nvcc; no
# network. Takes eight minutes at most. In this order, each part with a limit of its own, and each whatever became of
# those before it:
#
#   check, build, diagnosis    what the build needs; build for this GPU and install into python3's environment; what
#                              the installed package says of itself
#   exclusive, tests           the tests marked gpu: those that need the GPU to themselves, then the others
#   sanitizer                  compute-sanitizer over a small step of each rule
#   time                       steps, copies, launches; takes all the time that is left
#
# Results are in OUT as soon as they are there: on_gpu.txt (tables), on_gpu.json (everything; on_gpu_report.py says
# what is in it), on_gpu.log, and what the parts have left. Exits with 1 if a part failed or overran its limit.
#
#   --dry-run      the same on a CPU: tensors of a few bytes, a handful of tests, no sanitizer
#   --skip-build   with the sage_ext that is installed
#
# PYTHON names another interpreter, ON_GPU_SECONDS another limit for all of it.
set -uo pipefail

dry=() build=yes out=
for word in "$@"; do
  case $word in
    --dry-run) dry=(--dry-run) ;;
    --skip-build) build=no ;;
    -*) echo "on_gpu.sh: unknown option $word" >&2; exit 2 ;;
    *) if [ -n "$out" ]; then echo "on_gpu.sh: one folder expected, got $out and $word" >&2; exit 2; fi; out=$word ;;
  esac
done
if [ -z "$out" ]; then
  echo 'usage: benchmarks/on_gpu.sh [--dry-run] [--skip-build] OUT' >&2
  exit 2
fi
python=$(command -v "${PYTHON:-python3}") || { echo "on_gpu.sh: no ${PYTHON:-python3} here" >&2; exit 2; }
[[ $python == /* ]] || python=$PWD/$python
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
# Left there by an earlier run, they would pass for this one's.
rm -f "$out"/on_gpu.{json,txt,log} "$out"/{build,sanitizer,time}.json "$out"/tests.jsonl
rm -f build/on_gpu/settings

# A dry run is no test of how fast the machine is.
slack=$((${#dry[@]} ? 10 : 1))
deadline=$((SECONDS + slack * ${ON_GPU_SECONDS:-480}))
reserve=75 # seconds, for the last part
work=build/on_gpu
mkdir -p "$work"
# Python compiles torch's modules for each of a dozen processes anew where it may not keep them.
unset PYTHONDONTWRITEBYTECODE
export PYTHONUNBUFFERED=1 PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1

running=
trap '[ -z "$running" ] || kill "$running"; exit 143' INT TERM

left() { echo $((deadline - reserve - 6 - SECONDS)); }

# run PART LIMIT COMMAND...: runs a part, for so many seconds at most and so that the rest has its time, and records how
# it ended. A part that is told to end has five seconds for that.
run() {
  local part=$1 limit=$((slack * $2)) code=0 began ended
  shift 2
  began=$(date +%s.%N)
  if (($(left) < limit)); then limit=$(left); fi
  if ((limit > 0)); then
    echo "--- $part, $limit s at most" | tee -a "$out/on_gpu.log"
    timeout -k 5 "$limit" "$@" >>"$out/on_gpu.log" 2>&1 </dev/null &
    running=$!
    wait "$running" || code=$?
    running=
  else
    code=125 limit=0
  fi
  ended=$(date +%s.%N)
  "$python" benchmarks/on_gpu_report.py "$out" --part "$part" --exit-code "$code" \
    --began "$began" --ended "$ended" --limit "$limit"
  if ((code)); then
    echo "    $part: exit code $code; the end of its output:"
    tail -n 15 "$out/on_gpu.log"
  fi
}

run check 45 "$python" benchmarks/gpu_check.py --json "$out/build.json" --settings "$work/settings" "${dry[@]}"
if [ "$build" = yes ]; then
  # Objects in a folder of their own; what is installed goes to site-packages.
  printf '[build]\nbuild_base = %s\nbuild_temp = %s/objects\n' "$work" "$work" >"$work/build.cfg"
  if [ -f "$work/settings" ]; then . "$work/settings"; fi
  if ((${#dry[@]} == 0)); then export SAGE_EXT_CUDA=1; fi
  export MAX_JOBS=${MAX_JOBS:-$(nproc)}
  DIST_EXTRA_CONFIG=$PWD/$work/build.cfg run build 120 \
    "$python" -m pip install -v --no-compile --no-build-isolation --no-deps --force-reinstall .
fi
run diagnosis 30 "$python" benchmarks/gpu_check.py --json "$out/build.json" --diagnose

tests=("$python" benchmarks/gpu_tests.py --results "$out/tests.jsonl" "${dry[@]}")
processes=$(nproc)
processes=$((processes < 12 ? processes : 12))
export OMP_WAIT_POLICY=passive
run exclusive 50 "${tests[@]}" --exclusive --budget $((slack * 45))
OMP_NUM_THREADS=2 run tests 125 "${tests[@]}" --processes $processes --budget $((slack * 118))

run sanitizer 90 "$python" benchmarks/gpu_sanitize.py --json "$out/sanitizer.json" --limit $((slack * 86)) "${dry[@]}"

reserve=0
run time "$(left)" "$python" benchmarks/gpu_time.py --json "$out/time.json" --budget $(($(left) - 10)) "${dry[@]}"

"$python" benchmarks/on_gpu_report.py "$out" --final
