#!/usr/bin/env bash
# Everything that wants a GPU, in one command: bash bench/gpu_session.sh [OUT]
# Checks the kernels and layers on CUDA tensors (no interpreter), then the knob's cost.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results/$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' ' '-')}
mkdir -p "$out"
links=$(mktemp -d) && ln -s "$PWD/kernels" "$links/drowsy_kernels"
export PYTHONPATH="$PWD:$links" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv | tee "$out/gpu.csv"
python3 -m pytest tests/kernels tests/test_agreement.py tests/test_layer.py tests/test_sleep.py \
    tests/test_deploy.py 2>&1 |
    tee "$out/tests.log"
status=$?
python3 -m pytest bench/test_knob.py --benchmark-enable --benchmark-json "$out/knob.json" 2>&1 |
    tee "$out/knob.log"
exit "$status"
