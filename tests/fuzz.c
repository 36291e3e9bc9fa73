/* A libFuzzer target: any bytes as a model's tensors and as tokens.
 *
 * The first bytes choose a small Config; then come a few tensors that may be right or wrong, in any order, then all
 * that are missing, and then tokens, forwards and rewound. A tensor's rows arrive in two parts. Nothing may crash,
 * overflow, leak or be undefined.
 */
#include "../wasm/run.c"

typedef struct {
    const uint8_t *data;
    size_t size;
} Bytes;

static uint8_t next(Bytes *bytes) { return bytes->size ? (bytes->size--, *bytes->data++) : 0; }

/* The shape that the config asks for in place of what the file says: most inputs get past the first check so. */
static void right_shape(const Model *m, int tensor, int32_t *rows, int32_t *cols) {
    const Tensor *wanted = &TENSORS[tensor % N_TENSORS];
    *rows = size_of(m, wanted->rows);
    *cols = size_of(m, wanted->cols);
}

static int load(Model *m, int tensor, int layer, Bytes *bytes) {
    const int types[] = {TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_Q4_1, TYPE_Q8_0, TYPE_I8, TYPE_BF16, TYPE_Q5_0, 99};
    const int type = types[next(bytes) % 9];
    const uint8_t group = next(bytes), shape = next(bytes), cut = next(bytes);
    int32_t rows, cols;
    right_shape(m, tensor, &rows, &cols);
    if (shape > 240) rows = (int8_t)next(bytes), cols = (int8_t)next(bytes) * 32;
    int error = tensor_begin(m, tensor, layer, type, rows, cols, type == TYPE_I8 || group > 250 ? group : 0);
    if (error) return error;

    const uint64_t row_bytes = file_row_bytes(type, cols), whole = row_bytes * (uint64_t)rows;
    const size_t n_scales = type == TYPE_I8 ? ((size_t)rows * cols + group - 1) / group : 0;
    char *data = calloc(whole ? whole : 1, 1); /* a block of its own, so that a read past its end is caught */
    float *scales = n_scales ? calloc(n_scales, sizeof(float)) : NULL;
    if (!data) return E_MEMORY;
    /* what bytes there are, repeated: a model is larger than the inputs of a fuzzer */
    const size_t period = bytes->size < 64 ? bytes->size : 64;
    for (uint64_t i = 0; period && i < whole; i++) data[i] = (char)bytes->data[i % period];
    for (size_t i = 0; i < n_scales; i++) scales[i] = (float)(int8_t)(period ? bytes->data[i % period] : 0) * 1e-3f;
    const uint64_t first = rows > 1 ? row_bytes * (1 + cut % (rows - 1)) : whole;
    error = tensor_rows(m, data, (uint32_t)first, scales);
    if (!error && first < whole) error = tensor_rows(m, data + first, (uint32_t)(whole - first - (cut > 250)), scales);
    free(data);
    free(scales);
    return error;
}

/* A tensor without a fault, so that the model becomes whole. */
static void load_floats(Model *m, int tensor, int layer) {
    int32_t rows, cols;
    right_shape(m, tensor, &rows, &cols);
    if (tensor_begin(m, tensor, layer, TYPE_F32, rows, cols, 0)) return; /* it is there already */
    float *data = calloc((size_t)rows * cols, sizeof(float));
    for (int i = 0; i < rows * cols; i++) data[i] = (float)(i % 7 - 3) * 0.1f;
    tensor_rows(m, (const char *)data, (uint32_t)(rows * cols * 4), NULL);
    free(data);
}

enum { LONG = 250 }; /* tokens: two of these, and the caches grow */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Bytes bytes = {data, size};
    Config config = {.rope_base = 10000, .norm_eps = 1e-5f};
    config.n_heads = 1 + next(&bytes) % 4;
    config.n_kv_heads = next(&bytes) % 2 ? config.n_heads : 1;
    config.n_layers = 1 + next(&bytes) % 2;
    config.dim = config.n_heads * 2 * (1 + next(&bytes) % 16);
    config.hidden_dim = 1 + next(&bytes) % 70;
    config.vocab_size = 1 + next(&bytes) % 70;
    config.seq_len = 600; /* the caches start with room for 256 */
    config.tied = next(&bytes) % 2;
    const uint8_t fault = next(&bytes), field = fault % 10;
    if (fault > 240 && field < 8) ((int32_t *)&config)[field] = (int8_t)next(&bytes);
    if (fault > 240 && field >= 8) {
        uint32_t bits = 0;
        for (int i = 0; i < 4; i++) bits = bits << 8 | next(&bytes);
        *(field == 8 ? &config.rope_base : &config.norm_eps) = f32_from_bits(bits);
    }
    Model *m;
    if (model_new(&config, &m)) return 0;
    for (int i = next(&bytes) % 8; i > 0; i--) {
        const int tensor = next(&bytes) % (N_TENSORS + 1), layer = next(&bytes) % 3;
        load(m, tensor, layer, &bytes);
    }
    for (int layer = 0; layer < config.n_layers; layer++)
        for (int tensor = 0; tensor < N_TENSORS; tensor++)
            if (load(m, tensor, layer, &bytes)) load_floats(m, tensor, layer);
    for (int round = 0, position = 0; round < 6 && (round == 0 || bytes.size); round++) {
        int32_t tokens[LONG];
        const uint8_t count = next(&bytes), where = next(&bytes);
        const int n = count > 250 ? LONG : 1 + count % 40;
        if (where > 200) position = where % (position + 2); /* back, or to one too far */
        for (int i = 0; i < n; i++) tokens[i] = next(&bytes) % (config.vocab_size + 1);
        if (forward(m, tokens, n, position) == OK) position += n;
        shortlist(model_logits(m), next(&bytes));
        probabilities(model_logits(m), next(&bytes) / 64.0);
        draw(model_logits(m), next(&bytes) / 64.0, next(&bytes) / 256.0);
    }
    model_free(m);
    return 0;
}
