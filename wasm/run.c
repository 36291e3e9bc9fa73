/* A Llama in one C file: the heir of llama2.c's run.c, as a library for a WebAssembly host.
 *
 *   Config    the shape of the model
 *   Weights   the matrices, packed for the kernels of matrix.h
 *   State     activations and the KV cache
 *   forward   tokens in, logits out: read this function to know how the model works
 *
 * The host (py/fabella/engine.py) calls, in this order: model_new; for every tensor of the file tensor_begin and then
 * tensor_rows until it has all rows; forward for the prompt and for each further token, and after each forward
 * shortlist and probabilities, or draw.
 *
 * There is no stdio and no exit: what can fail returns a negative error code. Arithmetic is the same, operation by
 * operation, for a token alone and for a token in a batch, and in every build of this file: the same bits everywhere,
 * as long as all numbers are finite.
 */
#include "abi.h"
#include "maths.h"
#include "matrix.h"
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
    float *attn_norm; /* (dim) */
    Matrix wq;        /* (n_heads * head_size, dim) */
    Matrix wk;        /* (n_kv_heads * head_size, dim) */
    Matrix wv;        /* (n_kv_heads * head_size, dim) */
    Matrix wo;        /* (dim, n_heads * head_size) */
    float *ffn_norm;  /* (dim) */
    Matrix w1;        /* gate (hidden_dim, dim) */
    Matrix w2;        /* down (dim, hidden_dim) */
    Matrix w3;        /* up   (hidden_dim, dim) */

    /* The layer's KV cache: of each head first the keys, (capacity / TILE, pad4(head_size), TILE), then the values,
     * (capacity, pad4(head_size)). Keys lie in tiles of 32 positions, so that a query meets four positions in one
     * vector. A head's lie together, because memory is read fastest in one go. */
    float *cache;
    int capacity; /* positions there is room for */
} Layer;

/* The tensor whose rows are being packed. */
typedef struct {
    Matrix *matrix; /* or NULL, for a norm */
    float **norm;
    int type, group; /* as in the file */
    int rows, cols, done;
} Loading;

/* A token that may come next. */
typedef struct {
    int32_t id;
    float logit;
    double probability; /* once probabilities() has been called */
} Candidate;

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
    float *logits;        /* (vocab_size), padded with -inf */
    Quantized *quantized; /* a quantised matmul's input (BATCH, max(dim, hidden_dim)) */
    InputGroup *groups;   /* (BATCH, max(dim, hidden_dim) / GROUP) */

    int capacity;      /* positions there is room for: grows to seq_len as the text does */
    int filled;        /* positions computed so far */
    float *rope;       /* (capacity, head_size / 2, 2): cosine and sine */
    double *frequency; /* (head_size / 2): RoPE's angle per position */
    float *scores;     /* (MAX_THREADS, queries_at_once, capacity) */
    float *heads;      /* (MAX_THREADS, queries_at_once, pad4(head_size)): what attention found */

    Candidate *candidates; /* (vocab_size), the result of shortlist */
    int n_candidates;      /* how many of them are valid */
} Model;

/* Zeroed, so that padding is zero; NULL also when the size does not fit this machine. */
static void *allocate_zeroed(uint64_t count, size_t size) {
    if (count > (SIZE_MAX / 2) / size) return NULL;
    return calloc(count ? (size_t)count : 1, size);
}

static float *allocate_floats(uint64_t rows, int row_size) { return allocate_zeroed(rows * pad4(row_size), 4); }

/* Makes every one of an array's equal parts longer, with zeros in what is new. False, and everything as it was, when out
 * of memory. */
static bool grow(float **data, int parts, uint64_t old_size, uint64_t new_size) {
    float *grown = allocate_zeroed((uint64_t)parts * new_size, 4);
    if (!grown) return false;
    for (int i = 0; i < parts && old_size; i++)
        memcpy(grown + i * new_size, *data + i * old_size, (size_t)old_size * 4);
    free(*data);
    *data = grown;
    return true;
}

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

/* ---- loading ---------------------------------------------------------------------------------------------------- */

/* Frees a model and all that it owns; NULL is allowed. */
EXPORT(model_free) void model_free(Model *m) {
    if (!m) return;
    for (int l = 0; m->layers && l < m->config.n_layers; l++) {
        Layer *layer = &m->layers[l];
        void *owned[] = {layer->attn_norm, layer->wq.panels, layer->wk.panels, layer->wv.panels, layer->wo.panels,
                         layer->ffn_norm,  layer->w1.panels, layer->w2.panels, layer->w3.panels, layer->cache};
        for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    }
    if (!m->config.tied) free(m->output.panels);
    // clang-format off
    void *owned[] = {
        m->token_embd.panels, m->output_norm, m->x, m->xb, m->xb2, m->q, m->k, m->v, m->h1, m->h3, m->logits,
        m->quantized, m->groups, m->rope, m->frequency, m->scores, m->heads, m->candidates, m->layers, m,
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
EXPORT(model_new) int model_new(const Config *config, Model **out) {
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
    m->missing = 9 * (int64_t)c->n_layers + 2 + !c->tied;
    int widest = c->dim > c->hidden_dim ? c->dim : c->hidden_dim;
    bool enough = (m->layers = allocate_zeroed((uint64_t)c->n_layers, sizeof(Layer))) &&
                  (m->x = allocate_floats(BATCH, c->dim)) && (m->xb = allocate_floats(BATCH, c->dim)) &&
                  (m->xb2 = allocate_floats(BATCH, c->dim)) && (m->q = allocate_floats(BATCH, c->dim)) &&
                  (m->k = allocate_floats(BATCH, m->kv_dim)) && (m->v = allocate_floats(BATCH, m->kv_dim)) &&
                  (m->h1 = allocate_floats(BATCH, c->hidden_dim)) && (m->h3 = allocate_floats(BATCH, c->hidden_dim)) &&
                  (m->logits = allocate_floats(1, c->vocab_size)) &&
                  (m->quantized = allocate_zeroed(BATCH * (uint64_t)widest, sizeof(Quantized))) &&
                  (m->groups = allocate_zeroed(BATCH * (uint64_t)(widest / GROUP), sizeof(InputGroup))) &&
                  (m->candidates = allocate_zeroed((uint64_t)c->vocab_size, sizeof(Candidate))) &&
                  (m->frequency = allocate_zeroed((uint64_t)m->head_size / 2, sizeof(double))) &&
                  (m->heads = allocate_floats((uint64_t)MAX_THREADS * m->queries_at_once, m->head_size));
    if (!enough) {
        model_free(m);
        return E_MEMORY;
    }
    for (int i = 0; i < m->head_size / 2; i++)
        m->frequency[i] = exp_double(-2.0 * i / m->head_size * log_double(c->rope_base));
    for (int id = 0; id < pad4(c->vocab_size); id++) m->logits[id] = -__builtin_inff(); /* none before forward */
    *out = m;
    return OK;
}

/* The tensors' numbers, in the order of engine.py's list. */
// clang-format off
enum {
    TOKEN_EMBD, OUTPUT_NORM, OUTPUT,
    ATTN_NORM, ATTN_Q, ATTN_K, ATTN_V, ATTN_OUTPUT,
    FFN_NORM, FFN_GATE, FFN_DOWN, FFN_UP,
};
// clang-format on

static int begin_norm(Loading *loading, float **norm, int dim) {
    const int type = loading->type;
    if (*norm || loading->rows != 1 || loading->cols != dim) return E_TENSOR;
    if (type != TYPE_F32 && type != TYPE_F16 && type != TYPE_BF16) return E_TENSOR;
    loading->norm = norm;
    return (*norm = allocate_floats(1, dim)) ? OK : E_MEMORY;
}

static int begin_matrix(Loading *loading, Matrix *w, int rows, int cols) {
    if (w->panels || loading->rows != rows || loading->cols != cols) return E_TENSOR;
    const Layout layout = layout_for(loading->type, cols, loading->group);
    const uint64_t size = (uint64_t)pad4(rows) * matrix_row_bytes(layout, cols);
    /* Untouched until the rows come, so that the machine's memory fills only as the host gives up the file's. */
    char *panels = size <= SIZE_MAX / 2 ? malloc((size_t)size) : NULL;
    if (!panels) return E_MEMORY;
    *w = (Matrix){layout, rows, cols, panels};
    loading->matrix = w;
    return OK;
}

/* Starts a tensor of (rows, cols) numbers of a GGUF type; a norm has one row. `group` is 0 but for I8, where so many
 * weights, counted over the whole tensor, share a scale. Errors: E_TENSOR, also before the tensor begun earlier has all
 * its rows; E_MEMORY. The model is as it was then. */
EXPORT(tensor_begin) int tensor_begin(Model *m, int tensor, int layer, int type, int rows, int cols, int group) {
    const Config *c = &m->config;
    if (layer < 0 || layer >= c->n_layers || m->loading.rows || cols <= 0) return E_TENSOR;
    if (file_row_bytes(type, cols) == 0 || (type == TYPE_I8 ? group <= 0 : group != 0)) return E_TENSOR;
    Layer *l = &m->layers[layer];
    Loading loading = {.type = type, .group = group, .rows = rows, .cols = cols};
    int error;
#define NORM(norm) begin_norm(&loading, norm, c->dim)
#define MATRIX(w, rows, cols) begin_matrix(&loading, w, rows, cols)
    switch (tensor) {
    case TOKEN_EMBD: error = MATRIX(&m->token_embd, c->vocab_size, c->dim); break;
    case OUTPUT_NORM: error = NORM(&m->output_norm); break;
    case OUTPUT: error = c->tied ? E_TENSOR : MATRIX(&m->output, c->vocab_size, c->dim); break;
    case ATTN_NORM: error = NORM(&l->attn_norm); break;
    case ATTN_Q: error = MATRIX(&l->wq, c->dim, c->dim); break;
    case ATTN_K: error = MATRIX(&l->wk, m->kv_dim, c->dim); break;
    case ATTN_V: error = MATRIX(&l->wv, m->kv_dim, c->dim); break;
    case ATTN_OUTPUT: error = MATRIX(&l->wo, c->dim, c->dim); break;
    case FFN_NORM: error = NORM(&l->ffn_norm); break;
    case FFN_GATE: error = MATRIX(&l->w1, c->hidden_dim, c->dim); break;
    case FFN_DOWN: error = MATRIX(&l->w2, c->dim, c->hidden_dim); break;
    case FFN_UP: error = MATRIX(&l->w3, c->hidden_dim, c->dim); break;
    default: error = E_TENSOR;
    }
#undef NORM
#undef MATRIX
    if (!error) m->loading = loading;
    return error;
}

static int pack_rows(Loading *loading, const char *data, uint64_t rows, uint64_t row_bytes, const float *scales) {
    for (; rows > 0; rows--, data += row_bytes, loading->done++) {
        if (loading->matrix) {
            int error = pack_row(loading->matrix, loading->done, loading->type, data, scales, loading->group);
            if (error) return error;
        } else {
            for (int i = 0; i < loading->cols; i++)
                if (!is_finite((*loading->norm)[i] = read_float(loading->type, data, i))) return E_NOT_FINITE;
        }
    }
    return OK;
}

/* Packs the next rows of the tensor: `size` bytes as they lie in the file, whole rows. `scales` are all those of an I8
 * tensor, ceil(rows * cols / group), every time; else NULL. Both may go afterwards. Errors: E_TENSOR, E_NOT_FINITE,
 * E_RANGE. After the last row the next tensor may begin; after an error this one may begin anew. */
EXPORT(tensor_rows) int tensor_rows(Model *m, const char *data, uint32_t size, const float *scales) {
    Loading *loading = &m->loading;
    if (!loading->rows) return E_TENSOR;
    const uint64_t row_bytes = file_row_bytes(loading->type, loading->cols), rows = size / row_bytes;
    const bool fits = rows > 0 && size % row_bytes == 0 && rows <= (uint64_t)(loading->rows - loading->done) &&
                      (scales != NULL) == (loading->type == TYPE_I8);
    int error = fits ? pack_rows(loading, data, rows, row_bytes, scales) : E_TENSOR;
    if (!error && loading->done < loading->rows) return OK;
    if (error && loading->matrix) {
        free(loading->matrix->panels);
        loading->matrix->panels = NULL;
    } else if (error) {
        free(*loading->norm);
        *loading->norm = NULL;
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

/* Where a key/value head's keys and values of a position lie. */
static float *key_place(const Layer *layer, int head, int position, int head_size) {
    return layer->cache + ((size_t)2 * head * layer->capacity + position / TILE * TILE) * pad4(head_size) +
           position % TILE;
}

static float *value_place(const Layer *layer, int head, int position, int head_size) {
    return layer->cache + ((size_t)(2 * head + 1) * layer->capacity + position) * pad4(head_size);
}

static void cache_key_value(Layer *layer, const Model *m, const float *k, const float *v, int position) {
    const int size = m->head_size;
    for (int h = 0; h < m->config.n_kv_heads; h++, k += size, v += size) {
        float *keys = key_place(layer, h, position, size);
        for (int i = 0; i < size; i++) keys[i * TILE] = k[i];
        memcpy(value_place(layer, h, position, size), v, (size_t)size * 4);
    }
}

/* weights[0 .. n - 1] = softmax(scale * weights); zeros from n to end, a multiple of 4. All NaN if a score is not
 * finite, or its position would be lost in silence. */
static void softmax(float *weights, int n, int end, float scale) {
    f32x4 max4 = f32x4_splat(-3e38f), total = f32x4_splat(0);
    for (int i = 0; i < end; i += 4) {
        i32x4 later = i32x4_splat(i) + (i32x4){0, 1, 2, 3} >= n;
        f32x4 score = f32x4_select(later, f32x4_splat(-3e38f), f32x4_load(weights + i) * scale);
        max4 = f32x4_max(score, max4);
        total += score - score; /* 0 or NaN */
        f32x4_store(weights + i, score);
    }
    float max = max4[0];
    for (int lane = 1; lane < 4; lane++) max = max4[lane] > max ? max4[lane] : max;
    for (int i = 0; i < end; i += 4) {
        f32x4 weight = f32x4_exp(f32x4_load(weights + i) - max);
        total += weight;
        f32x4_store(weights + i, weight);
    }
    const float inverse = 1.0f / f32x4_sum(total);
    for (int i = 0; i < end; i += 4) f32x4_store(weights + i, f32x4_load(weights + i) * inverse);
}

typedef struct {
    const Model *m;
    const Layer *layer;
    int position, n; /* the batch: its first position, how many tokens */
} AttentionJob;

/* A few tokens' queries of the heads that share one key/value head: m->q in, m->xb out. Both products go through the
 * cache tile by tile, so that a tile is read once for all the queries. */
static void attention_part(const AttentionJob *job, int part, int thread) {
    const Model *m = job->m;
    const int size = m->head_size, padded = pad4(size), dim = pad4(m->config.dim), n_kv_heads = m->config.n_kv_heads;
    const int kv_head = part % n_kv_heads, first = part / n_kv_heads * m->tokens_at_once;
    const int n = job->n - first < m->tokens_at_once ? job->n - first : m->tokens_at_once;
    const int position = job->position + first, end = position + n;
    const size_t at = (size_t)first * dim + (size_t)kv_head * m->kv_mul * size;
    const int stride = m->capacity;
    float *scores = m->scores + (size_t)thread * m->queries_at_once * stride; /* (kv_mul, n, stride) */
    float *heads = m->heads + (size_t)thread * m->queries_at_once * padded;   /* (kv_mul, n, padded) */

    for (int tile = 0; tile < end; tile += TILE) {
        const float *keys = key_place(job->layer, kv_head, tile, size);
        for (int h = 0; h < m->kv_mul; h++)
            f32_product(keys, TILE, TILE, m->q + at + h * size, dim, scores + h * n * stride + tile, stride, size, n,
                        false);
    }
    for (int row = 0; row < m->kv_mul * n; row++)
        softmax(scores + row * stride, position + row % n + 1, pad4(end), 1.0f / __builtin_sqrtf((float)size));
    memset(heads, 0, (size_t)m->kv_mul * n * padded * sizeof(float));
    for (int tile = 0; tile < end; tile += TILE) {
        const float *values = value_place(job->layer, kv_head, tile, size);
        const int columns = end - tile < TILE ? end - tile : TILE;
        for (int h = 0; h < m->kv_mul; h++)
            f32_product(values, padded, padded, scores + h * n * stride + tile, stride, heads + h * n * padded, padded,
                        columns, n, true);
    }
    for (int h = 0; h < m->kv_mul; h++) {
        for (int t = 0; t < n; t++)
            memcpy(m->xb + at + (size_t)t * dim + h * size, heads + (h * n + t) * padded, (size_t)size * sizeof(float));
    }
}

static void attention_parts(void *context, int first, int end, int thread) {
    for (int part = first; part < end; part++) attention_part(context, part, thread);
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
static Activations activations(const Model *m, const float *x, int cols, int n) {
    Activations a = {x, pad4(cols), m->quantized, m->groups};
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

        /* attention: x += wo * attend(wq * norm(x), wk * norm(x), wv * norm(x)) */
        rmsnorm(m->xb, m->x, layer->attn_norm, c->dim, c->norm_eps, n);
        Activations in = activations(m, m->xb, c->dim, n);
        matmul((Product[]){{&layer->wq, m->q}, {&layer->wk, m->k}, {&layer->wv, m->v}}, 3, &in, n);
        for (int t = 0; t < n; t++) {
            const float *angles = m->rope + (size_t)(position + t) * m->head_size;
            rope(m->q + (size_t)t * dim, angles, c->n_heads, m->head_size);
            rope(m->k + (size_t)t * kv_dim, angles, c->n_kv_heads, m->head_size);
            cache_key_value(layer, m, m->k + (size_t)t * kv_dim, m->v + (size_t)t * kv_dim, position + t);
        }
        const int blocks = (n + m->tokens_at_once - 1) / m->tokens_at_once;
        parallel(attention_parts, &(AttentionJob){m, layer, position, n}, blocks * c->n_kv_heads);
        in = activations(m, m->xb, c->dim, n);
        matmul(&(Product){&layer->wo, m->xb2}, 1, &in, n);
        add(m->x, m->xb2, n * dim);

        /* feed-forward: x += w2 * (silu(w1 * norm(x)) * (w3 * norm(x))) */
        rmsnorm(m->xb, m->x, layer->ffn_norm, c->dim, c->norm_eps, n);
        in = activations(m, m->xb, c->dim, n);
        matmul((Product[]){{&layer->w1, m->h1}, {&layer->w3, m->h3}}, 2, &in, n);
        swiglu(m->h1, m->h3, n * pad4(c->hidden_dim));
        in = activations(m, m->h1, c->hidden_dim, n);
        matmul(&(Product){&layer->w2, m->xb2}, 1, &in, n);
        add(m->x, m->xb2, n * dim);
    }
}

/* Computes tokens[n] at positions position .. position + n - 1 and the logits after the last of them. The positions
 * before must have been computed; those after are forgotten, so a smaller position rewinds. Errors: E_INCOMPLETE,
 * E_POSITION, E_TOKEN, E_MEMORY. Nothing is computed or forgotten then. */
EXPORT(forward) int forward(Model *m, const int32_t *tokens, int n, int position) {
    const Config *c = &m->config;
    if (m->missing) return E_INCOMPLETE;
    if (position < 0 || position > m->filled || n <= 0 || n > c->seq_len - position) return E_POSITION;
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= c->vocab_size) return E_TOKEN;
    int error = reserve(m, position + n);
    if (error) return error;
    m->filled = position;
    m->n_candidates = 0; /* those of other logits */
    for (int done = 0, batch; done < n; done += batch) {
        batch = n - done < BATCH ? n - done : BATCH;
        forward_batch(m, tokens + done, batch, position + done);
        m->filled += batch;
    }
    const float *last = m->x + (size_t)((n - 1) % BATCH) * pad4(c->dim);
    rmsnorm(m->xb, last, m->output_norm, c->dim, c->norm_eps, 1);
    Activations in = activations(m, m->xb, c->dim, 1);
    matmul(&(Product){&m->output, m->logits}, 1, &in, 1);
    for (int id = c->vocab_size; id < pad4(c->vocab_size); id++) m->logits[id] = -__builtin_inff(); /* no tokens */
    return OK;
}

/* (vocab_size): those of the last forward, until the next; -inf before the first. */
EXPORT(model_logits) float *model_logits(Model *m) { return m->logits; }

/* ---- what Python asks of the logits. One that is not a finite number is left out everywhere. ---------------------
 *
 * A temperature is at least 1e-38: below, its inverse is no float. */

/* True if a ranks after b: a smaller logit, or the same and a larger id. */
static bool ranks_after(Candidate a, Candidate b) { return a.logit < b.logit || (a.logit == b.logit && a.id > b.id); }

/* Restores the heap below node i: its root is the candidate that ranks last. */
static void sift_down(Candidate *heap, int n, int i) {
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && ranks_after(heap[child + 1], heap[child])) child++;
        if (!ranks_after(heap[child], heap[i])) return;
        Candidate swap = heap[i];
        heap[i] = heap[child];
        heap[child] = swap;
    }
}

static void make_heap(Candidate *heap, int n) {
    for (int i = n / 2 - 1; i >= 0; i--) sift_down(heap, n, i);
}

/* The k best candidates, best first; of equals the smaller id first. Returns how many there are at model_candidates:
 * fewer than k only if there are no more; E_LOGITS if there is none. */
EXPORT(shortlist) int shortlist(Model *m, int k) {
    const int vocab_size = m->config.vocab_size;
    const float *logits = m->logits;
    Candidate *heap = m->candidates;
    int n = m->n_candidates = 0;
    if (k <= 0) return 0;
    if (k > vocab_size) k = vocab_size;
    for (int id = 0; id < vocab_size; id++) {
        /* Once there are k, most tokens are no better than the worst of them: four at a time are passed over. */
        if (n == k && id % 4 == 0 && !i32x4_any(f32x4_load(logits + id) > heap[0].logit)) {
            id += 3;
            continue;
        }
        Candidate next = {.id = id, .logit = logits[id]};
        if (!is_finite(next.logit)) continue;
        if (n < k) {
            heap[n++] = next;
            if (n == k) make_heap(heap, n);
        } else if (ranks_after(heap[0], next)) {
            heap[0] = next;
            sift_down(heap, n, 0);
        }
    }
    if (n == 0) return E_LOGITS;
    if (n < k) make_heap(heap, n);
    for (int last = n - 1; last > 0; last--) { /* the one that ranks last goes to the end, as in heapsort */
        Candidate swap = heap[0];
        heap[0] = heap[last];
        heap[last] = swap;
        sift_down(heap, last, 0);
    }
    return m->n_candidates = n;
}

/* forward for one token and shortlist in one call, because a host's calls cost more than either argument. Returns how
 * many candidates there are, or an error of forward's; 0 if no logit is a finite number. */
EXPORT(forward_token) int forward_token(Model *m, int32_t token, int position, int k) {
    int error = forward(m, &token, 1, position);
    if (error) return error;
    int count = shortlist(m, k);
    return count == E_LOGITS ? 0 : count;
}

/* As many as shortlist or forward_token returned, until the next of either. */
EXPORT(model_candidates) Candidate *model_candidates(Model *m) { return m->candidates; }

/* The largest finite logit; -inf without any. */
static float largest_logit(const Model *m) {
    f32x4 largest = f32x4_splat(-__builtin_inff());
    for (int id = 0; id < m->config.vocab_size; id += 4) {
        f32x4 logit = f32x4_load(m->logits + id);
        i32x4 better = (logit > largest) & (logit - logit == 0);
        largest = f32x4_select(better, logit, largest);
    }
    for (int lane = 1; lane < 4; lane++) largest[0] = largest[lane] > largest[0] ? largest[lane] : largest[0];
    return largest[0];
}

/* e^((logits[id .. id + 3] - largest) / temperature); 0 where there is no finite logit. */
static f32x4 four_weights(const Model *m, int id, float largest, float inverse_temperature) {
    f32x4 logit = f32x4_load(m->logits + id);
    i32x4 finite = logit - logit == 0;
    return (f32x4)((i32x4)f32x4_exp((logit - largest) * inverse_temperature) & finite);
}

/* The sum of e^((logit - largest) / temperature) over the vocabulary; 0 without any finite logit. */
static double sum_of_weights(const Model *m, double temperature, float *largest) {
    double sum = 0;
    *largest = largest_logit(m);
    if (!(temperature > 0) || !is_finite(*largest)) return 0;
    for (int id = 0; id < m->config.vocab_size; id += 4) {
        f32x4 weight = four_weights(m, id, *largest, (float)(1 / temperature));
        for (int lane = 0; lane < 4; lane++) sum += weight[lane];
    }
    return sum;
}

/* Gives the candidates at model_candidates their probabilities, e^(logit / temperature) ÷ the sum over the vocabulary,
 * so that the host needs no exp of its own: those of two machines differ. E_LOGITS without any finite logit. */
EXPORT(probabilities) int probabilities(Model *m, double temperature) {
    float largest = 0;
    double sum = sum_of_weights(m, temperature, &largest);
    if (sum == 0) return E_LOGITS;
    for (int i = 0; i < m->n_candidates; i++) {
        Candidate *candidate = &m->candidates[i];
        double exponent = ((double)candidate->logit - largest) / temperature;
        candidate->probability = exponent < -700 ? 0 : exp_double(exponent) / sum;
    }
    return OK;
}

/* The first token, in the order of ids, up to which the probabilities add up to more than `coin` (0 <= coin < 1);
 * E_LOGITS without any. */
EXPORT(draw) int draw(const Model *m, double temperature, double coin) {
    float largest = 0;
    double sum = sum_of_weights(m, temperature, &largest), remaining = coin * sum;
    int last = E_LOGITS;
    if (sum == 0) return E_LOGITS;
    for (int id = 0; id < m->config.vocab_size; id += 4) {
        f32x4 weight = four_weights(m, id, largest, (float)(1 / temperature));
        for (int lane = 0; lane < 4; lane++) {
            if (weight[lane] == 0) continue;
            last = id + lane;
            if (remaining < weight[lane]) return last;
            remaining -= weight[lane];
        }
    }
    return last;
}

/* ---- memory for the host ---------------------------------------------------------------------------------------- */

/* NULL when out of memory. What it gives, `release` takes back. */
EXPORT(allocate) void *allocate(uint32_t size) { return malloc(size); }

EXPORT(release) void release(void *data) { free(data); }
