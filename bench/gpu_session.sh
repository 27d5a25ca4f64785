#!/usr/bin/env bash
# Everything that wants a GPU, the most valuable first:
#
#   bash bench/gpu_session.sh [--dry-run] [SECONDS] [STAGE ...]
#
#   networks   whole VGG-16 and ResNet-50 at rates 0 and 1/2: time and joules against eager torch
#   turn       a rate change in a captured graph
#   layers     VGG-16's and ResNet-50's 3x3 layers at rates 1/4, 1/2, 3/4, against their dense time
#   dense      ResNet-50, VGG-16 and CaffeNet layer by layer, nobody asleep, against cuDNN
#   check      the kernel and layer tests on CUDA tensors (no interpreter): every value of a
#              parameter once, the kernels' first, then combinations; as many as fit
#   streams    video: ResNet-18 and -50 in bands at 1/2 and 1/4 of the work, against the awake network
#   rest       whole networks at rates 1/4 and 3/4
#   overheads  maps, lists and fills
#   sanitize   compute-sanitizer's memcheck over a small sweep of every kernel, and tests of areas
#   autotune   whole networks dense, by torch.compile's max-autotune
#   inductor   the layers of ``dense`` by Inductor's search, as far as it gets
#   tune       the tuning table of this GPU; once complete it is used, and all is measured anew
#
# Without a stage: all, in this order. In SECONDS (default 2700) as many as fit: a stage gets its
# limit, or what is left; what did not fit is recorded as not measured. 600 are enough for the first
# four on a fresh machine. A second call goes on where the first stopped. Nothing wrong is timed,
# whatever the order: each way and each network is compared with float64 before its time is taken.
#
# Every call leaves a record and a log of its own in $OUT (default bench/results/GPU), named by GPU
# and time, and ends with the table of figures. What this machine has measured of the same kernels is
# remembered in ~/.cache/drowsy/bench. Needs no installation beyond torch, triton, pytest,
# pytest-benchmark and, for energy, nvidia-ml-py; set DROWSY_COMMIT where the checkout has no .git.
#
# --dry-run walks all of it on a machine without a GPU, launches nothing, and says how long each
# stage would take, by the model in bench/dry_run.py. It fails if a stage would not fit its limit.
# Python is the first `python3` on PATH.
set -uo pipefail
cd "$(dirname "$0")/.."
declare -A limit=(
    [networks]=210 [turn]=60 [layers]=250 [dense]=110 [check]=480 [streams]=260 [rest]=210
    [overheads]=200 [sanitize]=420 [autotune]=420 [inductor]=400 [tune]=470
)
stages=(networks turn layers dense check streams rest overheads sanitize autotune inductor tune)
budget=2700 dry=
[[ ${1:-} == --dry-run ]] && { dry=yes; shift; }
[[ ${1:-} =~ ^[0-9]+$ ]] && { budget=$1; shift; }
for stage in "$@"; do
    [[ -v limit[$stage] ]] || { echo "stage: got $stage, allowed: ${stages[*]}" >&2; exit 2; }
done
(($#)) && stages=("$@")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
[[ -n $dry ]] && name="none, dry run"
[[ -n $name ]] || { echo "no GPU: nvidia-smi names none" >&2; exit 2; }
gpu=$(tr '[:upper:]' '[:lower:]' <<<"$name" | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-//; s/-$//')
out=${OUT:-bench/results/$gpu} state=${XDG_CACHE_HOME:-$HOME/.cache}/drowsy/bench/$gpu
[[ -n $dry ]] && out=$work/out state=$work/state
mkdir -p "$out" "$state"
# A name of its own for every call: none overwrites another's.
call=$out/$gpu-$(date -u +%Y%m%dT%H%M%SZ) record=$work/record.json
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
code=$(find drowsy kernels tests -name '*.py' -exec sha256sum {} + | sort | sha256sum | head -c 12)
# A complete table of an earlier call, where the checkout is a fresh copy.
table=kernels/drowsy_kernels/tuned/$gpu.json
[[ -e $state/$gpu.json && ! -e $table ]] && cp "$state/$gpu.json" "$table"

# Tests compile a kernel each: many processes where pytest-xdist is there.
workers=$(python3 -c 'import xdist, os; print(f"-n{min(12, os.cpu_count())}")' 2>/dev/null)
[[ -n $dry ]] && workers=-n12

elapsed() { if [[ -n $dry ]]; then cat "$work/seconds" 2>/dev/null || echo 0; else echo "$SECONDS"; fi; }
left() { echo $((ends - $(elapsed) - ${1:-0})); } # of this stage, less what its last test may take

run() { # Python, cut at the stage's end
    if [[ -n $dry ]]; then
        python3 -m bench.dry_run "$work" "$(left)" "$@"
    else
        timeout -k 5 "$(left)" python3 -m "$@"
    fi
}

bench() { # SECONDS_OF_A_TEST FILE OPTION...
    local longest=$1 file=$2 status
    shift 2
    # A process that lost its GPU to an illegal access ends with 7: another goes on after that test.
    for _ in 1 2 3; do
        run pytest "bench/$file" --benchmark-enable -p no:xdist -p no:cacheprovider --record "$call.json" \
            --known "$out" --known "$state" --known "bench/results/$gpu" --deadline "$(left "$longest")" "$@"
        status=$?
        ((status == 7)) || break
    done
    [[ -e $call.json ]] && cp "$call.json" "$state/"
    # In a dry run, 5 says that something was left.
    ((status == 5)) && [[ -z $dry ]] && echo "nothing is left to measure" && return 0
    return $status
}

once() { # what passed with this code need not pass again
    local passed=$state/$1-$code status
    [[ -e $passed ]] && echo "$1: passed before" && return 0
    "$@"
    status=$?
    ((status == 0)) && touch "$passed"
    ((status == 5)) && echo "$1: the time was over" && return 0
    return $status
}

check() { # every test that touches the device, and no other
    # shellcheck disable=SC2086 # no option where there is no xdist
    OMP_NUM_THREADS=2 run pytest tests -m gpu $workers -p no:cacheprovider -p bench.checking \
        --deadline "$(left 30)" --durations 10
}

sanitize() {
    [[ -n $dry ]] || command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer: not installed, not run"; return 0; }
    # Compiled first, at full speed. Every tensor gets memory of its own, so that none has room behind it.
    run bench.sweep --compile 120 || return
    [[ -n $dry ]] && return
    checked() {
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 "$(left)" \
            compute-sanitizer --tool memcheck --error-exitcode 9 python3 -m "$@"
    }
    checked bench.sweep --seconds "$(left 120)" || return
    # Lists of areas, and what is written in place there: `check` has compiled these.
    checked pytest tests/kernels/test_listed_areas.py -p no:cacheprovider -p bench.checking --deadline "$(left 30)"
}

tune() {
    local draft=$state/$gpu.tuning.json status
    [[ -e $table && ! -e $draft ]] && cp "$table" "$draft"
    run bench.tune --missing --seconds "$(left 30)" --out "$draft"
    status=$?
    [[ -e $draft ]] && cp "$draft" "$out/$gpu.json"
    case $status in
        0) [[ -n $dry ]] || { cp "$draft" "$state/$gpu.json" && cp "$draft" "$table"; } ;;
        5) echo "the next call goes on; the table is used once it is complete" && return 0 ;;
        *) return $status ;;
    esac
}

networks() { bench 40 test_networks.py -m core -k "test_network and half"; }
turn() { bench 20 test_overheads.py -k test_turn; }
layers() { bench 15 test_layers.py -m core -k test_sleep; }
dense() { bench 10 test_layers.py -m core -k test_dense; }
streams() { bench 30 test_streams.py; }
rest() { bench 40 test_networks.py -m core -k "test_network and rest"; }
overheads() { bench 5 test_overheads.py -k "not test_turn"; }
autotune() { bench 200 test_networks.py -m core -k test_max_autotune; }
inductor() { bench 60 test_layers.py -m core -k test_inductor || (($? == 5)); }

status=0
for stage in "${stages[@]}"; do
    now=$(elapsed) ends=$((now + limit[$stage]))
    # Ten seconds are kept for the table of figures.
    ((ends <= budget - 10)) || ends=$((budget - 10))
    if ((ends - now < 30)); then
        echo "== $stage: not measured, $((budget - now)) s are left" | tee -a "$call.log"
        continue
    fi
    echo "== $stage on $name: $(date -u +%H:%M:%S), $((ends - now)) s" | tee -a "$call.log"
    case $stage in
        check | sanitize) once "$stage" ;;
        *) $stage ;;
    esac 2>&1 | tee -a "$call.log" || { status=1; echo "== $stage failed" | tee -a "$call.log"; }
done
python3 -m bench.report --figures "$out" 2>&1 | tee -a "$call.log"
exit $status
