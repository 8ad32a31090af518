#!/usr/bin/env bash
# Everything that needs a GPU, in one go and without a network: build, tests, compute-sanitizer, benchmarks.
#
#   bench/run_gpu.sh [OUT_DIR]
#
# Builds into this checkout with whatever the current Python (PYTHON=python3) has installed, and writes nowhere else. Each
# step has a time limit, all together TOTAL_S, and a log in OUT_DIR (default: build/gpu); one that fails does not stop the
# others. The last lines say how each step ended, and the exit status is 1 if any failed. STEPS="build decode" runs these
# alone: whole decoding comes last, takes what time the others left, and is given the options in DECODE_ARGS, for example
# "--pairs 8b+1b". STEPS="build compiled" decodes with compiled models, STEPS="build list" a list longer than a batch.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}
out=${1:-build/gpu}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
workers=()
summary=()
running=()
failed=0

total=${TOTAL_S:-530}

# chosen NAME: whether STEPS, where it is set, has this step
chosen() { [[ -z ${STEPS:-} || " $STEPS " == *" $1 "* ]]; }

# step NAME LIMIT_S COMMAND...: runs it, its output in OUT_DIR/NAME.log; no longer than what is left of TOTAL_S
step() {
  chosen "$1" || return 0
  run "$@"
  report "$1"
}

# beside NAME LIMIT_S COMMAND...: the same, while others are run; `await` says how it ended
beside() {
  chosen "$1" || return 0
  run "$@" &
  running+=("$1")
}

await() {
  wait
  for name in "${running[@]}"; do report "$name"; done
  running=()
}

run() {
  local name=$1 limit=$2 began=$SECONDS left=$((total - SECONDS)) status how=(--kill-after=10)
  shift 2
  if [ "$left" -le 0 ]; then
    echo "no time left of $total s" >"$out/$name.log"
    echo "1 0" >"$out/$name.status"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  # pytest is interrupted, and that once: it then says what has failed so far.
  [[ "$*" == *" -m pytest "* ]] && how=(--foreground --signal=INT --kill-after=20)
  timeout "${how[@]}" "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  [ "$status" -eq 124 ] && echo "stopped after $limit s" >>"$out/$name.log"
  echo "$status $((SECONDS - began))" >"$out/$name.status"
}

# report NAME: how a step ended; 0 if it went well
report() {
  local name=$1 status seconds
  read -r status seconds <"$out/$name.status"
  rm "$out/$name.status"
  echo "== $name"
  tail -n 6 "$out/$name.log" | cut -c 1-200 | sed 's/^/   /'
  [ "$status" -eq 0 ] || failed=1
  summary+=("$(printf '%-12s status %3d  %4d s' "$name" "$status" "$seconds")")
  return "$status"
}

# skip NAME REASON: a step that cannot run here has failed; with no device, none can
skip() {
  [ "$1" = device ] || chosen "$1" || return 0
  echo "== $1: $2"
  summary+=("$(printf '%-12s not run: %s' "$1" "$2")")
  failed=1
}

has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null; }

finish() {
  printf '\n%s\n' "logs and results: $out"
  printf '%s\n' "${summary[@]}"
  exit "$failed"
}

if ! command -v nvcc >/dev/null; then
  for folder in "${CUDA_HOME:-/usr/local/cuda}/bin" /usr/local/cuda-*/bin; do
    if [ -x "$folder/nvcc" ]; then
      PATH=$folder:$PATH
      break
    fi
  done
fi
export PATH

missing=()
for module in torch transformers safetensors numpy rich setuptools pybind11 pytest triton; do
  has "$module" || missing+=("$module")
done
for program in nvcc cmake ninja; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if has setuptools && ! "$python" -c 'import setuptools; assert int(setuptools.__version__.split(".")[0]) >= 77'; then
  missing+=("setuptools>=77")
fi
echo "missing: ${missing[*]:-nothing}"
if ! "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  skip device "$python has no torch that sees a CUDA device"
  finish
fi

# Not through pip, which would write to the Python's own folders. egg_info is for those who ask for the version.
export PYTHONPATH=$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}
export PEARL_CUDA=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
step build 240 "$python" setup.py build_ext --inplace egg_info || finish
step doctor 60 "$python" -c 'import sys; from pearl_decode.cli import main; sys.exit(main(["doctor"]))'

# What is right or wrong, side by side: none of it is timed.
if has pytest; then
  pytest=("$python" -m pytest -q -rfE --durations=10 -p no:cacheprovider)
  has xdist && workers=(-n 6)
  beside tests 240 "${pytest[@]}" "${workers[@]}" -k "not triton" tests/gpu
  # Triton compiles for seconds for every size: what there is no time for has not failed.
  beside triton 240 "${pytest[@]}" "${workers[@]}" -k triton tests/gpu
else
  skip tests "pytest is not installed"
fi

if command -v compute-sanitizer >/dev/null; then
  # Python's and torch's own probing of the driver counts as errors otherwise; torch's kernels need no watching.
  watched=(--report-api-errors no)
  compute-sanitizer --help 2>&1 | grep -- --kernel-name >/dev/null && watched+=(--kernel-name kns=pearl)
  for tool in memcheck racecheck synccheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 beside "$tool" 200 \
      compute-sanitizer --tool "$tool" "${watched[@]}" --error-exitcode 1 "$python" bench/sanitize.py
  done
else
  skip memcheck "no compute-sanitizer on PATH"
fi
await

for name in verify sample attention; do
  plot=()
  has matplotlib && plot=(--plot "$out/$name.png")
  step "$name" 200 "$python" "bench/bench_$name.py" --device cuda --json "$out/$name.json" "${plot[@]}"
done

# whole_decoding NAME BUDGET_S OPTION...: stops by itself between two cells, not in the middle of one
whole_decoding() {
  local name=$1 budget=$2 plot=()
  shift 2
  has matplotlib && plot=(--plot "$out/$name")
  step "$name" $((budget + 30)) "$python" bench/bench_decode.py --synthetic --device cuda --budget-s "$budget" \
    --json "$out/$name.json" "${plot[@]}" "$@"
}

left=$((total - SECONDS - 30))
if [ "$left" -ge 60 ]; then
  whole_decoding decode "$left" ${DECODE_ARGS:-}
else
  skip decode "too little time left of $total s: STEPS=\"build decode\" runs it alone"
fi
# Compiling takes up to a minute for each width: only where it is asked for.
[[ " ${STEPS:-} " == *" compiled "* ]] && whole_decoding compiled $((total - SECONDS - 30)) --compile --batches 1 --contexts 512
[[ " ${STEPS:-} " == *" list "* ]] && step list 240 "$python" bench/bench_list.py --synthetic 8b+160m --device cuda \
  --texts 64 --batch 16 --tokens 256 --repeat 2 --json "$out/list.json"
# Needs no GPU, only its compilers: last.
has pytest && step compilers 90 "$python" -m pytest -q -rf -p no:cacheprovider \
  tests/test_cuda_build.py tests/kernels/test_triton_compiles.py
finish
