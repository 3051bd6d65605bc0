# Bare-metal Cortex-M4F with the Arm GNU toolchain. irc takes its target from these flags: cortex-m4.
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR arm)
set(CMAKE_C_COMPILER arm-none-eabi-gcc)
set(CMAKE_C_FLAGS_INIT "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

# Named here, as CMake's own message does not say where it comes from.
find_program(CROSS_COMPILER arm-none-eabi-gcc)
if(NOT CROSS_COMPILER)
  message(FATAL_ERROR "arm-none-eabi-gcc is not installed (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi). \
The library needs no compiler: irc compile ../digits/digits.onnx makes it; only linking does.")
endif()
