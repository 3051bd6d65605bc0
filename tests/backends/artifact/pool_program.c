/* Runs a network with a pool on a machine that seems to have CPUS processors and to make no more than MAKES threads.
 *
 *     program CPUS MAKES THREADS
 *
 * Prints the number of threads and the bytes of the first output. The C library's functions are replaced by ones that
 * say what is wanted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "net.h"

static int cpus, makes;

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
    int i;
    (void)pid;
    if (cpus < 0) return -1;
    memset(set, 0, size);
    for (i = 0; i < cpus; i++) CPU_SET((size_t)(i * 5), set);
    return 0;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (makes-- <= 0) return 11;
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attr, start, arg);
}

int main(int argc, char **argv)
{
    static net_ctx ctx;
    static float x[NET_INPUT_0_ELEMENTS], y[NET_OUTPUT_0_ELEMENTS], first[NET_OUTPUT_0_ELEMENTS];
    static unsigned char memory[3][1 << 20];
    void *aligned[3], *outputs[1];
    const void *inputs[1];
    int i, code;
    if (argc != 4) return 2;
    cpus = atoi(argv[1]);
    makes = atoi(argv[2]);
    for (i = 0; i < 3; i++) aligned[i] = memory[i] + (4096 - (size_t)memory[i] % 4096);
    for (i = 0; i < NET_INPUT_0_ELEMENTS; i++) x[i] = (float)i / 64 - 3;
    inputs[0] = x;
    outputs[0] = y;
    code = net_init(&ctx, aligned[0], NET_INIT_RAM_BYTES);
    if (code == IRC_OK && atoi(argv[3]) != NET_THREADS)
        code = net_set_threads(&ctx, aligned[2], sizeof memory[2] - 4096, atoi(argv[3]));
    if (code != IRC_OK) return 10 + code;
    for (i = 0; i < 300; i++) {
        memset(y, 0xFF, sizeof y);
        memset(aligned[1], 0xFF, NET_WORKSPACE_BYTES);
        if (net_run(&ctx, inputs, outputs, aligned[1]) != IRC_OK) return 20;
        if (i == 0) memcpy(first, y, sizeof y);
        if (memcmp(first, y, sizeof y) != 0) return 21;
    }
    printf("%d ", net_threads(&ctx));
    for (i = 0; i < (int)sizeof y; i++) printf("%02x", ((unsigned char *)y)[i]);
    printf("\n");
    return net_deinit(&ctx) == IRC_OK && net_run(&ctx, inputs, outputs, aligned[1]) == IRC_ERROR_UNINITIALISED ? 0 : 22;
}
