# dalle_layer(NAME [PUBLIC libraries...] [PRIVATE libraries...] [APART files...])
# The static library dalle_NAME from src/NAME/*.cpp. PUBLIC are lower layers, PRIVATE what only its .cpp files see. APART
# files are left out: one of two alternatives (dalle_alternative), or files that belong to a library of their own.
function(dalle_layer name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "PUBLIC;PRIVATE;APART")
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  foreach(file IN LISTS arg_APART)
    list(REMOVE_ITEM sources ${CMAKE_SOURCE_DIR}/src/${name}/${file})
  endforeach()
  if(NOT sources)  # a layer that has only headers so far
    file(TOUCH ${CMAKE_CURRENT_BINARY_DIR}/empty_${name}.cpp)
    set(sources ${CMAKE_CURRENT_BINARY_DIR}/empty_${name}.cpp)
  endif()
  add_library(dalle_${name} STATIC ${sources})
  target_include_directories(dalle_${name} PUBLIC ${CMAKE_SOURCE_DIR}/include)
  target_link_libraries(dalle_${name} PUBLIC dalle_torch ${arg_PUBLIC} PRIVATE dalle_warnings ${arg_PRIVATE})
endfunction()

# dalle_vectorise(NAME FILES...): -O3 for files of layer NAME with loops over numbers: at -O2 GCC vectorises only loops
# whose length it knows. Each such loop is a function with clones for several instruction sets. No unity build for them.
function(dalle_vectorise name)
  list(TRANSFORM ARGN PREPEND ${name}/)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release,RelWithDebInfo>:-O3>")
endfunction()

# dalle_alternative(TARGET OPTION FILE STUB): FILE where OPTION is on, else STUB, which defines the same symbols.
function(dalle_alternative target option file stub)
  if(${option})
    target_sources(${target} PRIVATE ${file})
  else()
    target_sources(${target} PRIVATE ${stub})
  endif()
endfunction()

# dalle_test(NAME LIBRARIES...): the executable dalle_NAME_tests from tests/NAME/*_test.cpp. A process linked to LibTorch
# takes 0.4 s to start, so CTest runs one process per test file rather than one per case. Tests stay out of unity builds:
# their little helpers often have the same names.
function(dalle_test name)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${name}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(dalle_${name}_tests ${sources})
  set_target_properties(dalle_${name}_tests PROPERTIES UNITY_BUILD OFF)
  target_include_directories(dalle_${name}_tests PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_compile_definitions(dalle_${name}_tests PRIVATE DALLE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_link_libraries(dalle_${name}_tests PRIVATE ${ARGN} dalle_warnings GTest::gtest GTest::gmock GTest::gtest_main)
  foreach(source IN LISTS sources)
    dalle_register_suites(dalle_${name}_tests ${name} ${source})
  endforeach()
endfunction()

# One CTest entry for a test file: gtest's filter takes the suites that the file defines. A file with a line
# "// ctest: slow" gets the label slow too, and more time.
function(dalle_register_suites target label source)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  file(STRINGS ${source} lines REGEX "^(TEST|TEST_F|TEST_P|TYPED_TEST|TYPED_TEST_P)\\(")
  set(suites)
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^[A-Z_]+\\( *([A-Za-z0-9_]+) *,.*" "\\1" suite "${line}")
    list(APPEND suites "${suite}.*" "*/${suite}.*" "${suite}/*.*" "*/${suite}/*.*")
  endforeach()
  list(REMOVE_DUPLICATES suites)
  list(JOIN suites ":" filter)
  get_filename_component(stem ${source} NAME_WE)
  string(REGEX REPLACE "_test$" "" stem ${stem})
  set(labels ${label})
  set(environment "OMP_NUM_THREADS=1" "MKL_NUM_THREADS=1")
  set(timeout 300)
  file(STRINGS ${source} slow REGEX "^// ctest: slow")
  if(slow)
    list(APPEND labels slow)
    set(timeout 900)
  endif()
  # Several ranks: over NCCL where the build has it and the machine has GPUs, as support/rank_processes.h chooses.
  file(STRINGS ${source} ranks REGEX "run_ranks\\(|train_on_ranks\\(|RankProcesses")
  if(ranks)
    list(APPEND labels ranks)
    if(DALLE_WITH_NCCL)
      # Ranks that share a GPU take turns on it: some milliseconds for each of tens of thousands of collectives.
      list(APPEND labels nccl)
      set(timeout 3600)
      list(APPEND environment "DALLE_TEST_WAIT_SECONDS=900")
    endif()
  endif()
  add_test(NAME ${label}.${stem} COMMAND ${target} --gtest_filter=${filter} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  # A suite that the pattern above did not find would never run: an empty selection is a failure.
  set_tests_properties(${label}.${stem} PROPERTIES LABELS "${labels}" TIMEOUT ${timeout}
    ENVIRONMENT "${environment}" FAIL_REGULAR_EXPRESSION "Running 0 tests")
endfunction()
