/* A network behind stdin and stdout as `hosted.c` has it, for RISC-V without a C library: Linux system calls. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "network.h"

enum { READ = 63, WRITE = 64, EXIT = 93 };

static long call(long number, long a, long b, long c)
{
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a7 __asm__("a7") = number;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a7) : "memory");
    return a0;
}

static int transfer(long number, long file, unsigned char *data, size_t bytes)
{
    while (bytes) {
        long n = call(number, file, (long)data, (long)bytes);
        if (n <= 0) return 1;
        data += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static __attribute__((aligned(64))) unsigned char workspace[IRCNET_WORKSPACE_BYTES + 1];
static __attribute__((aligned(64))) unsigned char ram[IRCNET_INIT_RAM_BYTES + 1];
static __attribute__((aligned(64))) unsigned char memory[IRCNET_PORT_BYTES];

static int serve(void)
{
    static ircnet_ctx ctx;
    const void *inputs[IRCNET_INPUTS + 1];
    void *outputs[IRCNET_OUTPUTS + 1];
    unsigned char *place = memory, start;
    int code = ircnet_init(&ctx, ram, IRCNET_INIT_RAM_BYTES);
    if (code != IRC_OK) return 100 + code;
    for (int i = 0; i < IRCNET_INPUTS; place += (ircnet_inputs[i++].bytes + 63) & ~(size_t)63) inputs[i] = place;
    for (int i = 0; i < IRCNET_OUTPUTS; place += (ircnet_outputs[i++].bytes + 63) & ~(size_t)63) outputs[i] = place;
    while (!transfer(READ, 0, &start, 1)) {
        for (int i = 0; i < IRCNET_INPUTS; i++)
            if (transfer(READ, 0, (unsigned char *)inputs[i], ircnet_inputs[i].bytes)) return 92;
        memset(workspace, 0xFF, sizeof workspace);
        for (int i = 0; i < IRCNET_OUTPUTS; i++) memset(outputs[i], 0xFF, ircnet_outputs[i].bytes);
        code = ircnet_run(&ctx, inputs, outputs, workspace);
        if (code != IRC_OK) return 110 + code;
        for (int i = 0; i < IRCNET_OUTPUTS; i++)
            if (transfer(WRITE, 1, (unsigned char *)outputs[i], ircnet_outputs[i].bytes)) return 93;
    }
    return 0;
}

void irc_start(void)
{
    __asm__ volatile(".option push\n .option norelax\n la gp, __global_pointer$\n .option pop");
    call(EXIT, serve(), 0, 0);
    for (;;) {}
}
