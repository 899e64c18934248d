# LibTorch as the target dalle_torch. Looked for, in this order, in: LIBTORCH (environment or -D), CMAKE_PREFIX_PATH,
# and the project's own .venv that scripts/setup.sh fills. The CPU build links libtorch_cpu alone, so that a process does
# not load the GPU libraries; the CUDA build adds libtorch_cuda and our kernels (see Cuda.cmake).
set(LIBTORCH "" CACHE PATH "an unpacked LibTorch to use")
if(NOT "$ENV{LIBTORCH}" STREQUAL "")
  set(LIBTORCH $ENV{LIBTORCH} CACHE PATH "an unpacked LibTorch to use" FORCE)
endif()
if(LIBTORCH)
  set(TORCH_ROOT ${LIBTORCH} CACHE PATH "root of the LibTorch in use" FORCE)
else()
  # A prefix path that points at share/cmake/Torch, as torch.utils.cmake_prefix_path does, also leads to the root.
  string(REPLACE ":" ";" prefixes "$ENV{CMAKE_PREFIX_PATH}")
  set(hints)
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH prefixes)
    list(APPEND hints ${prefix} ${prefix}/../..)
  endforeach()
  file(GLOB wheel ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  find_path(TORCH_ROOT NAMES include/ATen/core/Tensor.h HINTS ${hints} ${wheel} DOC "root of the LibTorch in use")
endif()
if(NOT EXISTS ${TORCH_ROOT}/include/ATen/core/Tensor.h)
  message(FATAL_ERROR "LibTorch was not found (LIBTORCH=${LIBTORCH}). Run scripts/setup.sh, or set LIBTORCH to an "
    "unpacked libtorch.")
endif()
foreach(part MAJOR MINOR PATCH)
  file(STRINGS ${TORCH_ROOT}/include/torch/headeronly/version.h line REGEX "define TORCH_VERSION_${part} ")
  string(REGEX MATCH "[0-9]+$" DALLE_TORCH_${part} "${line}")
endforeach()
set(DALLE_TORCH_VERSION ${DALLE_TORCH_MAJOR}.${DALLE_TORCH_MINOR}.${DALLE_TORCH_PATCH})
message(STATUS "LibTorch ${DALLE_TORCH_VERSION} in ${TORCH_ROOT}")

find_package(Threads REQUIRED)
add_library(dalle_torch INTERFACE)
target_include_directories(dalle_torch SYSTEM INTERFACE ${TORCH_ROOT}/include ${TORCH_ROOT}/include/torch/csrc/api/include)
# Without -fopenmp at::parallel_for is silently serial in our translation units. Not OpenMP::OpenMP_CXX: that names the
# compiler's libgomp by path, where LibTorch brings its own under the same soname.
target_compile_options(dalle_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
target_link_options(dalle_torch INTERFACE -fopenmp)
target_link_libraries(dalle_torch INTERFACE
  ${TORCH_ROOT}/lib/libtorch_cpu.so ${TORCH_ROOT}/lib/libc10.so Threads::Threads)
target_link_options(dalle_torch INTERFACE -Wl,--disable-new-dtags -Wl,-rpath,${TORCH_ROOT}/lib)
if(DALLE_WITH_CUDA)
  include(Cuda)
endif()
