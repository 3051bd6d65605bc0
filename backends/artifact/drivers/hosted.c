/* A network behind stdin and stdout, for systems with a C library: for each sample until the end of the file a byte,
   then all inputs; all outputs go out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "network.h"

static void *aligned(size_t bytes)
{
    size_t align = IRCNET_WORKSPACE_ALIGN > 64 ? IRCNET_WORKSPACE_ALIGN : 64;
    char *p = (char *)malloc(bytes + align);
    if (p == NULL) exit(90);
    return p + (align - (size_t)p % align);
}

int main(void)
{
    static ircnet_ctx ctx;
    const void *inputs[IRCNET_INPUTS + 1];
    void *outputs[IRCNET_OUTPUTS + 1];
    void *workspace = aligned(ircnet_info.workspace_bytes);
    int i, code;
    for (i = 0; i < IRCNET_INPUTS; i++) inputs[i] = aligned(ircnet_inputs[i].bytes);
    for (i = 0; i < IRCNET_OUTPUTS; i++) outputs[i] = aligned(ircnet_outputs[i].bytes);
    code = ircnet_init(&ctx, aligned(ircnet_info.init_ram_bytes), ircnet_info.init_ram_bytes);
    if (code != IRC_OK) return 100 + code;
    while (getchar() != EOF) {
        for (i = 0; i < IRCNET_INPUTS; i++) {
            size_t n = ircnet_inputs[i].bytes;
            if (fread((void *)inputs[i], 1, n, stdin) != n) return 92;
        }
        /* Float NaNs: what reads the workspace before writing it, or leaves outputs out, is found. */
        memset(workspace, 0xFF, ircnet_info.workspace_bytes);
        for (i = 0; i < IRCNET_OUTPUTS; i++) memset(outputs[i], 0xFF, ircnet_outputs[i].bytes);
        if ((code = ircnet_run(&ctx, inputs, outputs, workspace)) != IRC_OK) return 110 + code;
        for (i = 0; i < IRCNET_OUTPUTS; i++) {
            size_t n = ircnet_outputs[i].bytes;
            if (fwrite(outputs[i], 1, n, stdout) != n) return 93;
        }
        if (fflush(stdout) != 0) return 94;
    }
    return 0;
}
