/* Classifies one image on a Cortex-M4; prints its class and what it took. */
#include <stdint.h>
#include <string.h>

#include "../digits/sample.h"
#include "digits.h"
#include "semihosting.h"

/* The only memory that the network needs: its input and output live in it, too. */
static _Alignas(DIGITS_WORKSPACE_ALIGN) char workspace[DIGITS_WORKSPACE_BYTES];

/* Cycles of one tick: 1 on a board, where SysTick has the core's clock. */
#ifndef CYCLES_PER_TICK
#define CYCLES_PER_TICK 1
#endif

/* SysTick counts downwards in 24 bits; each time round it calls tick(). */
static volatile struct {
    uint32_t control, reload, value;
} *const systick = (void *)0xE000E010;
enum { ROUND = 0x1000000 };
static volatile uint32_t rounds;

void tick(void);
void tick(void) { rounds++; }

static void start_clock(void)
{
    rounds = 0;
    systick->reload = ROUND - 1;
    systick->value = 0;
    systick->control = 7; /* on, with interrupt, the core's clock */
    while (systick->value == 0) {} /* it begins with its first reload */
}

static uint32_t clock_now(void)
{
    uint32_t before, value;
    do {
        before = rounds;
        value = systick->value;
    } while (before != rounds);
    return before * ROUND + (ROUND - 1 - value);
}

int main(void)
{
    float *image = (float *)(workspace + DIGITS_INPUT_0_OFFSET);
    float *scores = (float *)(workspace + DIGITS_OUTPUT_0_OFFSET);
    const void *inputs[] = {image};
    void *outputs[] = {scores};
    digits_ctx ctx;
    uint32_t start, end;
    int code = digits_init(&ctx, NULL, 0), best = 0;

    memcpy(image, digits_sample, sizeof digits_sample);
    start_clock();
    start = clock_now();
    if (code == IRC_OK) code = digits_run(&ctx, inputs, outputs, workspace);
    end = clock_now();
    if (code != IRC_OK) {
        print("the network returned error ");
        print_number((uint32_t)code);
        print("\n");
        return 1;
    }
    for (int i = 1; i < DIGITS_OUTPUT_0_ELEMENTS; i++)
        if (scores[i] > scores[best]) best = i;
    print("class ");
    print_number((uint32_t)best);
    print("\ncycles ");
    print_number((end - start) * CYCLES_PER_TICK);
    print("\n");
    return best == DIGITS_SAMPLE_LABEL ? 0 : 1;
}
