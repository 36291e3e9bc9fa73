/* A libFuzzer target: any bytes as a model's tensors and as tokens.
 *
 * The first bytes choose a small Config of any family; then come a few tensors that may be right or wrong, in any order, then all
 * that are missing, and then tokens, forwards and rewound, with adapters that may be right or wrong in between. A
 * tensor's rows arrive in two parts. Nothing may crash, overflow, leak or be undefined.
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
    const int types[] = {TYPE_F32,    TYPE_F16,   TYPE_BF16,  TYPE_I8,    TYPE_Q8_0, TYPE_Q5_0, TYPE_Q5_1,
                         TYPE_Q4_0,   TYPE_Q4_1,  TYPE_Q6_K,  TYPE_Q5_K,  TYPE_Q4_K, TYPE_Q3_K, TYPE_IQ4_XS,
                         TYPE_IQ4_NL, TYPE_MXFP4, TYPE_TQ2_0, TYPE_TQ1_0, 99};
    const int type = types[next(bytes) % (sizeof types / sizeof *types)];
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

/* An adapter for some matrices, or for what is none; or the one that is there is switched. */
static void adapt(Model *m, Bytes *bytes) {
    const int types[] = {TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q8_0};
    if (next(bytes) % 4 == 0) {
        adapter_use(m, next(bytes) % 2);
        return;
    }
    adapter_new(m, next(bytes) % 9 - 1);
    for (int i = next(bytes) % 8; i > 0; i--) {
        const int tensor = next(bytes) % (N_TENSORS + 1), layer = next(bytes) % 3, rank = (int8_t)next(bytes);
        if (adapter_begin(m, tensor, layer, rank, next(bytes) * 0.01f)) continue;
        for (int part = 0; part < 2; part++) {
            int32_t rows, cols;
            right_shape(m, tensor, &rows, &cols);
            if (part == 1) cols = rank;
            if (part == 0) rows = rank;
            const uint8_t type = next(bytes), cut = next(bytes);
            const size_t size = (size_t)rows * file_row_bytes(types[type % 4], cols) + (cut > 250);
            char *data = calloc(size ? size : 1, 1);
            for (size_t at = 0; bytes->size && at < size; at++) data[at] = (char)bytes->data[at % bytes->size];
            adapter_part(m, part + (cut > 253), types[type % 4], data, (uint32_t)size);
            free(data);
        }
    }
}

/* Looks inside a token, at any position, or at what is none. */
static void look(Model *m, int32_t token, Bytes *bytes) {
    const Config *c = &m->config;
    const int flags = next(bytes), position = flags < 250 ? next(bytes) : -1, k = flags % 5 - 1;
    const size_t runs = (size_t)c->n_layers * c->repeats, n = position < 0 ? 0 : (size_t)position + 1;
    float *attention = flags & 8 ? calloc(runs * c->n_heads * n + 1, sizeof(float)) : NULL;
    Candidate *lens = flags & 16 ? calloc(runs * (k < 0 ? 0 : k) + 1, sizeof(Candidate)) : NULL;
    probe(m, token, position, attention, lens, k);
    free(attention);
    free(lens);
}

enum { LONG = 250 }; /* tokens: two of these, and the caches grow */

static Config some_config(Bytes *bytes) {
    Config c = {.norm_eps = 1e-5f, .embedding_scale = 1, .residual_scale = 1, .logit_scale = 1};
    const uint8_t flags = next(bytes), sizes = next(bytes);
    c.n_heads = 1 + next(bytes) % 4;
    c.n_kv_heads = next(bytes) % 2 ? c.n_heads : 1;
    c.n_layers = 1 + next(bytes) % 2;
    c.repeats = 1 + (sizes & 1);
    c.head_size = 2 * (1 + next(bytes) % 16);
    c.rope_size = sizes & 2 ? 2 : c.head_size;
    c.dim = sizes & 4 ? 256 : c.n_heads * (1 + next(bytes) % 40); /* 256: the least that all formats can have */
    c.hidden_dim = sizes & 8 ? 256 : 1 + next(bytes) % 70;
    c.vocab_size = 1 + next(bytes) % 70;
    c.seq_len = 600; /* the caches start with room for 256 */
    c.tied = flags & 1;
    c.halves = flags >> 1 & 1;
    c.joint_norm = flags >> 2 & 1;
    c.gelu = flags >> 3 & 1;
    c.attention_cap = flags & 16 ? 50 : 0;
    c.logit_cap = flags & 32 ? 30 : 0;
    c.logit_scale = flags & 64 ? 1.5f : 1;
    c.attention_scale = flags & 128 ? 0.3f : 0;
    const uint8_t fault = next(bytes), field = fault % 21;
    if (fault > 240 && field < 14) ((int32_t *)&c)[field] = (int8_t)next(bytes);
    if (fault > 240 && field >= 14) {
        uint32_t bits = 0;
        for (int i = 0; i < 4; i++) bits = bits << 8 | next(bytes);
        (&c.norm_eps)[field - 14] = f32_from_bits(bits);
    }
    return c;
}

/* Two tables, of which layers use either or none. */
static void set_positions(Model *m, Bytes *bytes) {
    double angles[16];
    for (int table = 0; table < ROPES; table++) {
        const uint8_t fault = next(bytes);
        for (int i = 0; i < 16; i++) angles[i] = fault > 250 && i == 3 ? __builtin_nan("") : 1.0 / (1 + i + table);
        if (m->config.rope_size <= 32) set_rope(m, table + (fault > 253), angles, fault > 248 ? 0 : 1);
    }
    for (int layer = 0; layer < m->config.n_layers; layer++)
        set_layer(m, layer, next(bytes) % 4 - 1, next(bytes) % 2 ? next(bytes) : 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Bytes bytes = {data, size};
    const Config config = some_config(&bytes);
    Model *m;
    if (model_new(&config, &m)) return 0;
    set_positions(m, &bytes);
    for (int i = next(&bytes) % 8; i > 0; i--) {
        const int tensor = next(&bytes) % (N_TENSORS + 1), layer = next(&bytes) % 3;
        load(m, tensor, layer, &bytes);
    }
    for (int layer = 0; layer < config.n_layers; layer++)
        for (int tensor = 0; tensor < N_TENSORS; tensor++)
            if (is_needed(&TENSORS[tensor]) || next(&bytes) % 2)
                if (load(m, tensor, layer, &bytes)) load_floats(m, tensor, layer);
    for (int round = 0, position = 0; round < 6 && (round == 0 || bytes.size); round++) {
        int32_t tokens[LONG];
        if (next(&bytes) % 4 == 1) adapt(m, &bytes), position = 0;
        const uint8_t count = next(&bytes), where = next(&bytes);
        const int n = count > 250 ? LONG : 1 + count % 40;
        if (where > 200) position = where % (position + 2); /* back, or to one too far */
        for (int i = 0; i < n; i++) tokens[i] = next(&bytes) % (config.vocab_size + 1);
        if (forward(m, tokens, n, position) == OK) position += n;
        shortlist(model_logits(m), next(&bytes));
        probabilities(model_logits(m), next(&bytes) / 64.0);
        draw(model_logits(m), next(&bytes) / 64.0, next(&bytes) / 256.0);
        mean_logit(model_logits(m), next(&bytes) / 64.0);
        entropy(model_logits(m));
        log_probability(model_logits(m), next(&bytes) - 1);
        probability(model_logits(m), next(&bytes) - 1, next(&bytes) / 64.0);
        if (next(&bytes) % 4 == 0) look(m, tokens[0], &bytes);
        const int some = next(&bytes) % 8;
        float values[8] = {0};
        if (read_logits(model_logits(m), tokens, values, some) == OK && some)
            values[0] = next(&bytes) % 2 ? __builtin_nanf("") : next(&bytes);
        exchange_logits(model_logits(m), tokens, values, some);
        shortlist(model_logits(m), next(&bytes));
    }
    model_free(m);
    return 0;
}
