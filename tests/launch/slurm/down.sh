#!/usr/bin/env bash
# down.sh FOLDER: cancel all jobs of the Slurm that up.sh started there, and stop its daemons.
set -uo pipefail
folder=$(realpath -m "$1")
export SLURM_CONF=$folder/slurm.conf
[ -f "$SLURM_CONF" ] || exit 0
timeout 10 scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 20); do
    [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
    sleep 0.5
done
# Only the processes whose ids were written there, never by name.
for file in "$folder"/slurmd.*.pid "$folder"/slurmctld.pid; do
    [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null
done
exit 0
