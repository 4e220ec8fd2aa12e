# SPDX-License-Identifier: Apache-2.0
# Sourced: lets glibc keep what it has, on machines without a GPU.
# Every step allocates the same large tensors. glibc would return them to the kernel and fault them in
# again, which in a virtual machine can take longer than the arithmetic: a step of the quickstart took 4 and
# 21 % less in two paired trials, the optimizer's step of Mask R-CNN with Focal-B a tenth.
if ! command -v nvidia-smi >/dev/null; then
    export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592}
fi
