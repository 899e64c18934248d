#include "dalle/core/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/util/Logging.h>
#include <malloc.h>

#include <cstdlib>
#include <thread>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle {

namespace {

/// LibTorch lets cuDNN round the operands of f32 convolutions to TF32's 10 bits; here f32 is f32.
at::Device without_tf32(at::Device device) {
  if (device.is_cuda()) at::globalContext().setAllowTF32CuDNN(false);
  return device;
}

bool has_capability(const std::string& name) {
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto found = capabilities.find(name);
  return found != capabilities.end() && found->second.isBool() && found->second.toBool();
}

}  // namespace

at::Device select_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  const bool has_cuda = at::hasCUDA() && at::detail::getCUDAHooks().deviceCount() > 0;
  if (name == "auto") return without_tf32(has_cuda ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU));
  if (name == "cuda" || name.starts_with("cuda:")) {
    if (!at::hasCUDA()) {
      throw ConfigError(Problem{"--device " + name, "", "no CUDA device that this build can use",
                                "build with the preset cuda and look at the driver (nvidia-smi), or use --device cpu"});
    }
    const size_t count = has_cuda ? static_cast<size_t>(at::detail::getCUDAHooks().deviceCount()) : 0;
    size_t used = 0;
    int index = 0;
    try {
      index = name == "cuda" ? 0 : std::stoi(name.substr(5), &used);
    } catch (const std::exception&) {
      index = -1;
    }
    if (index < 0 || (name != "cuda" && used != name.size() - 5) || static_cast<size_t>(index) >= count) {
      throw ConfigError(Problem{"--device", str("cuda:INDEX with an index below ", count), name, ""});
    }
    return without_tf32(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index)));
  }
  throw ConfigError(Problem{"--device", "auto, cpu, cuda or cuda:INDEX", "'" + name + "'", ""});
}

Tensor to_device(const Tensor& tensor, at::Device device) {
  if (device.is_cpu() || !tensor.is_cpu()) return tensor.to(device);
  return tensor.pin_memory().to(device, /*non_blocking=*/true);
}

void set_num_threads(int num_threads) {
  if (num_threads > 0) at::set_num_threads(num_threads);
}

void keep_freed_memory() {
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, -1);  // never
  ::mallopt(M_MXFAST, 0);           // fastbins would be merged again at each large request
  ::mallopt(M_TOP_PAD, 64 << 20);
  ::setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0);  // read by LibTorch's allocator
}

void use_deterministic_algorithms() {
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // read when cuBLAS starts
  auto& context = at::globalContext();
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
  // What it has no other form of is warned of and goes on; of what we call that is max pooling alone.
  context.setDeterministicAlgorithms(true, /*warn_only=*/true);
  context.setDeterministicFillUninitializedMemory(false);
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_ERROR;
}

bool cpu_has_bf16() { return has_capability("avx512_bf16") || cpu_has_amx(); }
bool cpu_has_amx() { return has_capability("amx_tile"); }

std::string describe_device(at::Device device) {
  if (device.is_cuda()) return device.str();
  const char* multiply = cpu_has_amx() ? "AMX bf16" : cpu_has_bf16() ? "AVX-512 bf16" : "no native bf16";
  return str("cpu, ", at::get_num_threads(), at::get_num_threads() == 1 ? " thread" : " threads", " of ",
             std::thread::hardware_concurrency(), ", ", multiply);
}

}  // namespace dalle
