# shellcheck shell=bash
# What every script of this folder sources: the environment, the ranks, and what becomes of a job
# when its training ends. README.md explains the variables.

set -uo pipefail
trap : TERM USR1 # The steps stop and save; this shell lives on to put the job back.

fail() {
    echo "error: $*" >&2
    exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail "no Slurm job; submit with sbatch"
ROOT=${ROOT:-$SLURM_SUBMIT_DIR}
cd "$ROOT" || fail "ROOT: $ROOT: no such folder"
[[ -f stack/__main__.py ]] ||
    fail "ROOT: $ROOT: not the repository; submit from there, or set ROOT"

# --- The environment -------------------------------------------------------------------------

if [[ -n ${MODULES:-} ]]; then
    set +u # Modules' own scripts take unset variables for empty.
    # shellcheck disable=SC2086 # Several names.
    module load $MODULES || fail "MODULES: $MODULES: module load failed"
    set -u
fi

export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}
BOX=()      # What a command runs inside of,
SRUN_BOX=() # or what srun is told to run it inside of.
case ${CONTAINER:-} in
"")
    VENV=${VENV:-$ROOT/.venv}
    [[ -x $VENV/bin/python ]] || fail "VENV: $VENV: no bin/python; see slurm/README.md, Install"
    PATH=$VENV/bin:$PATH
    ;;
*.sif)
    [[ -f $CONTAINER ]] || fail "CONTAINER: $CONTAINER: no such file; see slurm/README.md, Install"
    BOX=(apptainer exec --nv --bind "$ROOT,$HF_HOME${MOUNTS:+,$MOUNTS}" --pwd "$ROOT" "$CONTAINER")
    ;;
*)
    SRUN_BOX=(--container-image="$CONTAINER" --container-workdir="$ROOT"
        --container-mounts="$ROOT:$ROOT,$HF_HOME:$HF_HOME${MOUNTS:+,$MOUNTS}")
    ;;
esac

export HF_HUB_OFFLINE=1 # Nodes ask no hub: what is missing, `stack fetch` brings from a login node.
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 # A crash leaves its stack in the rank's log.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

# Ranks meet on the first node, where this shell runs, at a port that other jobs do not have.
MASTER_ADDR=${MASTER_ADDR:-$(hostname)}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}
export MASTER_ADDR MASTER_PORT

export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # Its errors name host and peer.
# A collective that hangs ends in an error (after parallel.timeout), not in silence.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# Under sbatch --export=... srun would hand on what was named there only, and none of the above.
unset SLURM_EXPORT_ENV

# --- Ranks -----------------------------------------------------------------------------------

# once COMMAND...: run it on the first node, in the environment.
once() {
    if ((${#SRUN_BOX[@]})); then
        srun --nodes=1 --ntasks=1 --overlap "${SRUN_BOX[@]}" "$@"
    else
        "${BOX[@]}" "$@"
    fi
}

# to_the_end COMMAND...: run it on the first node; when the job's time is nearly over, which Slurm
# tells this shell (--signal=B:USR1@...), put the job back. What was written stays.
to_the_end() {
    local child status
    trap 'echo "the time is up; put back" >&2; patiently scontrol requeue "$SLURM_JOB_ID"' USR1
    once "$@" &
    child=$!
    wait "$child"
    status=$?
    while kill -0 "$child" 2> /dev/null; do # It was a signal that ended the waiting.
        wait "$child"
        status=$?
    done
    trap : USR1
    return "$status"
}

# ranks LOGS COMMAND...: run it as one task a rank, each with a log of its own in a folder.
ranks() {
    local logs=$1
    shift
    mkdir -p "$logs" || fail "$logs: cannot be made"
    echo "$(date -Is) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, logs in $logs"
    # Once a rank has ended, the others have GRACE seconds to say why and end; then they are killed.
    # Killed at once, they could not tell.
    srun --kill-on-bad-exit=0 --wait="${GRACE:-60}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --output="$logs/rank-%t.log" "${SRUN_BOX[@]}" "${BOX[@]}" bash slurm/rank.sh "$@"
}

# settle RECIPE [field=value...]: find the run's folder, OUT, and what to say of it, FIELDS.
settle() {
    local recipe=$1 field
    shift
    [[ -f $recipe ]] || fail "RECIPE: $recipe: no such file"
    OUT=${OUT:-runs/$(basename "$recipe" .yaml)}
    for field in "$@"; do
        [[ $field == out=* ]] && OUT=${field#out=}
    done
    FIELDS=()
    [[ -n ${TEACHER:-} ]] && FIELDS+=("teacher.path=$TEACHER")
    [[ -n ${DATA:-} ]] && FIELDS+=("data.folders=[$DATA]")
    FIELDS+=("$@" "out=$OUT")
}

# --- Jobs ------------------------------------------------------------------------------------

# train RECIPE [field=value...]: distil on all ranks, on from where an earlier job came to; then put
# the job back into the queue, if it was stopped or lost a rank, and makes progress.
train() {
    local recipe=$1 logs status state
    settle "$@"
    local limits=(--max-crashes "${MAX_CRASHES:-3}" --max-stops "${MAX_STOPS:-20}")
    once python -m stack job begin "$OUT" "${limits[@]}" || exit 2
    logs=$OUT/logs/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
    ranks "$logs" python -m stack distill "$recipe" "${FIELDS[@]}" --resume
    status=$?
    tell "$logs"
    # A job that Slurm is ending (scancel) is not RUNNING any more.
    state=$(patiently scontrol show job -o "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*')
    state=${state#JobState=}
    if once python -m stack job end "$OUT" --status "$status" --state "$state" "${limits[@]}"; then
        if patiently scontrol requeue "$SLURM_JOB_ID"; then
            for _ in {1..120}; do sleep 1; done # Until Slurm ends this shell.
            exit "$status"
        fi
        once python -m stack job end "$OUT" --status "$status" --state REFUSED "${limits[@]}"
    fi
    exit "$status"
}

# doctor RECIPE [field=value...]: stack doctor on all ranks; its findings are the job's output.
doctor() {
    local recipe=$1 logs status
    settle "$@"
    logs=$OUT/logs/$SLURM_JOB_ID-doctor
    ranks "$logs" python -m stack doctor "$recipe" "${FIELDS[@]}"
    status=$?
    cat "$logs/rank-0.log"
    tell "$logs"
    exit "$status"
}

# tell LOGS: the errors in ranks' logs, the most frequent first; a traceback's is its last line.
tell() {
    cat "$1"/rank-*.log | grep -E '^(\[rank[0-9]+\]: )?([A-Za-z_.]*Error|error): ' |
        sort | uniq -c | sort -rn | head -5 >&2
}

# patiently COMMAND...: again for some minutes while it fails, as Slurm's controller is away at times.
patiently() {
    local try
    for try in 1 2 3 4 5; do
        "$@" && return
        ((try < 5)) && sleep "${PAUSE:-30}"
    done
    return 1
}
