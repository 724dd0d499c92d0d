#!/usr/bin/env bash
# A Slurm of one node for the tests, without systemd and cgroups: munged, slurmctld and slurmd, all below one folder. Root only.
#   slurm_local.sh install          apt-get the four packages
#   slurm_local.sh start            write the configuration, start, wait until the node is idle
#   slurm_local.sh stop             stop by the pids in the pid files
#   eval "$(slurm_local.sh env)"    SLURM_CONF for sbatch, srun, squeue ...
set -euo pipefail
D=${SLURM_LOCAL_DIR:-${TMPDIR:-/tmp}/slurm-local}
CPUS=${SLURM_LOCAL_CPUS:-8}          # may be more than the machine has
GPUS=${SLURM_LOCAL_GPUS:-2}          # pretended: files that stand for devices
ME=$(id -un); HOST=$(hostname -s)

install() {
  export DEBIAN_FRONTEND=noninteractive
  command -v slurmctld slurmd munged >/dev/null && return
  apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
}

conf() {
  mkdir -p "$D"/{state,spool,log,munge}
  chmod 0755 "$D" "$D"/munge; chmod 0700 "$D"/state
  [ -s "$D/munge/key" ] || (umask 077; head -c 1024 /dev/urandom > "$D/munge/key")
  : > "$D/plugstack.conf"; : > "$D/gres.conf"; local g=""
  if [ "$GPUS" -gt 0 ]; then
    for i in $(seq 0 $((GPUS-1))); do
      [ -c "$D/gpu$i" ] || { rm -f "$D/gpu$i"; mknod "$D/gpu$i" c 1 3; }   # a /dev/null by another name
    done
    echo "NodeName=$HOST Name=gpu File=$D/gpu[0-$((GPUS-1))]" > "$D/gres.conf"; g="Gres=gpu:$GPUS"
  fi
  echo "CgroupPlugin=cgroup/v1" > "$D/cgroup.conf"
  local mem; mem=$(awk '/MemTotal/{print int($2/1024*0.9)}' /proc/meminfo)
  cat > "$D/slurm.conf" <<C
ClusterName=local
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
# cred_expire (at least 5) is also how long a requeued job waits (120 s unless told)
AuthInfo=socket=$D/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=${SLURM_LOCAL_PORT:-16827}
SlurmdPort=$((${SLURM_LOCAL_PORT:-16827} + 1))
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.log
# nothing that needs cgroups, pmix or systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
PlugStackConfig=$D/plugstack.conf
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
MinJobAge=600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$mem $g State=UNKNOWN
PartitionName=low  Nodes=$HOST Default=YES PriorityTier=1  PreemptMode=REQUEUE GraceTime=5 MaxTime=INFINITE State=UP
PartitionName=high Nodes=$HOST Default=NO  PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
C
}

start() {
  conf
  export SLURM_CONF=$D/slurm.conf
  munged --force --key-file="$D/munge/key" --socket="$D/munge/socket" --pid-file="$D/munge/pid" \
         --log-file="$D/munge/log" --seed-file="$D/munge/seed"
  slurmctld -f "$SLURM_CONF" -i
  slurmd -f "$SLURM_CONF" -N "$HOST"
  for _ in $(seq 100); do
    timeout 2 sinfo -h -o %T 2>/dev/null | grep -qE 'idle|mixed' && { return; }
    sleep 0.1
  done
  echo "the node did not come up" >&2; tail -20 "$D"/log/*.log >&2; exit 1
}

stop() {
  for f in slurmd.pid slurmctld.pid munge/pid; do
    [ -s "$D/$f" ] || continue
    p=$(cat "$D/$f"); kill "$p" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
  done
}

case ${1:-} in
  install) install ;; start) start ;; stop) stop ;;
  env) echo "export SLURM_CONF=$D/slurm.conf" ;;
  *) sed -n 2,6p "$0"; exit 2 ;;
esac
