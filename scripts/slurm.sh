# shellcheck shell=bash
# Sourced by the sbatch scripts after setup.sh.

# until_the_limit COMMAND...: runs it as a job step. Slurm signals USR1 before the time limit: then the step's processes get
# SIGTERM, save and end, and the job is queued again. A job that is cancelled, or fails, is not. Ends the script.
until_the_limit() {
  local status=0
  stopped=
  trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to the processes, not to this script
  srun --kill-on-bad-exit=0 "$@" &
  wait $! || status=$?
  if [ -n "$stopped" ]; then # the signal ended that wait
    status=0
    wait $! || status=$?
  fi
  if [ -n "$stopped" ] && [ "$status" != 0 ]; then
    echo "stopped before the time limit; queued again"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}
