#!/usr/bin/env bash
# One task as one rank: torch's names for what Slurm says, then the command.
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
exec "$@"
