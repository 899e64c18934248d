# Sourced by the sbatch files: end_or_requeue CODE, for what srun gave back. A stage that was stopped by a signal after saving
# (3), or lost a rank (1, or its signal), is queued again, MOST_RESTARTS (20) times at most, and goes on from its last good
# checkpoint; what was refused (2) would be again.
end_or_requeue() {
  [[ $1 == 0 ]] && return
  if [[ $1 != 2 && ${SLURM_RESTART_COUNT:-0} -lt ${MOST_RESTARTS:-20} ]]; then
    echo "sbatch: ended with exit code $1; queued again" >&2
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # until Slurm ends this script
  fi
  exit "$1"
}
