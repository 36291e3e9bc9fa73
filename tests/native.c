/* Runs wasm/run.c natively, under sanitizers, on what tests/test_native.py writes:
 *
 *   native MODEL TOKENS BATCH ALLOCATIONS THREADS
 *
 * MODEL: the Config, RoPE's base (double), then for each tensor int32 {tensor, layer, type, rows, cols, group, bytes, scales}, its bytes and
 * its float scales (of type I8). The first row is loaded by itself, if there are more.
 * TOKENS: int32 token ids, computed BATCH at a time. Prints the logits' bits after each batch, then a shortlist; of
 * several THREADS (compiled with -pthread) also how many steps the helpers computed. Until they have computed some, the
 * caller does nothing of a job that it might share.
 * A tensor that is refused is printed as `tensor CODE`; so is a refused model or batch.
 * A record whose tensor is ADAPTER is of an adapter: {ADAPTER, tensor, layer, type, rank, bytes of A, bytes of B, the
 * bits of the scale}, A and B; what is refused is printed as `adapter CODE`. With one, the first batch is computed once
 * more at the end without it.
 * Behind the draws the last token is looked into: `inside`, the bits of its attention, then its lens.
 * ALLOCATIONS: how many succeed before one fails; what it was for is printed with its code and then tried again. -1:
 * all.
 */
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static long allocations = -1;

static int refused(void) { return allocations >= 0 && allocations-- == 0; }
static void *unreliable_malloc(size_t size) { return refused() ? NULL : malloc(size); }
static void *unreliable_calloc(size_t n, size_t size) { return refused() ? NULL : calloc(n, size); }

#define malloc unreliable_malloc
#define calloc unreliable_calloc
#include "../wasm/parallel.h"

static _Atomic long helped;
static Job *counted;
static int shared; /* steps of the job */

static void count(void *context, int first, int end, int thread) {
    if (thread > 0) helped += end - first;
    while (end - first < shared && !helped) sched_yield();
    counted(context, first, end, thread);
}

static void counting_parallel(Job *run, void *context, int steps) {
    counted = run;
    shared = steps;
    parallel(count, context, steps);
}

#define parallel counting_parallel
#include "../wasm/run.c"
#include "setup.h"
#undef malloc

#ifdef _REENTRANT
static pthread_t helpers[MAX_THREADS];

static void *help(void *number) {
    thread_main((int)(intptr_t)number);
    return NULL;
}

static void start_helpers(int threads) {
    set_threads(threads);
    for (int i = 1; i < threads; i++)
        if (pthread_create(&helpers[i], NULL, help, (void *)(intptr_t)i)) exit(2);
}

static void end_helpers(int threads) {
    set_threads(1);
    for (int i = 1; i < threads; i++) pthread_join(helpers[i], NULL);
    if (threads > 1) printf("helped %ld\n", helped);
}
#else
static void start_helpers(int threads) {
    if (threads > 1) exit(2);
}

static void end_helpers(int threads) { (void)threads; }
#endif

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*size); /* exactly as large as the file, so that a read past its end is caught */
    if ((!data && *size) || fread(data, 1, *size, file) != *size) exit(2);
    fclose(file);
    return data;
}

enum { ADAPTER = -2, MOST_ADAPTED = 20 };

/* Gives the model what an adapter's record has for a matrix; returns how long the record is behind its head. */
static size_t add_record(Model *model, const int32_t *head, const char *file) {
    const size_t sizes[] = {(size_t)head[5], (size_t)head[6]};
    float scale;
    int code = OK;
    memcpy(&scale, &head[7], sizeof scale);
    while (!model->adapter.room && (code = adapter_new(model, MOST_ADAPTED)) == E_MEMORY) printf("adapter %d\n", code);
    if (!code)
        while ((code = adapter_begin(model, head[1], head[2], head[4], scale)) == E_MEMORY)
            printf("adapter %d\n", code);
    for (int part = 0; part < 2 && !code; part++) {
        char *data = malloc(sizes[part]); /* a block of its own: a read past its end is caught */
        if (!data && sizes[part]) exit(2);
        memcpy(data, file + (part ? sizes[0] : 0), sizes[part]);
        while ((code = adapter_part(model, part, head[3], data, (uint32_t)sizes[part])) == E_MEMORY)
            printf("adapter %d\n", code);
        free(data);
    }
    if (code) printf("adapter %d\n", code);
    return sizes[0] + sizes[1];
}

static void print_logits(Model *model) {
    const Logits *logits = model_logits(model);
    for (int i = 0; i < logits->vocab_size; i++) {
        uint32_t bits;
        memcpy(&bits, &logits->values[i], 4);
        printf("%08x%c", bits, i + 1 < logits->vocab_size ? ' ' : '\n');
    }
}

/* A probe of a token, with blocks of their own for what it notes. */
static void print_inside(Model *model, int32_t token, int position) {
    const Config *c = &model->config;
    const size_t runs = (size_t)c->n_layers * c->repeats, weights = runs * c->n_heads * (position + 1);
    float *attention;
    Candidate *lens;
    if (!(attention = malloc(weights * sizeof *attention)) || !(lens = malloc(runs * 3 * sizeof *lens))) exit(2);
    printf("inside %d", probe(model, token, position, attention, lens, 3));
    for (size_t i = 0; i < weights; i++) {
        uint32_t bits;
        memcpy(&bits, &attention[i], sizeof bits);
        printf(" %08x", bits);
    }
    for (size_t i = 0; i < runs * 3; i++) printf(" %d %a", lens[i].id, lens[i].probability);
    printf("\n");
    free(attention);
    free(lens);
}

int main(int argc, char **argv) {
    size_t model_size, tokens_size;
    if (argc != 6) return 2;
    char *file = read_file(argv[1], &model_size), *tokens = read_file(argv[2], &tokens_size);
    int batch = atoi(argv[3]), threads = atoi(argv[5]), n = (int)(tokens_size / 4);
    if (model_size < SETUP || batch < 1) return 2;
    start_helpers(threads);

    Config config;
    double rope_base;
    memcpy(&config, file, sizeof config);
    memcpy(&rope_base, file + sizeof config, sizeof rope_base);
    Model *model;
    int code;
    allocations = atol(argv[4]);
    while ((code = model_new(&config, &model)) == E_MEMORY) printf("model %d\n", code);
    if (code) {
        printf("model %d\n", code);
    } else {
        while ((code = set_plain_rope(model, rope_base)) == E_MEMORY) printf("rope %d\n", code);
        for (size_t at = SETUP; at < model_size;) {
            int32_t head[8];
            memcpy(head, file + at, sizeof head);
            at += sizeof head;
            if (head[0] == ADAPTER) {
                at += add_record(model, head, file + at);
                continue;
            }
            const size_t size = (size_t)head[6], scales_size = (size_t)head[7] * sizeof(float);
            char *data = malloc(size); /* a block of its own, for the same reason */
            float *scales = malloc(scales_size);
            if ((!data && size) || (!scales && scales_size)) return 2;
            memcpy(data, file + at, size);
            memcpy(scales, file + at + size, scales_size);
            at += size + scales_size;
            const size_t first = head[3] > 1 ? size / (size_t)head[3] : size;
            do {
                code = tensor_begin(model, head[0], head[1], head[2], head[3], head[4], head[5]);
                if (code) printf("tensor %d\n", code);
            } while (code == E_MEMORY);
            if (!code) {
                const float *all_scales = scales_size ? scales : NULL;
                code = tensor_rows(model, data, (uint32_t)first, all_scales);
                if (!code && first < size)
                    code = tensor_rows(model, data + first, (uint32_t)(size - first), all_scales);
                if (code) printf("rows %d\n", code);
            }
            free(data);
            free(scales);
        }
        for (int at = 0; at < n; at += batch) {
            int count = n - at < batch ? n - at : batch;
            do {
                code = forward(model, (const int32_t *)(void *)tokens + at, count, at);
                if (code) printf("forward %d\n", code);
            } while (code == E_MEMORY);
            if (code) break;
            print_logits(model);
        }
        if (!code) {
            int count = shortlist(model_logits(model), 5);
            printf("shortlist %d", count);
            for (int i = 0; i < count; i++) printf(" %d", logits_candidates(model_logits(model))[i].id);
            printf("\nprobabilities %d", probabilities(model_logits(model), 0.7));
            for (int i = 0; i < count; i++) printf(" %a", logits_candidates(model_logits(model))[i].probability);
            printf("\ndraw %d %d %d\n", draw(model_logits(model), 0.7, 0), draw(model_logits(model), 0.7, 0.5),
                   draw(model_logits(model), 0.7, 0.99999));
            if (n) print_inside(model, ((const int32_t *)(void *)tokens)[n - 1], n - 1);
        }
        if (!code && model->adapter.count) {
            adapter_use(model, 0);
            while ((code = forward(model, (const int32_t *)(void *)tokens, n < batch ? n : batch, 0)) == E_MEMORY)
                printf("forward %d\n", code);
            print_logits(model);
        }
        model_free(model);
    }
    end_helpers(threads);
    free(file);
    free(tokens);
    return 0;
}
