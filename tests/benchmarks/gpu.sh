#!/usr/bin/env bash
# Figures of one GPU in under ten minutes, without a network: tests, the benchmark table, IOI in SmolLM2 and whether its
# edges are those of the CPU. Everything is written to the folder gpu/ (summary.txt, bench.md, bench.json, the runs).
#
#     tests/benchmarks/gpu.sh                       after `make setup assets`
#     DEVICE=cpu QUICK=1 tests/benchmarks/gpu.sh    the same steps with small models, on any machine
#
# DEVICE (cuda), QUICK, OUT (gpu), PYTHON (.venv/bin/python) and WORKERS (processes of the tests, one per core,
# up to 12) are read from the environment.
set -uo pipefail
cd "$(dirname "$0")/../.."
DEVICE=${DEVICE:-cuda}
QUICK=${QUICK:-}
OUT=${OUT:-gpu}
PYTHON=${PYTHON:-.venv/bin/python}
WORKERS=${WORKERS:-$(($(nproc) < 12 ? $(nproc) : 12))}
export HF_HUB_OFFLINE=1
mkdir -p "$OUT"
exec > >(tee "$OUT/summary.txt") 2>&1
failed=0

step() { # name, limit in seconds, command
    local name=$1 limit=$2 started=$SECONDS code
    shift 2
    echo "== $name"
    timeout "$limit" "$@"
    code=$?
    [ $code = 0 ] || failed=1
    echo "== $name: exit code $code, $((SECONDS - started)) s"
}

command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
if [ -n "$QUICK" ]; then
    tests=(tests/graph tests/patching/test_patch.py tests/model/test_shards.py)
    table=(--quick --repeats 1 --only "quick tiny greater-than")
else
    tests=()
    table=(--repeats 3 --only exact --only larger --only llama)
    for setting in "tiny greater-than" "tiny ioi" "greater-than 25" "ioi 25" "greater-than 100" "ioi 100"; do
        table+=(--only "$setting")
    done
fi
step tests 240 "$PYTHON" -m pytest -q -p no:cacheprovider -m "not slow" -n "$WORKERS" "${tests[@]}"
step table 300 "$PYTHON" -m tests.benchmarks --device "$DEVICE" "${table[@]}" --out "$OUT/bench.json" --md "$OUT/bench.md"

acdc=("$PYTHON" -m acdc.start)
golden=configs/golden/smollm2/ioi.json
ioi=(run --task ioi --model smollm2 --device "$DEVICE" --force)
small=(--examples 10 --prefilter eap-ig:0.005 --threshold 0.03)
step "SmolLM2's IOI, reduced" 300 "${acdc[@]}" "${ioi[@]}" "${small[@]}" --out "$OUT/ioi-reduced"
step "is it the CPU's" 60 "${acdc[@]}" check "$OUT/ioi-reduced" --against "$golden" --edits 4 --tolerance 0.02
if [ -z "$QUICK" ]; then
    step "SmolLM2's IOI" 120 "${acdc[@]}" "${ioi[@]}" --out "$OUT/ioi"
    step "is it the CPU's" 60 "$PYTHON" -m tests.benchmarks.same "$OUT/ioi/circuit.json" docs/ioi-smollm2.svg
fi
echo "== all: $((SECONDS)) s, $([ $failed = 0 ] && echo "nothing failed" || echo "SOMETHING FAILED"); the figures are in $OUT/"
exit $failed
