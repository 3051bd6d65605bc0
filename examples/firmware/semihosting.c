/* Text and exit code through the debugger, or QEMU. Arm IHI 0029 "Semihosting for AArch32 and AArch64". */
#include "semihosting.h"

#include <stdint.h>

enum { WRITE0 = 0x04, EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

static void semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void print(const char *text) { semihost(WRITE0, text); }

void print_number(uint32_t number)
{
    char digits[11], *first = digits + 10;
    *first = 0;
    do *--first = (char)('0' + number % 10);
    while (number /= 10);
    print(first);
}

void finish(int code)
{
    const uint32_t arguments[2] = {APPLICATION_EXIT, (uint32_t)code};
    semihost(EXIT_EXTENDED, arguments);
    for (;;) {}
}
