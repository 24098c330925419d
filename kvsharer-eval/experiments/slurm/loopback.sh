#!/bin/bash
# A Slurm cluster of one node on this machine's loopback, to try array.sbatch without a real one.
#
#     loopback.sh start DIR    start the daemons, with their settings, state and logs in DIR
#     loopback.sh stop DIR     stop them; DIR stays, for its logs
#
# After a start, point Slurm's commands at the cluster: export SLURM_CONF=DIR/slurm.conf
# It has 2 CPUs unless CPUS says otherwise, be they real or not. Needs the Debian packages
# slurm-wlm and munge, and neither systemd nor cgroups. Nothing in /etc is read or changed. DIR's
# parents must not be writable by others, except with the sticky bit as in /tmp: munged checks.

set -euo pipefail

if [[ $# -ne 2 || ($1 != start && $1 != stop) ]]; then
    echo "usage: loopback.sh start DIR | stop DIR" >&2
    exit 2
fi
DIR=$(realpath -m -- "$2")
PATH=$PATH:/usr/sbin
export SLURM_CONF=$DIR/slurm.conf

# Stops the daemons whose pid files are in DIR, and waits until they are gone.
stop() {
    local daemon pid
    for daemon in slurmd slurmctld munged; do
        [[ -s $DIR/$daemon.pid ]] || continue
        pid=$(<"$DIR/$daemon.pid")
        # The process may have died and its number have gone to another.
        if grep -qs "^$daemon" "/proc/$pid/comm"; then
            kill "$pid"
            timeout 30 tail --pid="$pid" -f /dev/null || echo "$daemon ($pid) did not stop" >&2
        fi
        rm -f "$DIR/$daemon.pid"
    done
}

if [[ $1 == stop ]]; then
    if [[ -s $DIR/slurmctld.pid ]]; then
        # Jobs outlive slurmd, so end them first.
        timeout 10 scancel --user="$(id -un)" || true
        for ((i = 0; i < 30; i++)); do
            [[ -n $(timeout 10 squeue --noheader) ]] || break
            sleep 1
        done
    fi
    stop
    exit
fi

if compgen -G "$DIR/*.pid" >/dev/null; then
    echo "$DIR has a running cluster: stop it first" >&2
    exit 1
fi
mkdir -p "$DIR"/{munge,state,spool}
chmod 755 "$DIR" "$DIR/munge"

# The node is named after the host, since slurmd looks its own name up in the settings.
HOST=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-6817}
SlurmdPort=${SLURMD_PORT:-6818}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
KillWait=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.log
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=${CPUS:-2} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

# A start that fails leaves no daemon behind.
trap stop EXIT

[[ -s $DIR/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
munged --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" --pid-file="$DIR/munged.pid" \
    --seed-file="$DIR/munge/seed" --log-file="$DIR/munge/log"
slurmctld
slurmd

for ((i = 0; i < 30; i++)); do
    if [[ $(timeout 10 sinfo --noheader --format=%T 2>/dev/null) == idle ]]; then
        trap - EXIT
        sinfo
        echo "export SLURM_CONF=$SLURM_CONF"
        exit
    fi
    sleep 1
done
echo "the node did not become idle: see the logs in $DIR" >&2
exit 1
