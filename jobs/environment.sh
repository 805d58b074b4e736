# The only file here that depends on the site. The scripts beside it source it before they start anything.

# Modules and the Python environment. Without any, a job has the environment from which it was submitted.
# module load openmpi/5.0
# . ~/mpinn/bin/activate

# Threads of a rank: one rank for each core, or for each GPU with the cores that --cpus-per-task gives it.
export OMP_NUM_THREADS=1
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun no longer takes it from sbatch

# What starts the ranks: srun, with the interface of the MPI library (pmi2 for MPICH, pmix for Open MPI), or the mpirun of
# that library. Without --wait srun waits for ever for the other ranks of one that was killed.
case ${MPINN_LAUNCHER:-srun} in
    srun) launcher=(srun "--mpi=${SLURM_MPI_TYPE:-pmi2}" --wait=30) ;;
    *) launcher=("$MPINN_LAUNCHER") ;;
esac

# Transport: what the site's MPI library wants to be told, for example that it is to read the memory of GPUs.
# export MPICH_GPU_SUPPORT_ENABLED=1
# export UCX_TLS=rc,cuda_copy,cuda_ipc
