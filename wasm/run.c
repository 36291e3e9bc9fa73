/* A Llama in C: the heir of llama2.c's run.c, as a library for a WebAssembly host. This file is the model; its headers
 * are what it stands on.
 *
 *   Config    the shape of the model
 *   Weights   the matrices, packed for the kernels of matrix.h
 *   State     activations and the KV cache
 *   forward   tokens in, logits out: read this function to know how the model works
 *
 * A token is a row of the embedding, a vector x of dim numbers. Every layer adds to it twice:
 *
 *     a = rmsnorm(x) * attn_norm                         the input of attention
 *     q, k, v = attn_q a, attn_k a, attn_v a             split into heads; q and k are turned by their position (RoPE)
 *     w = softmax(q . k[0 .. position] / sqrt(head_size))     of each head: how much it looks at each token so far
 *     x = x + attn_output (sum of w[p] v[p])
 *
 *     f = rmsnorm(x) * ffn_norm                          the input of the feed-forward network
 *     x = x + ffn_down (silu(ffn_gate f) * ffn_up f)     silu(z) = z / (1 + e^-z)
 *
 * and output (rmsnorm(x) * output_norm) are the logits: one number for each token of the vocabulary, the larger the
 * likelier. With grouped-query attention several heads of q share one head of k and v.
 *
 * The host (py/fabella/engine.py) calls, in this order: model_new; for every tensor of the file tensor_begin and then
 * tensor_rows until it has all rows; forward for the prompt and for each further token, and after each forward
 * shortlist and probabilities, or draw (logits.h).
 *
 * There is no stdio and no exit: what can fail returns a negative error code. Arithmetic is the same, operation by
 * operation, for a token alone and for a token in a batch, and in every build of this file: the same bits everywhere,
 * as long as all numbers are finite.
 */
#include "loading.h"
#include "logits.h"
#include "maths.h"
#include "matrix.h"
#include "memory.h"
#include "parallel.h"

enum { BATCH = 32 };         /* tokens that go through a layer together in prefill */
enum { TILE = 32 };          /* positions that lie side by side in the key cache */
enum { QUERIES = 8 };        /* of attention that read the cache together, or more if more heads share it */
enum { MAX_SIZE = 1 << 24 }; /* no dimension is larger, so products of two fit 64 bits with ease */

/* ---- Config, Weights, State ------------------------------------------------------------------------------------- */

typedef struct {
    int32_t dim;        /* width of the residual stream */
    int32_t hidden_dim; /* width of the feed-forward layer */
    int32_t n_layers;
    int32_t n_heads;    /* query heads */
    int32_t n_kv_heads; /* key/value heads; fewer than n_heads in grouped-query attention */
    int32_t vocab_size;
    int32_t seq_len; /* context length, in tokens */
    int32_t tied;    /* 1: the output matrix is the token embedding */
    float rope_base;
    float norm_eps;
} Config;

typedef struct {
    float *attn_norm;   /* (dim) */
    Matrix attn_q;      /* (n_heads * head_size, dim) */
    Matrix attn_k;      /* (n_kv_heads * head_size, dim) */
    Matrix attn_v;      /* (n_kv_heads * head_size, dim) */
    Matrix attn_output; /* (dim, n_heads * head_size) */
    float *ffn_norm;    /* (dim) */
    Matrix ffn_gate;    /* (hidden_dim, dim) */
    Matrix ffn_down;    /* (dim, hidden_dim) */
    Matrix ffn_up;      /* (hidden_dim, dim) */

    /* The layer's KV cache: of each head first the keys, (capacity / TILE, pad4(head_size), TILE), then the values,
     * (capacity, pad4(head_size)). Keys lie in tiles of 32 positions, so that a query meets four positions in one
     * vector. A head's lie together, because memory is read fastest in one go. */
    float *cache;
    int capacity; /* positions there is room for */
} Layer;

typedef struct {
    Config config;
    int head_size, kv_dim;
    int kv_mul;          /* query heads that share a key/value head */
    int tokens_at_once;  /* in attention */
    int queries_at_once; /* tokens_at_once * kv_mul */

    /* Weights */
    Matrix token_embd; /* (vocab_size, dim) */
    Layer *layers;
    float *output_norm; /* (dim) */
    Matrix output;      /* (vocab_size, dim); shares token_embd's panels when tied */
    int64_t missing;    /* tensors still to be loaded */
    bool has_integers;  /* some matrix is quantised */
    Loading loading;

    /* State: buffers of BATCH tokens, each row padded to a multiple of four */
    float *x;             /* residual stream (BATCH, dim) */
    float *xb;            /* normed input, and what attention returns (BATCH, dim) */
    float *xb2;           /* what a block adds to the stream (BATCH, dim) */
    float *q;             /* (BATCH, dim) */
    float *k, *v;         /* (BATCH, kv_dim) */
    float *h1, *h3;       /* (BATCH, hidden_dim) */
    Logits logits;        /* after the last token */
    Quantized *quantized; /* a quantised matmul's input (BATCH, max(dim, hidden_dim)) */
    InputGroup *groups;   /* (BATCH, max(dim, hidden_dim) / GROUP) */

    int capacity;      /* positions there is room for: grows to seq_len as the text does */
    int filled;        /* positions computed so far */
    float *rope;       /* (capacity, head_size / 2, 2): cosine and sine */
    double *frequency; /* (head_size / 2): RoPE's angle per position */
    float *scores;     /* (MAX_THREADS, queries_at_once, capacity) */
    float *heads;      /* (MAX_THREADS, queries_at_once, pad4(head_size)): what attention found */
} Model;

/* Makes room for this many positions: KV cache, rope table, scores. */
static int reserve(Model *m, int positions) {
    if (positions <= m->capacity) return OK;
    const Config *c = &m->config;
    int64_t wanted = 2 * (int64_t)m->capacity > 256 ? 2 * (int64_t)m->capacity : 256;
    if (wanted > c->seq_len) wanted = c->seq_len;
    if (wanted < positions) wanted = positions;
    uint64_t old = (uint64_t)m->capacity, new = ((uint64_t)wanted + TILE - 1) / TILE * TILE;
    uint64_t score_rows = (uint64_t)MAX_THREADS * m->queries_at_once;
    uint64_t row = (uint64_t)pad4(m->head_size);
    for (int l = 0; l < c->n_layers; l++) {
        Layer *layer = &m->layers[l];
        if ((uint64_t)layer->capacity >= new) continue; /* has grown before the memory was not enough for another */
        if (!grow(&layer->cache, 2 * c->n_kv_heads, layer->capacity * row, new * row)) return E_MEMORY;
        layer->capacity = (int)new;
    }
    if (!grow(&m->scores, 1, old * score_rows, new * score_rows)) return E_MEMORY;
    if (!grow(&m->rope, 1, old * m->head_size, new * m->head_size)) return E_MEMORY;
    for (uint64_t position = old; position < new; position++) {
        for (int i = 0; i < m->head_size / 2; i++) {
            double cosine, sine;
            cos_sin_double((double)position * m->frequency[i], &cosine, &sine);
            float *entry = m->rope + position * m->head_size + 2 * i;
            entry[0] = (float)cosine;
            entry[1] = (float)sine;
        }
    }
    m->capacity = (int)new;
    return OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* What a tensor's rows and columns are as many as. */
typedef enum { ONE, DIM, HIDDEN_DIM, KV_DIM, VOCAB_SIZE } Size;

/* A norm, which has one row, is a float * at this place in Layer or Model; a matrix is a Matrix there. */
typedef struct {
    bool in_layers;
    size_t place;
    Size rows, cols;
} Tensor;

/* By their numbers, in the order of architectures.py. */
static const Tensor TENSORS[] = {
    {false, offsetof(Model, token_embd), VOCAB_SIZE, DIM},
    {true, offsetof(Layer, attn_norm), ONE, DIM},
    {true, offsetof(Layer, attn_q), DIM, DIM},
    {true, offsetof(Layer, attn_k), KV_DIM, DIM},
    {true, offsetof(Layer, attn_v), KV_DIM, DIM},
    {true, offsetof(Layer, attn_output), DIM, DIM},
    {true, offsetof(Layer, ffn_norm), ONE, DIM},
    {true, offsetof(Layer, ffn_gate), HIDDEN_DIM, DIM},
    {true, offsetof(Layer, ffn_down), DIM, HIDDEN_DIM},
    {true, offsetof(Layer, ffn_up), HIDDEN_DIM, DIM},
    {false, offsetof(Model, output_norm), ONE, DIM},
    {false, offsetof(Model, output), VOCAB_SIZE, DIM},
};
enum { N_TENSORS = sizeof TENSORS / sizeof *TENSORS };

static int size_of(const Model *m, Size size) {
    switch (size) {
    case ONE: return 1;
    case DIM: return m->config.dim;
    case HIDDEN_DIM: return m->config.hidden_dim;
    case KV_DIM: return m->kv_dim;
    default: return m->config.vocab_size;
    }
}

static bool is_norm(const Tensor *tensor) { return tensor->rows == ONE; }

/* Where a tensor of a layer, or of the model, is. */
static void *tensor_place(Model *m, const Tensor *tensor, int layer) {
    return (char *)(tensor->in_layers ? (void *)&m->layers[layer] : m) + tensor->place;
}

/* A tied model has no matrix of its own for the output. */
static bool is_borrowed(const Model *m, const Tensor *tensor) {
    return m->config.tied && tensor->place == offsetof(Model, output) && !tensor->in_layers;
}

/* ---- loading ---------------------------------------------------------------------------------------------------- */

/* Frees a model and all that it owns; NULL is allowed. */
EXPORT void model_free(Model *m) {
    if (!m) return;
    for (int i = 0; i < N_TENSORS; i++) {
        const int count = TENSORS[i].in_layers ? (m->layers ? m->config.n_layers : 0) : !is_borrowed(m, &TENSORS[i]);
        for (int l = 0; l < count; l++) {
            void *place = tensor_place(m, &TENSORS[i], l);
            free(is_norm(&TENSORS[i]) ? (void *)*(float **)place : (void *)((Matrix *)place)->panels);
        }
    }
    for (int l = 0; m->layers && l < m->config.n_layers; l++) free(m->layers[l].cache);
    // clang-format off
    void *owned[] = {
        m->x, m->xb, m->xb2, m->q, m->k, m->v, m->h1, m->h3, m->logits.values,
        m->quantized, m->groups, m->rope, m->frequency, m->scores, m->heads, m->logits.candidates, m->layers, m,
    };
    // clang-format on
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

static bool config_is_valid(const Config *c) {
    const int32_t sizes[] = {c->dim, c->hidden_dim, c->n_layers, c->n_heads, c->n_kv_heads, c->vocab_size, c->seq_len};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] <= 0 || sizes[i] > MAX_SIZE) return false;
    /* RoPE's angles must stay below 2^20 (maths.h), its base must have a logarithm */
    return c->dim % c->n_heads == 0 && (c->dim / c->n_heads) % 2 == 0 && c->n_heads % c->n_kv_heads == 0 &&
           c->seq_len <= 1 << 20 && c->rope_base >= 1 && is_finite(c->rope_base) && c->norm_eps >= 0 &&
           is_finite(c->norm_eps) && (c->tied == 0 || c->tied == 1);
}

/* Makes an empty model in *out, or NULL. Errors: E_CONFIG, E_MEMORY. */
EXPORT int model_new(const Config *config, Model **out) {
    *out = NULL;
    if (!config_is_valid(config)) return E_CONFIG;
    Model *m = calloc(1, sizeof *m);
    if (!m) return E_MEMORY;
    const Config *c = &m->config;
    m->config = *config;
    m->head_size = c->dim / c->n_heads;
    m->kv_dim = c->n_kv_heads * m->head_size;
    m->kv_mul = c->n_heads / c->n_kv_heads;
    m->tokens_at_once = m->kv_mul < QUERIES ? QUERIES / m->kv_mul : 1;
    m->queries_at_once = m->tokens_at_once * m->kv_mul;
    for (int i = 0; i < N_TENSORS; i++) m->missing += TENSORS[i].in_layers ? c->n_layers : !is_borrowed(m, &TENSORS[i]);
    int widest = c->dim > c->hidden_dim ? c->dim : c->hidden_dim;
    bool enough = (m->layers = allocate_zeroed((uint64_t)c->n_layers, sizeof(Layer))) &&
                  (m->x = allocate_floats(BATCH, c->dim)) && (m->xb = allocate_floats(BATCH, c->dim)) &&
                  (m->xb2 = allocate_floats(BATCH, c->dim)) && (m->q = allocate_floats(BATCH, c->dim)) &&
                  (m->k = allocate_floats(BATCH, m->kv_dim)) && (m->v = allocate_floats(BATCH, m->kv_dim)) &&
                  (m->h1 = allocate_floats(BATCH, c->hidden_dim)) && (m->h3 = allocate_floats(BATCH, c->hidden_dim)) &&
                  (m->logits.values = allocate_floats(1, c->vocab_size)) &&
                  (m->quantized = allocate_zeroed(BATCH * (uint64_t)widest, sizeof(Quantized))) &&
                  (m->groups = allocate_zeroed(BATCH * (uint64_t)(widest / GROUP), sizeof(InputGroup))) &&
                  (m->logits.candidates = allocate_zeroed((uint64_t)c->vocab_size, sizeof(Candidate))) &&
                  (m->frequency = allocate_zeroed((uint64_t)m->head_size / 2, sizeof(double))) &&
                  (m->heads = allocate_floats((uint64_t)MAX_THREADS * m->queries_at_once, m->head_size));
    if (!enough) {
        model_free(m);
        return E_MEMORY;
    }
    for (int i = 0; i < m->head_size / 2; i++)
        m->frequency[i] = exp_double(-2.0 * i / m->head_size * log_double(c->rope_base));
    for (int id = 0; id < pad4(c->vocab_size); id++) m->logits.values[id] = -__builtin_inff();
    m->logits.vocab_size = c->vocab_size;
    *out = m;
    return OK;
}

/* Starts a tensor of (rows, cols) numbers of a GGUF type; a norm has one row. `group` is 0 but for I8, where so many
 * weights, counted over the whole tensor, share a scale. Errors: E_TENSOR, also before the tensor begun earlier has all
 * its rows; E_MEMORY. The model is as it was then. */
EXPORT int tensor_begin(Model *m, int tensor, int layer, int type, int rows, int cols, int group) {
    if (tensor < 0 || tensor >= N_TENSORS || layer < 0 || layer >= m->config.n_layers || m->loading.rows || cols <= 0)
        return E_TENSOR;
    if (file_row_bytes(type, cols) == 0 || (type == TYPE_I8 ? group <= 0 : group != 0)) return E_TENSOR;
    const Tensor *wanted = &TENSORS[tensor];
    if (is_borrowed(m, wanted) || rows != size_of(m, wanted->rows) || cols != size_of(m, wanted->cols)) return E_TENSOR;
    Loading loading = {.type = type, .group = group, .rows = rows, .cols = cols};
    void *place = tensor_place(m, wanted, layer);
    int error = is_norm(wanted) ? begin_norm(&loading, place) : begin_matrix(&loading, place);
    if (!error) m->loading = loading;
    return error;
}

/* Packs the next rows of the tensor: `size` bytes as they lie in the file, whole rows. `scales` are all those of an I8
 * tensor, ceil(rows * cols / group), every time; else NULL. Both may go afterwards. Errors: E_TENSOR, E_NOT_FINITE,
 * E_RANGE. After the last row the next tensor may begin; after an error this one may begin anew. */
EXPORT int tensor_rows(Model *m, const char *data, uint32_t size, const float *scales) {
    Loading *loading = &m->loading;
    int error = load_rows(loading, data, size, scales);
    if (!error && loading->done < loading->rows) return OK;
    if (error) {
        discard(loading);
    } else {
        m->missing--;
        m->has_integers |= loading->matrix && loading->matrix->layout != F32;
        if (m->config.tied) m->output = m->token_embd;
    }
    *loading = (Loading){0};
    return error;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* out = x / rms(x) * weight, for n tokens of `dim` floats. */
static void rmsnorm(float *out, const float *x, const float *weight, int dim, float eps, int n) {
    const int stride = pad4(dim);
    for (int t = 0; t < n; t++, x += stride, out += stride) {
        f32x4 squares = f32x4_splat(0);
        for (int i = 0; i < stride; i += 4) squares += f32x4_load(x + i) * f32x4_load(x + i);
        float scale = 1.0f / __builtin_sqrtf(f32x4_sum(squares) / (float)dim + eps);
        for (int i = 0; i < stride; i += 4) f32x4_store(out + i, f32x4_load(x + i) * scale * f32x4_load(weight + i));
    }
}

/* Turns each adjacent pair of a head by its angle at this position. */
static void rope(float *heads, const float *angles, int n_heads, int head_size) {
    for (int h = 0; h < n_heads; h++, heads += head_size) {
        for (int i = 0; i < head_size; i += 2) {
            float a = heads[i], b = heads[i + 1], cosine = angles[i], sine = angles[i + 1];
            heads[i] = a * cosine - b * sine;
            heads[i + 1] = a * sine + b * cosine;
        }
    }
}

/* A key/value head's keys from a position on, (head_size, TILE): within a tile the next column is the next position. */
static View keys_from(const Layer *layer, int head, int position, int head_size) {
    const size_t tile = (size_t)2 * head * layer->capacity + position / TILE * TILE;
    return (View){layer->cache + tile * pad4(head_size) + position % TILE, TILE};
}

/* Its values from a position on, (positions, head_size). */
static View values_from(const Layer *layer, int head, int position, int head_size) {
    const size_t row = (size_t)(2 * head + 1) * layer->capacity + position;
    return (View){layer->cache + row * pad4(head_size), pad4(head_size)};
}

static void cache_key_value(Layer *layer, const Model *m, const float *k, const float *v, int position) {
    const int size = m->head_size;
    for (int h = 0; h < m->config.n_kv_heads; h++, k += size, v += size) {
        const View keys = keys_from(layer, h, position, size);
        for (int i = 0; i < size; i++) *row_of(keys, i) = k[i];
        memcpy(values_from(layer, h, position, size).data, v, (size_t)size * 4);
    }
}

/* weights[0 .. n - 1] = softmax(scale * weights); zeros from n to end, a multiple of 4. All are NaN if a score is not
 * finite: a position must not be lost in silence. */
static void softmax(float *weights, int n, int end, float scale) {
    f32x4 max4 = f32x4_splat(-3e38f), total = f32x4_splat(0);
    for (int i = 0; i < end; i += 4) {
        i32x4 later = i32x4_splat(i) + (i32x4){0, 1, 2, 3} >= n;
        f32x4 score = f32x4_select(later, f32x4_splat(-3e38f), f32x4_load(weights + i) * scale);
        max4 = f32x4_max(score, max4);
        total += score - score; /* 0 or NaN */
        f32x4_store(weights + i, score);
    }
    const float max = f32x4_largest(max4);
    for (int i = 0; i < end; i += 4) {
        f32x4 weight = f32x4_exp(f32x4_load(weights + i) - max);
        total += weight;
        f32x4_store(weights + i, weight);
    }
    const float inverse = 1.0f / f32x4_sum(total);
    for (int i = 0; i < end; i += 4) f32x4_store(weights + i, f32x4_load(weights + i) * inverse);
}

/* A block of attention: a few tokens, in the heads that share one key/value head. Each product goes through the cache
 * tile by tile, so that a tile is read once for all of them. */
typedef struct {
    const Layer *layer;
    int kv_head, size;   /* of a head */
    int n_heads, n;      /* heads, tokens */
    int position, end;   /* of the first token; after the last */
    View q, out;         /* (n, n_heads * size), in m->q and m->xb */
    View scores, result; /* (n_heads * n, end), (n_heads * n, size): of this thread, head by head */
} Block;

/* scores[t, p] = q[t] . k[p] */
static void score_positions(const Block *b) {
    for (int tile = 0; tile < b->end; tile += TILE) {
        const View keys = keys_from(b->layer, b->kv_head, tile, b->size);
        for (int h = 0; h < b->n_heads; h++)
            f32_product(keys, view_from(b->q, 0, h * b->size), view_from(b->scores, h * b->n, tile), TILE, b->size,
                        b->n, FRESH);
    }
}

/* scores[t, :] = softmax(scores[t, :] / sqrt(size)) over the positions up to the token's own */
static void weigh_positions(const Block *b) {
    for (int row = 0; row < b->n_heads * b->n; row++)
        softmax(row_of(b->scores, row), b->position + row % b->n + 1, pad4(b->end),
                1.0f / __builtin_sqrtf((float)b->size));
}

/* out[t] = the sum over p of scores[t, p] * v[p] */
static void mix_values(const Block *b) {
    memset(b->result.data, 0, (size_t)b->n_heads * b->n * b->result.stride * sizeof(float));
    for (int tile = 0; tile < b->end; tile += TILE) {
        const View values = values_from(b->layer, b->kv_head, tile, b->size);
        const int positions = b->end - tile < TILE ? b->end - tile : TILE;
        for (int h = 0; h < b->n_heads; h++)
            f32_product(values, view_from(b->scores, h * b->n, tile), view_from(b->result, h * b->n, 0),
                        b->result.stride, positions, b->n, ADDED);
    }
    for (int h = 0; h < b->n_heads; h++)
        for (int t = 0; t < b->n; t++)
            memcpy(row_of(b->out, t) + h * b->size, row_of(b->result, h * b->n + t), (size_t)b->size * sizeof(float));
}

typedef struct {
    const Model *m;
    const Layer *layer;
    int position, n; /* the batch: its first position, how many tokens */
} AttentionJob;

/* The blocks first .. end - 1 of attention: m->q in, m->xb out. */
static void attention(void *context, int first, int end, int thread) {
    const AttentionJob *job = context;
    const Model *m = job->m;
    const int size = m->head_size, dim = pad4(m->config.dim), n_kv_heads = m->config.n_kv_heads;
    const View q = {m->q, dim}, out = {m->xb, dim};
    const View scores = {m->scores, m->capacity}, result = {m->heads, pad4(size)};
    for (int block = first; block < end; block++) {
        const int kv_head = block % n_kv_heads, token = block / n_kv_heads * m->tokens_at_once;
        const int n = job->n - token < m->tokens_at_once ? job->n - token : m->tokens_at_once;
        const int position = job->position + token, column = kv_head * m->kv_mul * size;
        const Block b = {
            .layer = job->layer,
            .kv_head = kv_head,
            .size = size,
            .n_heads = m->kv_mul,
            .n = n,
            .position = position,
            .end = position + n,
            .q = view_from(q, token, column),
            .out = view_from(out, token, column),
            .scores = view_from(scores, thread * m->queries_at_once, 0),
            .result = view_from(result, thread * m->queries_at_once, 0),
        };
        score_positions(&b);
        weigh_positions(&b);
        mix_values(&b);
    }
}

/* h1 = silu(h1) * h3 */
static void swiglu(float *h1, const float *h3, int count) {
    for (int i = 0; i < count; i += 4) {
        f32x4 a = f32x4_load(h1 + i);
        f32x4_store(h1 + i, a / (1.0f + f32x4_exp(-a)) * f32x4_load(h3 + i));
    }
}

static void add(float *x, const float *y, int count) {
    for (int i = 0; i < count; i += 4) f32x4_store(x + i, f32x4_load(x + i) + f32x4_load(y + i));
}

/* Wraps a buffer as matmul's input; quantises it once for all the matrices that read it. */
static Activations activations(const Model *m, float *x, int cols, int n) {
    Activations a = {{x, pad4(cols)}, m->quantized, m->groups};
    if (m->has_integers && cols % GROUP == 0) quantize(&a, cols, n);
    return a;
}

/* Up to BATCH tokens through all layers: fills the KV cache at position .. position + n - 1, leaves the stream in x. */
static void forward_batch(Model *m, const int32_t *tokens, int n, int position) {
    const Config *c = &m->config;
    const int dim = pad4(c->dim), kv_dim = pad4(m->kv_dim);

    for (int t = 0; t < n; t++) matrix_row(&m->token_embd, tokens[t], m->x + (size_t)t * dim);

    for (int l = 0; l < c->n_layers; l++) {
        Layer *layer = &m->layers[l];

        /* attention: x += output * attend(q * norm(x), k * norm(x), v * norm(x)) */
        rmsnorm(m->xb, m->x, layer->attn_norm, c->dim, c->norm_eps, n);
        Activations in = activations(m, m->xb, c->dim, n);
        matmul((Product[]){{&layer->attn_q, m->q}, {&layer->attn_k, m->k}, {&layer->attn_v, m->v}}, 3, &in, n);
        for (int t = 0; t < n; t++) {
            const float *angles = m->rope + (size_t)(position + t) * m->head_size;
            rope(m->q + (size_t)t * dim, angles, c->n_heads, m->head_size);
            rope(m->k + (size_t)t * kv_dim, angles, c->n_kv_heads, m->head_size);
            cache_key_value(layer, m, m->k + (size_t)t * kv_dim, m->v + (size_t)t * kv_dim, position + t);
        }
        const int blocks = (n + m->tokens_at_once - 1) / m->tokens_at_once;
        parallel(attention, &(AttentionJob){m, layer, position, n}, blocks * c->n_kv_heads);
        in = activations(m, m->xb, c->dim, n);
        matmul(&(Product){&layer->attn_output, m->xb2}, 1, &in, n);
        add(m->x, m->xb2, n * dim);

        /* feed-forward: x += down * (silu(gate * norm(x)) * (up * norm(x))) */
        rmsnorm(m->xb, m->x, layer->ffn_norm, c->dim, c->norm_eps, n);
        in = activations(m, m->xb, c->dim, n);
        matmul((Product[]){{&layer->ffn_gate, m->h1}, {&layer->ffn_up, m->h3}}, 2, &in, n);
        swiglu(m->h1, m->h3, n * pad4(c->hidden_dim));
        in = activations(m, m->h1, c->hidden_dim, n);
        matmul(&(Product){&layer->ffn_down, m->xb2}, 1, &in, n);
        add(m->x, m->xb2, n * dim);
    }
}

/* Computes tokens[n] at positions position .. position + n - 1 and the logits after the last of them. The positions
 * before must have been computed; those after are forgotten, so a smaller position rewinds. Errors: E_INCOMPLETE,
 * E_POSITION, E_TOKEN, E_MEMORY. Nothing is computed or forgotten then. */
EXPORT int forward(Model *m, const int32_t *tokens, int n, int position) {
    const Config *c = &m->config;
    if (m->missing) return E_INCOMPLETE;
    if (position < 0 || position > m->filled || n <= 0 || n > c->seq_len - position) return E_POSITION;
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= c->vocab_size) return E_TOKEN;
    int error = reserve(m, position + n);
    if (error) return error;
    m->filled = position;
    m->logits.n_candidates = 0; /* those of other logits */
    for (int done = 0, batch; done < n; done += batch) {
        batch = n - done < BATCH ? n - done : BATCH;
        forward_batch(m, tokens + done, batch, position + done);
        m->filled += batch;
    }
    const float *last = m->x + (size_t)((n - 1) % BATCH) * pad4(c->dim);
    rmsnorm(m->xb, last, m->output_norm, c->dim, c->norm_eps, 1);
    Activations in = activations(m, m->xb, c->dim, 1);
    matmul(&(Product){&m->output, m->logits.values}, 1, &in, 1);
    for (int id = c->vocab_size; id < pad4(c->vocab_size); id++) m->logits.values[id] = -__builtin_inff();
    return OK;
}

/* The logits after the last token. */
EXPORT Logits *model_logits(Model *m) { return &m->logits; }

/* forward for one token and shortlist in one call, because a host's calls cost more than either argument. Returns how
 * many candidates there are, or an error of forward's; 0 if no logit is a finite number. */
EXPORT int forward_token(Model *m, int32_t token, int position, int k) {
    int error = forward(m, &token, 1, position);
    if (error) return error;
    int count = shortlist(&m->logits, k);
    return count == E_LOGITS ? 0 : count;
}
