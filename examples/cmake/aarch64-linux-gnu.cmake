# 64-bit Arm Linux with Debian's gcc. irc takes its target from here: a Cortex-A72.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_C_FLAGS_INIT "-mcpu=cortex-a72")
set(CMAKE_CXX_FLAGS_INIT "-mcpu=cortex-a72")
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)

# Named here, as CMake's own message does not say where it comes from.
find_program(CROSS_COMPILER aarch64-linux-gnu-gcc)
if(NOT CROSS_COMPILER)
  message(FATAL_ERROR "aarch64-linux-gnu-gcc is not installed (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross). \
The library needs no compiler: irc compile ../digits/digits.onnx makes it; only linking does.")
endif()
