# What the scripts beside it share. They source it; $jobs is the folder in which it is.
. "$jobs/environment.sh" || exit
export SLURM_EXPORT_ENV=ALL  # after sbatch --export=NONE srun would give the ranks nothing of this environment

asked= cancelled= progress= child=
trap ask USR1
trap 'cancelled=yes; ask' TERM  # of scancel; the time limit has sent USR1 long before

# Ask the ranks to stop with their state saved.
ask() {
    asked=yes
    [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null
}

# Remove what a start of this job that was killed has left in the memory of its nodes: MPICH names it after job and step,
# and trips over it. What a process still has open stays.
sweep() {
    srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -c '
        for file in $(find /dev/shm -maxdepth 1 -name "mpich_shm_*" -user "$(id -u)"); do
            grep -qsF "$file" /proc/[0-9]*/maps || rm -f "$file"
        done'
}

# train RANKS ARGUMENTS...: train on so many ranks; leaves the exit code in $code.
train() {
    local ranks=$1 run done=
    shift
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || [ "${launcher[0]}" != srun ] || sweep
    run=$(python -m mpinn train --where "$@")
    code=$?
    [ "$code" = 0 ] || return
    if [ -n "$asked" ]; then
        code=75
        return
    fi
    say "start $((${SLURM_RESTART_COUNT:-0} + 1)): $ranks ranks on $SLURM_JOB_NODELIST, $run"
    [ ! -e "$run/summary.json" ] || done=yes
    "${launcher[@]}" -n "$ranks" python -m mpinn train "$@" &
    child=$!
    wait "$child"
    while kill -0 "$child" 2>/dev/null; do  # a signal has ended the wait, not the ranks
        wait "$child"
    done
    wait "$child"
    code=$?
    child=
    if [ "$code" = 75 ] && [ -e "$run/requeue" ] || [ "$code" = 0 ] && [ -z "$done" ]; then
        progress=yes
    fi
}

# Requeue this job, or this task of an array, if it was stopped in time and has made progress; else leave with $code.
finish() {
    if [ "$code" = 75 ] && [ -z "$cancelled" ]; then
        if [ -z "$progress" ]; then
            say "stopped before it made any progress: not requeued"
        elif say "requeued" && scontrol requeue "$(this_job)"; then
            exit
        fi
    fi
    exit "$code"
}

say() {
    echo "== $(date '+%F %T') job $(this_job): $1"
}

# The last task of an array has the number of the whole array in SLURM_JOB_ID.
this_job() {
    echo "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
}
