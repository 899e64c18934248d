#!/usr/bin/env bash
# scripts/slurm/one_node_cluster.sh COMMAND [ARGUMENTS...]: runs COMMAND beside a Slurm of this machine alone, which is there
# for its time only: to try sbatch files before they go to a real cluster. Needs root and Debian's slurm-wlm and munge
# (apt-get install slurm-wlm munge). All daemons listen on the loopback; their state and logs are in a scratch folder.
#
#   scripts/slurm/one_node_cluster.sh sbatch --wait --ntasks=2 scripts/slurm/demo.sbatch demo-slurm --set trainer.num_steps=20
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: scripts/slurm/one_node_cluster.sh COMMAND [ARGUMENTS...]" >&2; exit 2; }
for tool in munged slurmctld slurmd sbatch; do
  PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null ||
    { echo "one_node_cluster.sh: no $tool here; apt-get install slurm-wlm munge" >&2; exit 2; }
done
[[ $(id -u) == 0 ]] || { echo "one_node_cluster.sh: Slurm's daemons want root" >&2; exit 2; }
PATH=$PATH:/usr/sbin

scratch=$(mktemp -d)
chmod 755 "$scratch"
mkdir "$scratch"/{state,spool,munge}
daemons=()
cleanup() {
  kill "${daemons[@]}" 2>/dev/null || true
  wait "${daemons[@]}" 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
host=$(hostname -s)
head -c 1024 /dev/urandom >"$scratch/munge/key"
chmod 600 "$scratch/munge/key"
cat >"$scratch/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$scratch/munge/socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
MinJobAge=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
echo "CgroupAutomount=no" >"$scratch/cgroup.conf"
export SLURM_CONF=$scratch/slurm.conf

munged --foreground --key-file="$scratch/munge/key" --socket="$scratch/munge/socket" --pid-file="$scratch/munge/pid" \
  --log-file="$scratch/munge/log" --seed-file="$scratch/munge/seed" --force >"$scratch/munged.out" 2>&1 &
daemons+=($!)
for _ in $(seq 50); do [[ -S $scratch/munge/socket ]] && break; sleep .2; done
slurmctld -D -f "$SLURM_CONF" >"$scratch/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D -f "$SLURM_CONF" -N "$host" >"$scratch/slurmd.log" 2>&1 &
daemons+=($!)
for _ in $(seq 100); do
  [[ $(sinfo -h -o %T 2>/dev/null) == idle ]] && break
  sleep .3
done
if [[ $(sinfo -h -o %T 2>/dev/null) != idle ]]; then
  echo "one_node_cluster.sh: Slurm did not come up; its last lines:" >&2
  tail -n 5 "$scratch"/munged.out "$scratch"/slurmctld.log "$scratch"/slurmd.log >&2
  exit 1
fi
"$@"
