#!/usr/bin/env bash
# One task as one rank: torch's names for what Slurm says, folders on the node's disk, the command.
# How it ends is left in LOGS: of all ranks srun tells the highest status only.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
[[ -z ${SLURM_NTASKS_PER_NODE:-} ]] || export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

mkdir -p "$TMPDIR"
mkdir -m 700 "$LOCAL_CACHES" 2> /dev/null # Or it is there.
if [[ ! -O $LOCAL_CACHES ]]; then # Who owns it could slip in code that compilers' caches run.
    echo "error: LOCAL_SCRATCH: $(hostname): $LOCAL_CACHES: cannot be made, or is another's" >&2
    exit 2
fi

# Slurm may signal this shell alone (proctrack/cgroup), so it hands signals on. It cannot wait for
# the status itself: bash loses that of a process that ends while a trap runs.
file=$LOGS/rank-$RANK.status
(
    trap : TERM USR1 # The command does not inherit this.
    "$@"
    echo "$?" > "$file"
) &
child=$!
commands=/proc/$child/task/$child/children
trap '{ kill -TERM $(< "$commands"); } 2> /dev/null' TERM
trap '{ kill -USR1 $(< "$commands"); } 2> /dev/null' USR1
while kill -0 "$child" 2> /dev/null; do wait "$child"; done
status=$(cat "$file") || status=137
exit "$status"
