#!/usr/bin/env bash
# up.sh FOLDER: start munge, slurmctld and two slurmd without systemd; about 2 s. Needs root.
# Prints what to export. Installs slurm-wlm and munge through apt where they are missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(realpath -m "$1")

[ "$(id -u)" = 0 ] || { echo "up.sh: Slurm's daemons need root; this is $(id -un)" >&2; exit 3; }
missing=0
for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null || missing=1
done
if [ "$missing" = 1 ]; then
    echo "up.sh: installing slurm-wlm and munge" >&2
    apt=(apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 -qq)
    {
        "${apt[@]}" update
        DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y \
            --no-install-recommends slurm-wlm munge
    } >&2 || { echo "up.sh: slurm-wlm and munge could not be installed" >&2; exit 3; }
fi

mkdir -p "$folder"/{state,slurmd.n1,slurmd.n2} /run/munge
chown munge: /run/munge
chmod 755 /run/munge
sed "s#@FOLDER@#$folder#g" "$here/slurm.conf.in" >"$folder/slurm.conf"
cp "$here/gres.conf" "$folder/"
if [ ! -f /etc/munge/munge.key ]; then
    head -c 1024 /dev/urandom >/etc/munge/munge.key
    chown munge: /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
fi
pgrep -x munged >/dev/null || setpriv --reuid munge --regid munge --clear-groups munged

# The daemons must not hold the pipe of whoever reads our output.
export SLURM_CONF=$folder/slurm.conf
{
    slurmctld -c
    slurmd -N n1
    slurmd -N n2
} >"$folder/start.log" 2>&1 </dev/null
for _ in $(seq 60); do
    [ "$(sinfo -h -N -o %T 2>/dev/null | sort -u)" = idle ] && { echo "SLURM_CONF=$SLURM_CONF"; exit 0; }
    sleep 0.5
done
echo "up.sh: the nodes did not become idle:" >&2
{ sinfo -N -l; cat "$folder"/*.log; } >&2
exit 1
