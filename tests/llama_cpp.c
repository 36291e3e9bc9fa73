/* llama.cpp as a reference, for tests/llama_cpp.py:
 *
 *   llama_cpp BACKENDS f32    MODEL OUT                  writes the model again, its weights as F32
 *   llama_cpp BACKENDS tokens MODEL SPECIAL              reads texts (u32 length, bytes), prints each one's tokens
 *   llama_cpp BACKENDS logits MODEL OUT ADAPTER ID ...   writes the logits after each token, float (n, vocabulary)
 *   llama_cpp BACKENDS greedy MODEL N ADAPTER ID ...     prints N likeliest tokens, each with its lead over the second
 *
 * BACKENDS is the folder of llama.cpp's libraries, ADAPTER an adapter's file, or empty. The KV cache is F32, attention is computed plainly.
 */
#include "ggml-backend.h"
#include "llama.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void only_errors(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int write_f32(const char *from, const char *to) {
    struct llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_ALL_F32;
    params.allow_requantize = true;
    return (int)llama_model_quantize(from, to, &params);
}

static int print_tokens(const struct llama_vocab *vocab, bool special) {
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        char *text = malloc(size + 1);
        llama_token *tokens = malloc((size + 16) * sizeof *tokens);
        if (fread(text, 1, size, stdin) != size) return 3;
        const int n = llama_tokenize(vocab, text, (int)size, tokens, (int)size + 16, true, special);
        for (int i = 0; i < n; i++) printf("%d ", tokens[i]);
        printf("\n");
        free(text);
        free(tokens);
    }
    return 0;
}

static int write_logits(struct llama_context *context, int vocab_size, const char *path, llama_token *tokens, int n) {
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    FILE *out = fopen(path, "wb");
    for (int i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    batch.n_tokens = n;
    if (!out || llama_decode(context, batch)) return 4;
    for (int i = 0; i < n; i++) fwrite(llama_get_logits_ith(context, i), sizeof(float), (size_t)vocab_size, out);
    return fclose(out);
}

static int print_likeliest(struct llama_context *context, int vocab_size, int count, llama_token *tokens, int n) {
    if (llama_decode(context, llama_batch_get_one(tokens, n))) return 5;
    for (int i = 0; i < count; i++) {
        const float *logits = llama_get_logits_ith(context, -1);
        llama_token best = 0;
        float second = -1e30f;
        for (int id = 1; id < vocab_size; id++)
            if (logits[id] > logits[best]) best = id;
        for (int id = 0; id < vocab_size; id++)
            if (id != best && logits[id] > second) second = logits[id];
        printf("%d %.4f\n", best, logits[best] - second);
        if (llama_decode(context, llama_batch_get_one(&best, 1))) return 5;
    }
    return 0;
}

int main(int argc, char **argv) {
    enum { FIRST = 6, CONTEXT = 1024 };
    if (argc < 5) return 2;
    const char *task = argv[2], *path = argv[3];
    llama_log_set(only_errors, NULL);
    ggml_backend_load_all_from_path(argv[1]);
    llama_backend_init();
    if (!strcmp(task, "f32")) return write_f32(path, argv[4]);

    struct llama_model_params model_params = llama_model_default_params();
    model_params.vocab_only = !strcmp(task, "tokens");
    struct llama_model *model = llama_model_load_from_file(path, model_params);
    if (!model) return 1;
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    if (model_params.vocab_only) return print_tokens(vocab, atoi(argv[4]));

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = CONTEXT;
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context || argc < FIRST) return 1;
    if (*argv[5]) {
        struct llama_adapter_lora *adapter = llama_adapter_lora_init(model, argv[5]);
        float scale = 1;
        if (!adapter || llama_set_adapters_lora(context, &adapter, 1, &scale)) return 6;
    }
    const int n = argc - FIRST, vocab_size = llama_vocab_n_tokens(vocab);
    llama_token *tokens = malloc((size_t)n * sizeof *tokens);
    for (int i = 0; i < n; i++) tokens[i] = atoi(argv[FIRST + i]);
    return !strcmp(task, "logits") ? write_logits(context, vocab_size, argv[4], tokens, n)
                                   : print_likeliest(context, vocab_size, atoi(argv[4]), tokens, n);
}
