/* A network on a Cortex-M board without an operating system. Semihosting brings samples in and results out:
   in.bin holds the number of runs (4 bytes; with the top bit, inputs and outputs go to their places in the workspace,
   which only the first run finds as they were) and one sample's inputs; out.bin gets the outputs of the last run, the
   bytes of stack that NAME_run used (4 bytes), and the ticks of the processor's clock that the last run took (8 bytes).
   Exit code as of the hosted program. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "network.h"

enum { OPEN = 1, WRITE = 5, READ = 6, EXIT = 0x20, STACK = 16384, PAINT = 0xA5 };

extern char irc_stack_top[], irc_bss_begin[], irc_bss_end[];
void irc_reset(void);
int irc_main(void);

static int semihost(int operation, const void *arguments)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void quit(int code)
{
    const struct { uint32_t reason, code; } end = {0x20026, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
    semihost(EXIT, &end);
    for (;;) {}
}

static void fault(void) { quit(80); }

/* The system timer counts down from 2^24 - 1; its exception counts how often it began again. */
static volatile uint32_t *const timer = (volatile uint32_t *)0xE000E010; /* control, reload, current */
static volatile uint32_t wraps;

static void wrapped(void) { wraps++; }

static inline __attribute__((always_inline)) uint64_t ticks(void)
{
    uint32_t before, current;
    do {
        before = wraps;
        current = timer[2];
    } while (before != wraps);
    return ((uint64_t)before << 24) + (0xFFFFFF - current);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    irc_stack_top, (void *)irc_reset, (void *)fault, (void *)fault,
    (void *)fault, (void *)fault,     (void *)fault, (void *)fault,
    (void *)fault, (void *)fault,     (void *)fault, (void *)fault,
    (void *)fault, (void *)fault,     (void *)fault, (void *)wrapped,
};

void irc_reset(void)
{
#ifdef __ARM_FP
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: the FPU is on */
    __asm__ volatile("dsb\n isb");
#endif
    for (char *p = irc_bss_begin; p < irc_bss_end; p++) *p = 0;
    quit(irc_main());
}

static int opened(const char *name, uint32_t mode)
{
    const struct { const char *name; uint32_t mode, length; } file = {name, mode, (uint32_t)strlen(name)};
    return semihost(OPEN, &file);
}

/* Bytes that were not transferred. */
static int transfer(int operation, int file, const void *data, size_t bytes)
{
    const struct { int file; const void *data; uint32_t bytes; } block = {file, data, (uint32_t)bytes};
    return bytes == 0 ? 0 : semihost(operation, &block);
}

static __attribute__((aligned(64), section(IRCNET_WORKSPACE_SECTION))) unsigned char workspace[IRCNET_WORKSPACE_BYTES + 1];
static __attribute__((aligned(64), section(".irc_big"))) unsigned char ram[IRCNET_INIT_RAM_BYTES + 1];
static __attribute__((aligned(64), section(".irc_big"))) unsigned char memory[IRCNET_PORT_BYTES];
static ircnet_ctx ctx;
static const size_t input_places[] = {IRCNET_INPUT_PLACES 0}, output_places[] = {IRCNET_OUTPUT_PLACES 0};

static uint64_t taken;

/* Runs the network. *used: bytes of stack below what this function has when it calls NAME_run. The stack is painted from
   there down, and nothing but the network writes to it: what is called in between is part of this function. */
static __attribute__((noinline)) int repeat(uint32_t runs, const void **inputs, void **outputs, uint32_t *used)
{
    volatile unsigned char *top, *p;
    int code = IRC_OK;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (p = top - STACK; p < top; p++) *p = PAINT;
    while (runs-- && code == IRC_OK) {
        uint64_t start = ticks();
        code = ircnet_run(&ctx, inputs, outputs, workspace);
        taken = ticks() - start;
    }
    for (p = top - STACK; p < top && *p == PAINT; p++) {}
    *used = (uint32_t)(top - p);
    return code;
}

int irc_main(void)
{
    const void *inputs[IRCNET_INPUTS + 1];
    void *outputs[IRCNET_OUTPUTS + 1];
    unsigned char *place = memory;
    uint32_t runs = 0, used = 0, inside;
    int in = opened("in.bin", 1), out = opened("out.bin", 5), code = IRC_OK; /* "rb" and "wb" */
    if (in < 0 || out < 0 || transfer(READ, in, &runs, sizeof runs)) return 91;
    inside = runs >> 31;
    runs &= 0x7FFFFFFF;
    memset(workspace, 0xFF, sizeof workspace);
    for (int i = 0; i < IRCNET_INPUTS; place += (ircnet_inputs[i++].bytes + 63) & ~(size_t)63) {
        unsigned char *at = inside ? workspace + input_places[i] : place;
        inputs[i] = at;
        if (transfer(READ, in, at, ircnet_inputs[i].bytes)) return 92;
    }
    for (int i = 0; i < IRCNET_OUTPUTS; place += (ircnet_outputs[i++].bytes + 63) & ~(size_t)63)
        outputs[i] = inside ? workspace + output_places[i] : place;
    code = ircnet_init(&ctx, ram, IRCNET_INIT_RAM_BYTES);
    if (code != IRC_OK) return 100 + code;
    timer[1] = 0xFFFFFF;
    timer[2] = 0;
    timer[0] = 7; /* on, with exceptions, at the processor's clock */
    code = repeat(runs, inputs, outputs, &used);
    if (code != IRC_OK) return 110 + code;
    for (int i = 0; i < IRCNET_OUTPUTS; i++)
        if (transfer(WRITE, out, outputs[i], ircnet_outputs[i].bytes)) return 93;
    return transfer(WRITE, out, &used, sizeof used) || transfer(WRITE, out, &taken, sizeof taken) ? 94 : 0;
}
