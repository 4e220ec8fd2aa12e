# SPDX-License-Identifier: Apache-2.0
# Sourced: makes glibc keep freed memory, on machines without a GPU.
# Every step allocates the same large tensors. By default glibc returns them to the kernel and faults them in
# again, which can take longer than the arithmetic in a virtual machine: a step of the quickstart took 4 and
# 21 % less in two paired trials, the optimizer's step of Mask R-CNN with Focal-B a tenth.
if ! command -v nvidia-smi >/dev/null; then
    export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592}
fi
