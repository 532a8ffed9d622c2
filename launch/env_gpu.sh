# Settings for A800 (and A100) machines, with their reasons; sourced by the other scripts.
# A variable that is already set keeps its value; XLA_FLAGS are extended.

# configs/ and tools/ are not installed: this lets programs find them from any folder.
export PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
# JAX's default is 75%. NCCL's buffers and the CUDA context need about 5 of 80 GB, so more can go to arrays.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.93}"
# Gathers the next layer's weights (FSDP) while this layer computes.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# NVLink SHARP needs the H100's switches; NCCL need not look for them.
export NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-0}"
# NCCL logs warnings; INFO also logs the links that it uses.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# NumPy's matrix products use one thread per core by default, and would compete with the threads that read images.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
# C++ logs of JAX below errors hide the lines that matter.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
# Lines reach the log at once, also those before a crash.
export PYTHONUNBUFFERED=1
