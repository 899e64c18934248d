# Language level, warnings, ccache, mold, sanitizers: what holds for every target of ours.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
# Checks stay in: TORCH_CHECK and gtest do not depend on NDEBUG, our own asserts are TORCH_INTERNAL_ASSERT.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
# Debian 12's mold 1.10 writes, for some layouts, a GNU_RELRO segment that begins before its mapping; such a program does
# not start ("cannot apply additional memory protection after relocation"). Linking is short either way.
find_program(MOLD_PROGRAM mold)
if(MOLD_PROGRAM)
  execute_process(COMMAND ${MOLD_PROGRAM} --version OUTPUT_VARIABLE DALLE_MOLD_VERSION)
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" DALLE_MOLD_VERSION "${DALLE_MOLD_VERSION}")
  if(DALLE_MOLD_VERSION VERSION_GREATER_EQUAL 2.0)
    add_link_options(-fuse-ld=mold)
  endif()
endif()

set(DALLE_SANITIZE "" CACHE STRING "sanitizers, for example address,undefined")
if(DALLE_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${DALLE_SANITIZE}> $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=${DALLE_SANITIZE})
endif()

add_library(dalle_warnings INTERFACE)
target_compile_options(dalle_warnings INTERFACE
  # -Wrestrict: false positives on std::string in GCC 12 (GCC bug 105329).
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-missing-field-initializers -Wno-restrict>)
if(DALLE_SANITIZE)
  # Instrumented code looks uninitialised to GCC 12 where it is not (std::regex, GCC bug 105562).
  target_compile_options(dalle_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
endif()
if(CMAKE_UNITY_BUILD)
  # In a unity build our .cpp files are included, so that GCC takes their unnamed namespaces for a header's.
  target_compile_options(dalle_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-subobject-linkage>)
endif()
