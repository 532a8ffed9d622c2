# Settings for A800 (and A100) machines, each with its reason; sourced by the other files here.
# One that is set already stays as it is; XLA_FLAGS are added to.

# Programs find the repository from any folder: configs/ and tools/ are not installed.
export PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
# JAX takes 75% by default; NCCL's buffers and the CUDA context need about 5 of 80 GB, so the rest is not left unused.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.93}"
# A run that is started again compiles nothing twice, if this folder is shared by the machines.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${HOME:-/tmp}/.cache/currreft_jax/xla}"
# FSDP gathers the next layer's weights while this layer computes.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# NVLink SHARP is of the H100's switches; NCCL need not look for it.
export NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-0}"
# What NCCL cannot do is said, once; INFO tells which links it takes.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# NumPy's products take a thread for each core by default, and would compete with the threads that read images.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
# JAX's logs of C++ below errors hide the lines that matter.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
# Lines reach the log when they are written, those before a crash too.
export PYTHONUNBUFFERED=1
