/* Classifies one image and prints its class. The workspace is static: no heap. */
#include <stdio.h>

#include "digits.h"
#include "sample.h"

/* C99 has no alignas: the start of the workspace is found at run time. */
static char memory[DIGITS_WORKSPACE_BYTES + DIGITS_WORKSPACE_ALIGN];

int main(void)
{
    static float scores[DIGITS_OUTPUT_0_ELEMENTS];
    const void *inputs[] = {digits_sample};
    void *outputs[] = {scores};
    size_t offset = (size_t)memory % DIGITS_WORKSPACE_ALIGN;
    void *workspace = memory + (offset ? DIGITS_WORKSPACE_ALIGN - offset : 0);
    digits_ctx ctx;
    int code = digits_init(&ctx, NULL, 0);

    if (code == IRC_OK) code = digits_run(&ctx, inputs, outputs, workspace);
    if (code != IRC_OK) {
        fprintf(stderr, "the network returned error %d\n", code);
        return 1;
    }
    int best = 0;
    for (int i = 1; i < DIGITS_OUTPUT_0_ELEMENTS; i++)
        if (scores[i] > scores[best]) best = i;
    printf("class %d\n", best);
    return best == DIGITS_SAMPLE_LABEL ? 0 : 1;
}
