# shellcheck shell=bash
# What every script of this folder sources: the environment, the ranks, and what becomes of a job
# when its training ends. README.md explains the variables.

set -uo pipefail
signalled=0 late=0
trap signalled=1 TERM USR1 # The steps stop and save; this shell lives on to put the job back.

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
LOCAL_SCRATCH=${LOCAL_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}
case ${CONTAINER:-} in
"")
    VENV=${VENV:-$ROOT/.venv}
    [[ -x $VENV/bin/python ]] || fail "VENV: $VENV: no bin/python; see slurm/README.md, Install"
    PATH=$VENV/bin:$PATH
    ;;
*.sif)
    [[ -f $CONTAINER ]] || fail "CONTAINER: $CONTAINER: no such file; see slurm/README.md, Install"
    BOX=(apptainer exec --nv --bind "$ROOT,$HF_HOME,$LOCAL_SCRATCH${MOUNTS:+,$MOUNTS}"
        --pwd "$ROOT" "$CONTAINER")
    ;;
*)
    mounts=$ROOT:$ROOT,$HF_HOME:$HF_HOME,$LOCAL_SCRATCH:$LOCAL_SCRATCH
    SRUN_BOX=(--container-image="$CONTAINER" --container-workdir="$ROOT"
        --container-mounts="$mounts${MOUNTS:+,$MOUNTS}")
    ;;
esac

# On the disk of each node: temporary files, and what compilers make, for all jobs of a user.
export TMPDIR=$LOCAL_SCRATCH LOCAL_CACHES=$LOCAL_SCRATCH/f-distill-$UID
make=(mkdir -p "$TMPDIR")
if ((${#SRUN_BOX[@]})); then # pyxis mounts it, on every node, before anything runs there.
    make=(srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --overlap
        bash -c 'trap "" TERM USR1; exec "$@"' - "${make[@]}")
fi
"${make[@]}" || fail "LOCAL_SCRATCH: $LOCAL_SCRATCH: cannot be made"
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$LOCAL_CACHES/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$LOCAL_CACHES/inductor}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$LOCAL_CACHES/extensions}

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

RESTART=${SLURM_RESTART_COUNT:-0}
# The number of an array's last task is also the array's: of all its tasks, and not to be put back.
JOB=$SLURM_JOB_ID
[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

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

# outlast COMMAND...: run it and wait for its end, whatever signals this shell gets meanwhile; its
# status, or 143 if the clock rang first.
outlast() {
    local child status
    "$@" &
    child=$!
    while :; do # A signal ends the waiting, not what is waited for.
        signalled=0
        wait "$child"
        status=$?
        ((late && signalled)) && return 143
        ((signalled)) || return "$status"
    done
}

# to_the_end COMMAND...: run it on the first node; when the job's time is nearly over, which Slurm
# tells this shell (--signal=B:USR1@...), put the job back. What was written stays.
to_the_end() {
    local status
    trap 'signalled=1; echo "the time is up" >&2; unnoted && patiently put_back' USR1
    outlast once "$@"
    status=$?
    trap signalled=1 USR1
    return "$status"
}

# clock: rings (SIGALRM) in this shell in the last minute of the job's time, which may be changed.
clock() {
    local left part='([0-9]+)'
    while :; do
        left=$(squeue -h -o %L -j "$SLURM_JOB_ID")
        if [[ ${left/INVALID/0:0} =~ ^($part-)?($part:)?$part:$part$ ]]; then # Not UNLIMITED.
            left=$((10#0${BASH_REMATCH[2]} * 24 + 10#0${BASH_REMATCH[4]}))
            left=$(((left * 60 + 10#${BASH_REMATCH[5]}) * 60 + 10#${BASH_REMATCH[6]}))
            ((left > 60)) || kill -ALRM $$
        fi
        sleep 15
    done 2> /dev/null
}

# ranks LOGS COMMAND...: run it as one task a rank, each with a log and its status in a folder.
# In the last minute of the job's time it waits for them no longer; then late is 1.
ranks() {
    local status clock
    export LOGS=$1
    shift
    mkdir -p "$LOGS" || fail "$LOGS: cannot be made"
    echo "$(date -Is) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, logs in $LOGS"
    # Once a rank has ended, the others have GRACE seconds to say why and end; then they are killed.
    # Killed at once (HASTE), they could not tell.
    trap 'signalled=1 late=1' ALRM
    clock &
    clock=$!
    outlast srun --kill-on-bad-exit="${HASTE:-0}" --wait="${GRACE:-60}" \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --output="$LOGS/rank-%t.log" \
        "${SRUN_BOX[@]}" bash slurm/rank.sh "${BOX[@]}" "$@"
    status=$?
    { kill "$clock" && wait "$clock"; } 2> /dev/null # Without bash's word that it was ended.
    trap '' ALRM
    ((late)) && echo "the time is nearly over, and ranks have not ended" >&2
    return "$status"
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
    [[ -n ${DATA:-} ]] && FIELDS+=("data.folders=['${DATA//\'/\'\'}']") # As YAML quotes it.
    FIELDS+=("$@" "out=$OUT")
}

# --- Jobs ------------------------------------------------------------------------------------

# train RECIPE [field=value...]: distil on all ranks, on from where an earlier job came to.
train() {
    local recipe=$1 field
    for field in "${@:2}"; do
        [[ $field =~ ^[a-z][a-z0-9_.]*= ]] ||
            fail "$field: not field=value, and every start would do it again; to go on from an" \
                "earlier checkpoint, move the later ones out of OUT/checkpoints"
    done
    settle "$@"
    work "$OUT" python -m stack distill "$recipe" "${FIELDS[@]}" --resume
}

# work NOTES COMMAND...: run it on all ranks, with logs in OUT; then put the job back into the
# queue, if it was stopped or lost a rank, and makes progress, which the folder NOTES tells.
work() {
    local notes=$1 logs=$OUT/logs/$SLURM_JOB_ID-$RESTART status decided STATE=""
    local limits=(--max-crashes "${MAX_CRASHES:-3}" --max-stops "${MAX_STOPS:-20}")
    shift
    patiently ask "$notes"
    if ! patiently note begin "$notes" "${limits[@]}"; then
        unnoted && back_and_exit 1
        exit 1
    fi
    ((decided)) && exit "$decided"
    ranks "$logs" "$@"
    status=$?
    tell "$logs"
    if ((late)); then look; else patiently look; fi
    ((late)) && [[ $STATE == RUNNING ]] && STATE=LATE
    local how=(--status "$status" --ranks "$logs" "${limits[@]}")
    if patiently note end "$notes" "${how[@]}" --state "$STATE"; then
        if ((decided == 0)); then
            back_and_exit "$status"
            note end "$notes" "${how[@]}" --state REFUSED
        fi
    elif ((status)) && unnoted; then
        back_and_exit "$status"
    fi
    exit "$status"
}

# doctor RECIPE [field=value...]: stack doctor on all ranks; its findings are the job's output.
doctor() {
    local recipe=$1 logs status
    local GRACE=300 # Its first rank waits for the others, says who is missing, and ends.
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

# ask NOTES: which jobs that a run's notes tell of Slurm has no more, for `stack job begin`.
ask() {
    local noted had
    noted=$(grep -oE '"job": "[0-9]+"' "$1/jobs.jsonl" 2> /dev/null | grep -oE '[0-9]+' | sort -u)
    # shellcheck disable=SC2086 # Several. This one is among them: of none it knows, it would fail.
    had=$(squeue -h -o %A -j "$(printf '%s,' $noted)$SLURM_JOB_ID") || return 1
    JOBS_GONE=$(comm -23 <(echo "$noted") <(sort <<< "$had"))
    export JOBS_GONE
}

# note PART...: `stack job PART`, whatever signals come, also where it is a step of Slurm's. What it
# says, 0 or 2, goes into decided; it fails if it could not say.
note() {
    once bash -c 'trap "" TERM USR1; exec "$@"' - python -m stack job "$@"
    decided=$?
    ((decided == 0 || decided == 2))
}

# unnoted: whether a job may be put back that has no notes on its starts. (Where a trap may call
# it, a function returns a number: without one, bash returns what came before the trap.)
unnoted() {
    ((RESTART < ${MAX_STOPS:-20})) && return 0
    echo "error: job $JOB: has begun anew $RESTART times (MAX_STOPS); submit it again" >&2
    return 1
}

# look: what Slurm has of this job; its state into STATE, which is not RUNNING any more where Slurm
# is ending it (scancel), and TIMEOUT where that is for its time, after which it takes it back. Slurm
# begins a job anew whose first node it takes for lost, though this shell may live on there: then it
# goes without a word, or it would put back the new start.
look() {
    local told
    told=$(scontrol show job -o "$JOB") || return 1
    [[ $told =~ \ JobState=([A-Z_]+) ]] && STATE=${BASH_REMATCH[1]}
    [[ $told == *\ Reason=TimeLimit\ * ]] && STATE=TIMEOUT
    if [[ $told =~ \ Restarts=([0-9]+) && ${BASH_REMATCH[1]} != "$RESTART" ]] ||
        [[ $told =~ \ BatchHost=([^ ]+) && ${BASH_REMATCH[1]} != "$SLURMD_NODENAME" ]]; then
        echo "job $JOB has begun anew without this node; its start $RESTART goes" >&2
        exit 0
    fi
}

# put_back: into the queue, unless it is not this start's any more.
put_back() {
    look && scontrol requeue "$JOB"
}

# back_and_exit STATUS: put the job back and leave; returns if Slurm does not take it.
back_and_exit() {
    patiently put_back || return 1
    for _ in {1..120}; do sleep 1; done # Until Slurm ends this shell.
    exit "$1"
}

# patiently COMMAND...: again for two minutes while it fails: Slurm's controller is away at times.
patiently() {
    local try
    for try in 1 2 3 4 5; do
        "$@" && return 0
        ((try < 5)) && sleep "${REQUEUE_PAUSE:-30}"
    done
    return 1
}
