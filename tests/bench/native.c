/* wasm/run.c compiled for this machine, as the benchmark's reference:
 *
 *   native MODEL PROMPT TOKENS SECONDS STORIES
 *
 * MODEL as tests/test_native.py writes it. PROMPT: int32 token ids. Tells the same greedy story at least STORIES times
 * and for SECONDS. Prints the load time in ms; for each story `prefill ms, decode ms`; then its tokens.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../../wasm/run.c"
#include "../setup.h"

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*size);
    if (data && fread(data, 1, *size, file) != *size) data = NULL;
    fclose(file);
    return data;
}

static int fail(const char *what, int code) {
    fprintf(stderr, "%s: error %d\n", what, code);
    return 1;
}

static int32_t likeliest(Model *model, int vocab_size) {
    const float *logits = logits_values(model_logits(model));
    int32_t best = 0;
    for (int32_t id = 1; id < vocab_size; id++)
        if (logits[id] > logits[best]) best = id;
    return best;
}

int main(int argc, char **argv) {
    size_t size, prompt_size;
    if (argc != 6) return fail("usage: native MODEL PROMPT TOKENS SECONDS STORIES", 2);
    double started = now_ms(), seconds = atof(argv[4]);
    char *file = read_file(argv[1], &size), *prompt = read_file(argv[2], &prompt_size);
    int count = atoi(argv[3]), stories = atoi(argv[5]), n = (int)(prompt_size / 4);
    int32_t *tokens = malloc((size_t)(count + 1) * 4);
    if (!file || !prompt || !tokens || size < SETUP) return fail("reading the files", 2);

    Config config;
    Model *model;
    double rope_base;
    memcpy(&config, file, sizeof config);
    memcpy(&rope_base, file + sizeof config, sizeof rope_base);
    int code = model_new(&config, &model);
    if (!code) code = set_plain_rope(model, rope_base);
    if (code) return fail("the model", code);
    for (size_t at = SETUP; at < size;) {
        int32_t head[8]; /* tensor, layer, type, rows, cols, group, bytes, scales */
        memcpy(head, file + at, sizeof head);
        at += sizeof head;
        code = tensor_begin(model, head[0], head[1], head[2], head[3], head[4], head[5]);
        if (!code) code = tensor_rows(model, file + at, (uint32_t)head[6], NULL);
        if (code) return fail("a tensor", code);
        at += (size_t)head[6];
    }
    free(file);
    printf("%.6f\n", now_ms() - started);

    for (double first = now_ms(); stories > 0 || now_ms() - first < seconds * 1e3; stories--) {
        double start = now_ms();
        code = forward(model, (const int32_t *)(void *)prompt, n, 0);
        if (code) return fail("the prompt", code);
        tokens[0] = likeliest(model, config.vocab_size);
        double prefilled = now_ms();
        for (int i = 0; i < count; i++) {
            code = forward(model, tokens + i, 1, n + i);
            if (code) return fail("a token", code);
            tokens[i + 1] = likeliest(model, config.vocab_size);
        }
        printf("%.6f %.6f\n", prefilled - start, now_ms() - prefilled);
    }
    for (int i = 0; i <= count; i++) printf("%d ", tokens[i]);
    printf("\n");
    return 0;
}
