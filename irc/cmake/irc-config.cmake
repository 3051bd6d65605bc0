# find_package(irc REQUIRED), then
#
#   irc_add_model(NAME MODEL model.onnx
#     [TARGET target]             default: this machine, or what the toolchain compiles for
#     [PRESET name | PASSES pass ...] [IO type ... | IO port=type ...]
#     [CALIBRATION file.npz] [STATISTICS file.npz]
#     [EVALUATION file.npz] [METRIC name] [MAX_DROP points]
#     [WEIGHTS plain|coded|huffman] [THREADS n] [TUNING file.json]
#     [SHAPES input=1x3x224x224 ...] [DIMS batch=1 ...]
#     [RAM bytes] [FLASH bytes]
#     [DIRECTORY folder]          default: ${CMAKE_CURRENT_BINARY_DIR}/NAME-irc
#     [CACHE_DIR folder]          kernel cache; default: the user's
#     [OPTIONS option ...]        any other options of irc compile
#     [DEPENDS target|file ...])  what makes the model or its data
#
# makes a library target NAME: link with it, include NAME.h (or NAME.hpp). The model is compiled when the program is
# built, and again when the model, its data, these options or irc change.
#
# irc is found as IRC_EXECUTABLE (a command as a list), beside this file's installation, on PATH, or as a module of
# Python3.

cmake_minimum_required(VERSION 3.21)
include_guard(DIRECTORY)

set(_irc_here "${CMAKE_CURRENT_LIST_DIR}")

# Sets IRC_EXECUTABLE in the cache. Programs of this machine are looked for, also where the build is for another one.
function(_irc_find)
  if(IRC_EXECUTABLE)
    return()
  endif()
  # Both places that this file is installed to: <prefix>/share/cmake/irc, <prefix>/lib/python3.x/site-packages/irc/cmake.
  find_program(_irc_program irc
    HINTS "${_irc_here}/../../../bin" "${_irc_here}/../../../../../bin" "$ENV{VIRTUAL_ENV}/bin"
          "${_irc_here}/../../../Scripts" "${_irc_here}/../../../../Scripts"
    NO_CMAKE_FIND_ROOT_PATH NO_CACHE)
  if(_irc_program)
    set(IRC_EXECUTABLE "${_irc_program}" CACHE STRING "the command irc")
    return()
  endif()
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_Interpreter_FOUND)
    execute_process(COMMAND "${Python3_EXECUTABLE}" -m irc --version RESULT_VARIABLE code OUTPUT_QUIET ERROR_QUIET)
    if(code EQUAL 0)
      set(IRC_EXECUTABLE "${Python3_EXECUTABLE};-m;irc" CACHE STRING "the command irc")
    endif()
  endif()
endfunction()

_irc_find()
if(NOT IRC_EXECUTABLE)
  set(irc_FOUND FALSE)
  set(irc_NOT_FOUND_MESSAGE
    "the program irc was not found on PATH, nor as a module of Python: install irc-compiler into a Python environment \
and activate that, or give -DIRC_EXECUTABLE=/path/to/environment/bin/irc")
  return()
endif()
execute_process(COMMAND ${IRC_EXECUTABLE} --version RESULT_VARIABLE _irc_code OUTPUT_QUIET ERROR_QUIET)
if(NOT _irc_code EQUAL 0)  # given by hand, or found in an environment that has gone since
  set(irc_FOUND FALSE)
  set(irc_NOT_FOUND_MESSAGE
    "'${IRC_EXECUTABLE} --version' fails (${_irc_code}): give -DIRC_EXECUTABLE=/path/to/environment/bin/irc, or nothing \
for it (-UIRC_EXECUTABLE) to be looked for")
  return()
endif()

# The target of a cross build, from the toolchain file: irc has the table.
function(_irc_target name out)
  if(NOT CMAKE_CROSSCOMPILING)
    set(${out} native PARENT_SCOPE)
    return()
  endif()
  get_directory_property(options COMPILE_OPTIONS)
  string(REGEX REPLACE "\\$<[^;]*>" "" options "${options}")
  set(flags "${CMAKE_C_FLAGS} ${CMAKE_CXX_FLAGS} ${options}")
  foreach(language C CXX)
    if(CMAKE_${language}_COMPILER_TARGET)
      string(APPEND flags " --target=${CMAKE_${language}_COMPILER_TARGET}")
    endif()
    if(CMAKE_${language}_COMPILER)
      get_filename_component(compiler "${CMAKE_${language}_COMPILER}" NAME)
      string(APPEND flags " ${compiler}")
    endif()
  endforeach()
  string(REPLACE ";" " " flags "${flags}")
  execute_process(
    COMMAND ${IRC_EXECUTABLE} targets --for "${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR} ${flags}"
    OUTPUT_VARIABLE found ERROR_VARIABLE message RESULT_VARIABLE code OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT code EQUAL 0)
    string(STRIP "${message}" message)
    message(FATAL_ERROR
      "irc_add_model(${name}): the toolchain does not say which target this is.\n${message}\n"
      "To name it: irc_add_model(${name} ... TARGET cortex-m4), for example.")
  endif()
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

# The target of irc's table that a file describes a variant of.
function(_irc_base name file out)
  execute_process(COMMAND ${IRC_EXECUTABLE} targets "${file}" --json
    OUTPUT_VARIABLE record ERROR_VARIABLE message RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    string(STRIP "${message}" message)
    message(FATAL_ERROR "irc_add_model(${name}): ${message}")
  endif()
  string(JSON base GET "${record}" base)
  set(${out} "${base}" PARENT_SCOPE)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
endfunction()

function(irc_add_model name)
  set(files MODEL CALIBRATION STATISTICS EVALUATION TUNING)
  set(values TARGET PRESET METRIC MAX_DROP WEIGHTS THREADS RAM FLASH DIRECTORY CACHE_DIR)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "${files};${values}" "PASSES;IO;SHAPES;DIMS;OPTIONS;DEPENDS")
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "irc_add_model(${name}): these mean nothing: ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  if(ARG_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR "irc_add_model(${name}): no value for ${ARG_KEYWORDS_MISSING_VALUES}")
  endif()
  if(NOT name MATCHES "^[A-Za-z][A-Za-z0-9_]*$")
    message(FATAL_ERROR "irc_add_model(${name}): the name is the prefix of C functions: letters, digits, underscores")
  endif()
  if(NOT ARG_MODEL)
    message(FATAL_ERROR "irc_add_model(${name}): MODEL file.onnx is missing")
  endif()
  if(ARG_PASSES AND ARG_PRESET)
    message(FATAL_ERROR "irc_add_model(${name}): either PASSES or PRESET")
  endif()
  if(NOT ARG_TARGET)
    _irc_target(${name} ARG_TARGET)
  endif()
  if(NOT ARG_DIRECTORY)
    set(ARG_DIRECTORY "${name}-irc")
  endif()
  get_filename_component(folder "${ARG_DIRECTORY}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_BINARY_DIR}")
  get_property(others GLOBAL PROPERTY _IRC_DIRECTORIES)
  if(folder IN_LIST others)
    message(FATAL_ERROR "irc_add_model(${name}): another model has the DIRECTORY ${folder}; each needs its own")
  endif()
  set_property(GLOBAL APPEND PROPERTY _IRC_DIRECTORIES "${folder}")

  # The command line, and the files that it reads. (A target given as a file, my.toml, is relative to the source.)
  set(machine "${ARG_TARGET}")
  set(comment "Compiling ${ARG_MODEL} for ${ARG_TARGET}")
  set(read "")
  set(line --name "${name}" -o "${folder}" -q)
  foreach(key IN LISTS files)
    if(ARG_${key})
      get_filename_component(path "${ARG_${key}}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
      list(APPEND read "${path}")
      if(key STREQUAL MODEL)
        set(model "${path}")
      else()
        string(TOLOWER "--${key}" option)
        list(APPEND line "${option}" "${path}")
      endif()
    endif()
  endforeach()
  if(ARG_TARGET MATCHES "\\.toml$")
    get_filename_component(ARG_TARGET "${ARG_TARGET}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
    list(APPEND read "${ARG_TARGET}")
    _irc_base(${name} "${ARG_TARGET}" machine)
  endif()
  foreach(key TARGET PRESET METRIC MAX_DROP WEIGHTS THREADS RAM FLASH CACHE_DIR)
    if(NOT "${ARG_${key}}" STREQUAL "")
      string(TOLOWER "--${key}" option)
      string(REPLACE "_" "-" option "${option}")
      list(APPEND line "${option}" "${ARG_${key}}")
    endif()
  endforeach()
  if(ARG_PASSES)
    list(JOIN ARG_PASSES "," passes)
    list(APPEND line --passes "${passes}")
  endif()
  foreach(value IN LISTS ARG_IO)
    list(APPEND line --io "${value}")
  endforeach()
  foreach(value IN LISTS ARG_SHAPES)
    list(APPEND line --shape "${value}")
  endforeach()
  foreach(value IN LISTS ARG_DIMS)
    list(APPEND line --dim "${value}")
  endforeach()
  list(APPEND line ${ARG_OPTIONS})

  # Makefiles do not run a command again because it changed; a file that changes with it makes them.
  set(arguments "${CMAKE_CURRENT_BINARY_DIR}${CMAKE_FILES_DIRECTORY}/${name}-irc.txt")
  string(REPLACE ";" "\n" text "${IRC_EXECUTABLE};${line}")
  _irc_write_if_changed("${arguments}" "${text}\n")

  set(header "${folder}/include/${name}.h")
  if(machine STREQUAL "c")
    set(library "${folder}/src/${name}.c")
  else()
    set(library "${folder}/lib/lib${name}.a")
  endif()
  # The manifest is no output here: Ninja deletes outputs of a command that is interrupted, and without its manifest
  # irc would not know the folder for its own.
  add_custom_command(
    OUTPUT "${library}" "${header}" "${folder}/include/${name}.hpp"
    COMMAND ${IRC_EXECUTABLE} compile "${model}" ${line} --emit archive,header,cpp,report --depfile "${folder}.d"
    DEPENDS ${read} "${arguments}" ${ARG_DEPENDS}
    DEPFILE "${folder}.d"
    COMMENT "${comment}"
    VERBATIM)
  add_custom_target(${name}_irc DEPENDS "${library}" "${header}")
  set_target_properties(${name}_irc PROPERTIES ADDITIONAL_CLEAN_FILES "${folder};${folder}.d")

  if(machine STREQUAL "c")
    add_library(${name} STATIC "${library}")
    get_property(languages GLOBAL PROPERTY ENABLED_LANGUAGES)
    if(NOT C IN_LIST languages)
      set_source_files_properties("${library}" PROPERTIES LANGUAGE CXX)  # it is C++ as well
    endif()
    target_include_directories(${name} SYSTEM PUBLIC "${folder}/include")
    target_link_libraries(${name} PUBLIC m)
  else()
    file(MAKE_DIRECTORY "${folder}/include")  # CMake wants it to be there now
    add_library(${name} STATIC IMPORTED GLOBAL)
    set_target_properties(${name} PROPERTIES
      IMPORTED_LOCATION "${library}"
      IMPORTED_LINK_INTERFACE_LANGUAGES C
      INTERFACE_INCLUDE_DIRECTORIES "${folder}/include")
    if(NOT machine MATCHES "^windows")
      set_property(TARGET ${name} APPEND PROPERTY INTERFACE_LINK_LIBRARIES m)
    endif()
    if(ARG_THREADS GREATER 1)
      set_property(TARGET ${name} APPEND PROPERTY INTERFACE_LINK_LIBRARIES pthread)
    endif()
  endif()
  add_dependencies(${name} ${name}_irc)
  set_target_properties(${name} PROPERTIES IRC_TARGET "${ARG_TARGET}" IRC_DIRECTORY "${folder}")
endfunction()

function(_irc_write_if_changed path text)
  if(EXISTS "${path}")
    file(READ "${path}" old)
    if(old STREQUAL text)
      return()
    endif()
  endif()
  file(WRITE "${path}" "${text}")
endfunction()
