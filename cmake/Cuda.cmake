# CUDA: nvcc, the libraries of LibTorch that a CUDA build needs, and NCCL. Included by Libtorch.cmake, after dalle_torch.
#
# nvcc comes from a toolkit on the PATH, in CUDAToolkit_ROOT or /usr/local/cuda, else from the wheels that
# scripts/setup.sh installs beside LibTorch (site-packages/nvidia/cu13).
cmake_path(GET TORCH_ROOT PARENT_PATH DALLE_SITE_PACKAGES)
set(DALLE_CUDA_WHEEL ${DALLE_SITE_PACKAGES}/nvidia/cu13)
if(NOT CMAKE_CUDA_COMPILER)
  find_program(DALLE_NVCC NAMES $ENV{CUDACXX} nvcc HINTS ${CUDAToolkit_ROOT}/bin ENV CUDA_HOME
    PATHS /usr/local/cuda/bin ${DALLE_CUDA_WHEEL}/bin)
  if(NOT DALLE_NVCC)
    message(FATAL_ERROR "DALLE_WITH_CUDA needs nvcc. Run scripts/setup.sh, or set CUDACXX to a CUDA 13 nvcc.")
  endif()
  set(CMAKE_CUDA_COMPILER ${DALLE_NVCC})
endif()
# The toolkit's root, asked of nvcc itself: what is called nvcc may be a link or a script elsewhere.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} -dryrun -c root.cu ERROR_VARIABLE dryrun OUTPUT_QUIET)
if(NOT dryrun MATCHES "#\\$ TOP=([^\n]+)")
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} does not answer as nvcc does:\n${dryrun}")
endif()
file(REAL_PATH ${CMAKE_MATCH_1} DALLE_CUDA_ROOT)

# "8.0;9.0+PTX", as PyTorch's extensions spell it, or "80;90". CMake's own detection would need a GPU and, with
# CMake 3.25, fails for nvcc 13.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(architectures "80;90")
  if(DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    string(REGEX REPLACE "[ ,]+" ";" architectures "$ENV{TORCH_CUDA_ARCH_LIST}")
    string(REGEX REPLACE "\\.|\\+PTX" "" architectures "${architectures}")
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${architectures} CACHE STRING "compute capabilities to build for")
endif()
# CMake 3.25 does not know how to ask nvcc 13 for C++20; our kernels need 17 only.
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# One cudart per process: the shared one that LibTorch loads too.
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
if(EXISTS ${DALLE_CUDA_ROOT}/lib AND NOT EXISTS ${DALLE_CUDA_ROOT}/lib64)
  # nvcc looks for its libraries in lib64; the wheel keeps them in lib, libcudart.so.13 without the name that -lcudart
  # asks for. The compiler checks link cudart statically.
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)
  set(CMAKE_CUDA_FLAGS_INIT "-L${DALLE_CUDA_ROOT}/lib")
endif()
enable_language(CUDA)

find_library(DALLE_CUDART NAMES libcudart.so.13 cudart NO_DEFAULT_PATH REQUIRED
  HINTS ${DALLE_CUDA_WHEEL}/lib ${TORCH_ROOT}/lib ${DALLE_CUDA_ROOT}/lib64 ${DALLE_CUDA_ROOT}/lib)
find_path(DALLE_CUDA_INCLUDE cuda_runtime_api.h NO_DEFAULT_PATH REQUIRED
  HINTS ${DALLE_CUDA_ROOT}/include ${DALLE_CUDA_WHEEL}/include)
target_include_directories(dalle_torch SYSTEM INTERFACE ${DALLE_CUDA_INCLUDE})
# Nothing of ours names a symbol of libtorch_cuda; loading it is what registers the CUDA kernels.
target_link_libraries(dalle_torch INTERFACE -Wl,--push-state,--no-as-needed ${TORCH_ROOT}/lib/libtorch_cuda.so
  ${TORCH_ROOT}/lib/libc10_cuda.so ${DALLE_CUDART} -Wl,--pop-state)
cmake_path(GET DALLE_CUDART PARENT_PATH DALLE_CUDART_DIR)
target_link_options(dalle_torch INTERFACE -Wl,-rpath,${DALLE_CUDART_DIR})
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER}, architectures ${CMAKE_CUDA_ARCHITECTURES}, ${DALLE_CUDART}")

# NCCL: the wheel beside LibTorch, else the system's. ProcessGroupNCCL's header is empty without USE_C10D_NCCL.
if(DALLE_WITH_NCCL)
  find_path(NCCL_INCLUDE nccl.h HINTS ${DALLE_SITE_PACKAGES}/nvidia/nccl/include ${DALLE_CUDA_ROOT}/include REQUIRED)
  find_library(NCCL_LIBRARY NAMES libnccl.so.2 nccl REQUIRED
    HINTS ${DALLE_SITE_PACKAGES}/nvidia/nccl/lib ${DALLE_CUDA_ROOT}/lib64)
  add_library(dalle_nccl INTERFACE)
  target_include_directories(dalle_nccl SYSTEM INTERFACE ${NCCL_INCLUDE})
  target_compile_definitions(dalle_nccl INTERFACE USE_C10D_NCCL)
  target_link_libraries(dalle_nccl INTERFACE ${NCCL_LIBRARY})
  cmake_path(GET NCCL_LIBRARY PARENT_PATH NCCL_DIR)
  target_link_options(dalle_nccl INTERFACE -Wl,-rpath,${NCCL_DIR})
endif()
