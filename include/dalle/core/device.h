// Where to compute and with how many threads.
#pragma once

#include <string>

#include "dalle/core/tensor.h"

namespace dalle {

/// "auto" (the first GPU where there is one and the build has CUDA, else the CPU), "cpu", "cuda" or "cuda:INDEX".
/// On a GPU, f32 convolutions are f32 from then on: not TF32, LibTorch's default.
/// Throws ConfigError for anything else and for devices that this build or machine lacks.
at::Device select_device(const std::string& name);

/// A tensor of the host on `device`. On a GPU the copy goes through pinned memory and is only queued: unlike Tensor::to it
/// does not wait for the work before it. What is on another device already is copied as `to` does.
Tensor to_device(const Tensor& tensor, at::Device device);

/// Number of threads for intra-operator work; 0 keeps the default (OMP_NUM_THREADS or one per core).
void set_num_threads(int num_threads);

/// Keeps freed memory in the process and backs large tensors with huge pages where the system allows it on request. A
/// training step frees and takes the same large blocks again and again; giving them back to the kernel each time costs a
/// fifth of a small model's step in page faults. Call once, before the first tensor.
void keep_freed_memory();

/// From now on GPU operators give the same bits each time they are given the same, where LibTorch has a choice: cuDNN's
/// convolutions, attention, sums at indices, cuBLAS. To be called before the first of them. Of those that LibTorch calls not
/// deterministic we use max pooling, whose windows do not overlap here: then it is.
void use_deterministic_algorithms();

/// True where the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX-BF16).
bool cpu_has_bf16();
bool cpu_has_amx();

/// One line for the log: device name, instruction sets, threads.
std::string describe_device(at::Device device);

}  // namespace dalle
