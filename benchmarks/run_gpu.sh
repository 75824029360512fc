#!/usr/bin/env bash
# Everything worth measuring on one Hopper GPU, in one call of under nine minutes.
#   bash benchmarks/run_gpu.sh [results folder [kernels|step|all]]
# kernels are attention and the loss, step the whole training step beside PyTorch's; all, which is
# the default, has less of both.
# Each part has a time limit, so one that hangs or does not compile costs itself only; what it had
# measured stays. All of it is in the folder's gpu.md, a Markdown page, as it comes.
# PYTHON=... names another interpreter; SMOKE=1 runs tiny shapes on any device.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
RESULTS="${1:-gpu_results}"
PARTS="${2:-all}"
case "$PARTS" in
  kernels | step | all) ;;
  *)
    echo "error: the parts are kernels, step or all, got $PARTS" >&2
    exit 2
    ;;
esac
PYTHON="${PYTHON:-python3}"
DEADLINE=525 # seconds, for all parts together
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory in the same process
mkdir -p "$RESULTS"
PAGE="$RESULTS/gpu.md"
: >"$PAGE"

say() { printf '%s\n' "$@" | tee -a "$PAGE"; }

failed=0
part() { # title, limit in seconds, command...
  local title="$1" limit="$2" left=$((DEADLINE - SECONDS)) began=$SECONDS status
  shift 2
  say "" "## $title" "" "    $*" ""
  if ((left < 10)); then
    say "Skipped: no time left."
    failed=1
    return
  fi
  timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" 2>>"$RESULTS/errors.log" |
    tee -a "$PAGE"
  status=${PIPESTATUS[0]}
  say "" "Took $((SECONDS - began)) s."
  if ((status == 124 || status == 137)); then
    say "**Stopped at its time limit.**"
  elif ((status != 0)); then
    say "**FAILED with status $status; $RESULTS/errors.log has the messages.**"
  fi
  ((status == 0)) || failed=1
}

sampler=""
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu \
    --format=csv,noheader,nounits --loop=1 >"$RESULTS/clocks.csv" &
  sampler=$!
  trap 'kill "$sampler" 2>/dev/null' EXIT
fi

attention=("$PYTHON" benchmarks/range_attention.py --dtype=bfloat16)
loss=("$PYTHON" benchmarks/cross_entropy.py --dtype=bfloat16 --torch)
same=("$PYTHON" benchmarks/step_check.py)
# Its cases have a process each, and are to find the memory in one piece.
step=(env -u XLA_PYTHON_CLIENT_PREALLOCATE "$PYTHON" benchmarks/step.py)

smoke() {
  say "# Smoke test: these figures mean nothing"
  small=(--batch=1 --heads=2 --kv-heads=1 --rounds=1 --round-seconds=0)
  part "Correct?" 200 "${attention[@]}" --check --lengths=130 "${small[@]}"
  part "Attention" 200 "${attention[@]}" --lengths=130 "${small[@]}"
  part "Time and visible area" 200 \
    "${attention[@]}" --no-peers --lengths=130 --documents=1,2 "${small[@]}"
  part "Loss" 200 "${loss[@]}" --tokens=256 --width=16 --vocabs=512 --rounds=1
  part "The same steps?" 200 "${same[@]}" --dtype=bfloat16
  part "Training step" 200 "${step[@]}" --model=tiny --length=128 --ours=none:1 --peer=none:1 \
    --rounds=1 --steps=1
}

backends=--backends=gpu,tokamax,chunked
check_attention() {
  part "Correct?" 110 "${attention[@]}" --check $backends \
    --lengths=1000 --head-dims=64,128 --batch=2 --heads=4 --kv-heads=2
}
time_attention() { # length, head size, batch
  part "Attention, T $1, head size $2" 75 "${attention[@]}" $backends \
    --lengths="$1" --head-dims="$2" --batch="$3" --heads=16 --kv-heads=16
}
time_loss() {
  part "Loss at 20 % targets" 80 "${loss[@]}" --tokens=32768 --width=2048 --chunk-size=1024
}
check_step() {
  part "The same steps as PyTorch?" 80 "${same[@]}" --dtype=bfloat16
}
time_step() { # model, seconds, our cases, those of PyTorch
  part "Training step, $1" "$2" "${step[@]}" --model="$1" --seconds="$(($2 - 5))" \
    --case-seconds=110 --ours="$3" --peer="$4"
}

measure() {
  say "# One GPU"
  case "$PARTS" in
    kernels)
      check_attention
      time_attention 2048 128 16
      time_attention 8192 128 4
      time_attention 2048 64 16
      time_attention 8192 64 4
      part "Time and visible area: TFLOP/s should stay the same" 60 "${attention[@]}" --no-peers \
        --backends=gpu --lengths=8192 --head-dims=128 --batch=4 --heads=16 --kv-heads=16 \
        --documents=1,2,4,8,16
      time_loss
      part "Grouped queries" 40 "${attention[@]}" --no-peers --backends=gpu,tokamax \
        --lengths=2048 --head-dims=128 --batch=16 --heads=32 --kv-heads=2
      ;;
    step)
      check_step
      time_step 1.3b 360 selective:16,selective+O1:16,selective:32,full:32 \
        none+layers:16,none+layers:32,none+layers+max:16
      time_step 350m 100 selective:32 none+layers:32
      ;;
    all)
      check_attention
      time_attention 2048 128 16
      check_step
      time_step 1.3b 240 selective:16,selective:32,full:32 \
        none+layers:32,none+layers:16,none+layers+max:16
      time_loss
      ;;
  esac
}

if [ "${SMOKE:-}" ]; then smoke; else measure; fi

say "" "## Versions and clocks" "" "| what | value |" "|---|---|"
say "| seconds | $SECONDS |"
"$PYTHON" - <<'VERSIONS' 2>>"$RESULTS/errors.log" | tee -a "$PAGE"
import importlib.metadata as metadata
import platform

print(f"| Python | {platform.python_version()} |")
for name in (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "numpy", "flax", "optax", "tokamax", "torch",
    "triton", "flash-attn-3", "liger-kernel", "nvidia-cudnn-cu13", "nvidia-cublas",
):
    try:
        print(f"| {name} | {metadata.version(name)} |")
    except metadata.PackageNotFoundError:
        print(f"| {name} | not installed |")
VERSIONS
if [ "$sampler" ]; then
  kill "$sampler"
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit \
    --format=csv,noheader | head -1 | sed 's/^/| GPU, driver, highest clocks, power limit | /; s/$/ |/' |
    tee -a "$PAGE"
  # The busy samples: the clock of an idle GPU says nothing.
  awk -F', *' '$3 > 200 { n++; c = $1; s += c; if (n == 1 || c < lo) lo = c; if (c > hi) hi = c;
      if ($3 > watts) watts = $3; if ($4 > heat) heat = $4 }
    END { if (n) printf "| SM clock while above 200 W, %d samples | %d to %d, mean %d MHz |\n| highest power, temperature | %d W, %d C |\n", n, lo, hi, s / n, watts, heat }' \
    "$RESULTS/clocks.csv" | tee -a "$PAGE"
fi
exit $failed
