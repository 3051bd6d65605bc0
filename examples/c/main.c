/* Runs a network that irc compiled: raw input files in, outputs as text.
 *
 *     irc compile model.onnx --name model
 *     cc -DNETWORK=model main.c -Imodel-irc/include -Lmodel-irc/lib -lmodel -lm -o run
 *     ./run input.bin
 *
 * An input file holds the elements of one input as they lie in memory (numpy: array.tofile("input.bin")).
 * C89 and C++. */
#include <stdio.h>
#include <stdlib.h>

/* NETWORK is the network's name: NET(run) is model_run, and the header is model.h. A program for one network only
 * would simply write those names. */
#ifndef NETWORK
#error "compile with -DNETWORK=name"
#endif
#define PASTE(a, b) a##_##b
#define EXPAND(a, b) PASTE(a, b)
#define NET(x) EXPAND(NETWORK, x)
#define QUOTE(x) #x
#define HEADER(x) QUOTE(x.h)
#include HEADER(NETWORK)

/* Memory at a multiple of `align`. It lives as long as the program. */
static void *aligned_memory(size_t bytes, size_t align)
{
    char *p = (char *)malloc(bytes + align);
    if (p == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p + (align - (size_t)p % align) % align;
}

static void read_input(const char *path, void *data, size_t bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(data, 1, bytes, file) != bytes || fgetc(file) != EOF) {
        fprintf(stderr, "%s: cannot be read or does not hold %lu bytes\n", path, (unsigned long)bytes);
        exit(1);
    }
    fclose(file);
}

/* Element `i` as a number; what is quantized as the real value that it stands for. */
static double element(const irc_tensor_info *info, const void *data, size_t i)
{
    double value;
    switch (info->dtype) {
    case IRC_FLOAT32: value = ((const float *)data)[i]; break;
    case IRC_FLOAT64: value = ((const double *)data)[i]; break;
    case IRC_INT8: value = ((const signed char *)data)[i]; break;
    case IRC_UINT8: case IRC_BOOL: value = ((const unsigned char *)data)[i]; break;
    case IRC_INT32: value = ((const int *)data)[i]; break;
    case IRC_INT64: value = (double)((const long *)data)[i]; break; /* where long has 64 bits */
    default:
        fprintf(stderr, "%s: element type %d is not printed by this example\n", info->name, info->dtype);
        exit(1);
    }
    return info->quantized ? (value - info->zero_point) * info->scale : value;
}

static void print_output(const irc_tensor_info *info, const void *data)
{
    size_t i, n = 1;
    int d;
    for (d = 0; d < info->rank; d++) n *= info->dims[d];
    printf("%s:", info->name);
    for (i = 0; i < n; i++) printf(" %.9g", element(info, data, i));
    printf("\n");
}

int main(int argc, char **argv)
{
    static NET(ctx) ctx;
    const irc_network_info *net = &NET(info);
    const void **inputs = (const void **)aligned_memory((size_t)net->n_inputs * sizeof(void *), sizeof(void *));
    void **outputs = (void **)aligned_memory((size_t)net->n_outputs * sizeof(void *), sizeof(void *));
    void *workspace = aligned_memory(net->workspace_bytes, net->workspace_align);
    void *ram = aligned_memory(net->init_ram_bytes, net->workspace_align);
    int i, code;

    if (argc != 1 + net->n_inputs) {
        fprintf(stderr, "usage: %s", argv[0]);
        for (i = 0; i < net->n_inputs; i++) fprintf(stderr, " FILE(%s)", net->inputs[i].name);
        fprintf(stderr, "\n");
        return 2;
    }
    for (i = 0; i < net->n_inputs; i++) {
        void *data = aligned_memory(net->inputs[i].bytes, 64);
        read_input(argv[1 + i], data, net->inputs[i].bytes);
        inputs[i] = data;
    }
    for (i = 0; i < net->n_outputs; i++) outputs[i] = aligned_memory(net->outputs[i].bytes, 64);

    code = NET(init)(&ctx, ram, net->init_ram_bytes);
    if (code == IRC_OK) code = NET(run)(&ctx, inputs, outputs, workspace);
    if (code != IRC_OK) {
        fprintf(stderr, "the network returned error %d\n", code);
        return 1;
    }
    NET(deinit)(&ctx);
    for (i = 0; i < net->n_outputs; i++) print_output(&net->outputs[i], outputs[i]);
    return 0;
}
