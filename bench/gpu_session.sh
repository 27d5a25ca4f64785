#!/usr/bin/env bash
# Everything that wants a GPU: bash bench/gpu_session.sh [STAGE ...]
#
#   check      the kernel and layer tests on CUDA tensors (no interpreter)
#   sanitize   compute-sanitizer's memcheck over a small sweep of every kernel
#   tune       the tuning table of this GPU; goes on where the last run stopped
#   layers     ResNet-50, VGG-16 and CaffeNet layer by layer, awake and asleep, against cuDNN
#   inductor   the same layers awake, against Inductor's search, as far as it gets
#   networks   whole VGG-16 and ResNet-50: images/s and joules/image, against dense baselines
#   overheads  maps, lists, fills, and turning the knob in a captured graph
#   report     tables and pictures of what the stages above have recorded
#
# Without a stage: all, in this order, about 45 minutes. Each stage ends within 8 minutes; what did
# not fit is recorded as not measured. Results go to $OUT, by default bench/results/GPU. Needs no
# installation beyond torch, triton, pytest, pytest-benchmark and, for energy, nvidia-ml-py; set
# DROWSY_COMMIT where the checkout has no .git.
#
# Where only half an hour can be had, most valuable first, a call each:
#   bash bench/gpu_session.sh check
#   INDUCTOR_SECONDS=0 bash bench/gpu_session.sh networks
#   bash bench/gpu_session.sh layers
# INDUCTOR_SECONDS (150) is what max-autotune of whole networks may take before it is left out; a
# search that has begun is not cut short.
set -uo pipefail
cd "$(dirname "$0")/.."
all=(check sanitize tune layers inductor networks overheads report)
stages=("$@")
((${#stages[@]})) || stages=("${all[@]}")
for stage in "${stages[@]}"; do
    [[ " ${all[*]} " == *" $stage "* ]] || { echo "stage: got $stage, allowed: ${all[*]}" >&2; exit 2; }
done
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
[[ -n $name ]] || { echo "no GPU: nvidia-smi names none" >&2; exit 2; }
gpu=$(tr '[:upper:]' '[:lower:]' <<<"$name" | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-//; s/-$//')
out=${OUT:-bench/results/$gpu}
mkdir -p "$out"
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET

# Tests compile a kernel each: many processes where pytest-xdist is there.
workers=$(python3 -c 'import xdist, os; print(f"-n{min(12, os.cpu_count())}")' 2>/dev/null)

bench() { # FILE RECORD OPTION...
    local file=$1 record=$2
    shift 2
    python3 -m pytest "bench/$file" --benchmark-enable -p no:xdist "$@" --record "$out/$record.json"
}

check() { # every test that touches the device, and no other
    # shellcheck disable=SC2086 # no option where there is no xdist
    timeout -k 10 480 env OMP_NUM_THREADS=2 python3 -m pytest tests -m gpu $workers --durations 10
}

sanitize() {
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer: not installed, not run"; return 0; }
    # Compiled first, at full speed. Every tensor gets memory of its own, so that none has room behind it.
    python3 -m bench.sweep && PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 10 420 \
        compute-sanitizer --tool memcheck --error-exitcode 9 python3 -m bench.sweep
}

tune() {
    local table=kernels/drowsy_kernels/tuned/$gpu.json
    [[ -e $table ]] && cp "$table" "$out/$gpu.json"
    python3 -m bench.tune --missing --seconds 430 --out "$out/$gpu.json"
    local status=$?
    [[ -e $out/$gpu.json ]] && cp "$out/$gpu.json" "$table"
    return $status
}

layers() { bench test_layers.py layers -m core --deadline 430 --inductor-seconds 0; }
inductor() { bench test_layers.py inductor -m core -k test_dense --deadline 400; }
networks() { bench test_networks.py networks -m core --deadline 400 --inductor-seconds "${INDUCTOR_SECONDS:-150}"; }
overheads() { bench test_overheads.py overheads --deadline 400; }
report() { python3 -m bench.report "$out"; }

status=0
for stage in "${stages[@]}"; do
    echo "== $stage on $name: $(date -u +%H:%M:%S)"
    "$stage" 2>&1 | tee -a "$out/session.log" || { status=1; echo "== $stage failed"; }
done
exit $status
