/* Llama and its family in C: the heir of llama2.c's run.c, as a library for a WebAssembly host. This file is the model;
 * its headers are what it stands on.
 *
 *   Config    the shape of the model, and in what it differs from the plain Llama
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
 * The other families compute the same with a few more steps, each of which is one line below. Those that have weights (a
 * bias, norms of q and k, norms of what a layer adds) are taken if the weights are there; the others, if Config says so.
 *
 * The host (py/fabella/engine.py) calls, in this order: model_new, set_rope (or later, if the angles depend on a tensor)
 * and set_layer; for every tensor of the file tensor_begin and then tensor_rows until it has all rows; forward for the prompt and for each further token, and after
 * each forward shortlist and probabilities, or draw (logits.h). A loaded model may get an adapter: adapter_new, and for
 * each of its matrices adapter_begin and twice adapter_part. Whoever wants to see what happens inside calls probe.
 *
 * There is no stdio and no exit: what can fail returns a negative error code. Arithmetic is the same, operation by
 * operation, for a token alone and for a token in a batch, and in every build of this file: the same bits everywhere,
 * as long as all numbers are finite.
 */
#include "adapter.h"
#include "loading.h"
#include "logits.h"
#include "maths.h"
#include "matrix.h"
#include "memory.h"
#include "parallel.h"

enum { BATCH = 32 };         /* tokens that go through a layer together in prefill */
enum { TILE = 32 };          /* positions that lie side by side in the key cache */
enum { QUERIES = 8 };        /* of attention that read the cache together, or more if more heads share it */
enum { CACHE = 16 << 20 };   /* bytes of weights that the processor may keep near it from token to token */
enum { MAX_SIZE = 1 << 24 }; /* no dimension is larger, so products of two fit 64 bits with ease */

/* ---- Config, Weights, State ------------------------------------------------------------------------------------- */

typedef struct {
    int32_t dim;        /* width of the residual stream */
    int32_t hidden_dim; /* width of the feed-forward layer */
    int32_t n_layers;
    int32_t repeats;    /* how many times each layer is run before the next: 1, but for MobileLLM's */
    int32_t n_heads;    /* query heads */
    int32_t n_kv_heads; /* key/value heads; fewer than n_heads in grouped-query attention */
    int32_t head_size;  /* numbers of a head */
    int32_t rope_size;  /* how many of them, from the first on, RoPE turns, in pairs */
    int32_t vocab_size;
    int32_t seq_len;    /* context length, in tokens */
    int32_t tied;       /* 1: the output matrix is the token embedding */
    int32_t halves;     /* 1: in the file the pairs of q and k lie as loading.h says */
    int32_t joint_norm; /* 1: the norms of q and k are over all heads together; 0: over each */
    int32_t gelu;       /* 1: the feed-forward network has GELU in the place of SiLU */
    float norm_eps;
    float embedding_scale; /* what embeddings are multiplied by, */
    float attention_scale; /* the products of q and k; 0: 1 / sqrt(head_size), */
    float residual_scale;  /* and what a layer adds */
    float logit_scale;     /* what logits are divided by */
    float attention_cap;   /* the products become cap * tanh(product / cap); 0: they stay */
    float logit_cap;       /* the same for logits */
} Config;

enum { ROPES = 2 }; /* tables: that of layers which see all positions, that of the others */

typedef struct {
    float *attn_norm;   /* (dim) */
    Matrix attn_q;      /* (q_dim, dim), q_dim = n_heads * head_size */
    Matrix attn_k;      /* (kv_dim, dim), kv_dim = n_kv_heads * head_size */
    Matrix attn_v;      /* (kv_dim, dim) */
    Matrix attn_output; /* (dim, q_dim) */
    float *ffn_norm;    /* (dim) */
    Matrix ffn_gate;    /* (hidden_dim, dim) */
    Matrix ffn_down;    /* (dim, hidden_dim) */
    Matrix ffn_up;      /* (hidden_dim, dim) */

    /* Some families have these as well; any vector of a layer may be NULL. */
    float *attn_q_bias, *attn_k_bias, *attn_v_bias, *attn_output_bias;
    float *ffn_gate_bias, *ffn_down_bias, *ffn_up_bias;
    float *attn_q_norm, *attn_k_norm;           /* (head_size), or (q_dim) and (kv_dim) if joint_norm */
    float *post_attention_norm, *post_ffw_norm; /* (dim), of what is added to the stream */

    int rope;   /* which table; -1: positions are not told apart */
    int window; /* how many positions a token sees, its own included; 0: all */
} Layer;

/* A layer's keys and values, (capacity / TILE, pad4(head_size), TILE) of each head, then (capacity, pad4(head_size)).
 * Keys lie in tiles of 32 positions, so that a query meets four positions in one vector. A head's lie together, because
 * memory is read fastest in one go. */
typedef struct {
    float *data;
    int capacity; /* positions there is room for */
} Cache;

typedef struct {
    double *angles;   /* (rope_size / 2): by how much each pair is turned further at each position; NULL: not set */
    double magnitude; /* what cosine and sine are multiplied by */
    float *turns;     /* (capacity, rope_size / 2, 2): cosine and sine */
} Rope;

typedef struct {
    Config config;
    int q_dim, kv_dim;
    int kv_mul;          /* query heads that share a key/value head */
    int tokens_at_once;  /* in attention */
    int queries_at_once; /* tokens_at_once * kv_mul */

    /* Weights */
    Matrix token_embd; /* (vocab_size, dim) */
    Layer *layers;
    float *output_norm; /* (dim) */
    Matrix output;      /* (vocab_size, dim); shares token_embd's panels when tied */
    int64_t missing;    /* tensors and tables without which it does not run */
    uint64_t size;      /* bytes of the weights, packed */
    bool has_integers;  /* some matrix is quantised */
    Loading loading;
    Adapter adapter; /* of the layers' matrices */

    /* State: buffers of BATCH tokens, each row padded to a multiple of four */
    float *x;             /* residual stream (BATCH, dim) */
    float *xb;            /* normed input (BATCH, dim), and what attention returns (BATCH, q_dim) */
    float *xb2;           /* what a block adds to the stream (BATCH, dim) */
    float *q;             /* (BATCH, q_dim) */
    float *k, *v;         /* (BATCH, kv_dim) */
    float *h1, *h3;       /* (BATCH, hidden_dim) */
    Logits logits;        /* after the last token */
    Quantized *quantized; /* a quantised matmul's input (BATCH, max(dim, q_dim, hidden_dim)) */
    InputGroup *groups;   /* (BATCH, max(dim, q_dim, hidden_dim) / GROUP) */

    int capacity;  /* positions there is room for: grows to seq_len as the text does */
    int filled;    /* positions computed so far */
    Cache *caches; /* (n_layers * repeats) */
    Rope ropes[ROPES];
    float *scores; /* (MAX_THREADS, queries_at_once, capacity) */
    float *heads;  /* (MAX_THREADS, queries_at_once, pad4(head_size)): what attention found */
} Model;

/* Computes the turns of the positions from..end - 1. */
static void fill_turns(const Rope *rope, int rope_size, uint64_t from, uint64_t end) {
    for (uint64_t position = from; position < end; position++) {
        for (int i = 0; i < rope_size / 2; i++) {
            double cosine, sine;
            cos_sin_double((double)position * rope->angles[i], &cosine, &sine);
            float *entry = rope->turns + position * rope_size + 2 * i;
            entry[0] = (float)(cosine * rope->magnitude);
            entry[1] = (float)(sine * rope->magnitude);
        }
    }
}

/* Makes room for this many positions: KV cache, RoPE's tables, scores. */
static int reserve(Model *m, int positions) {
    if (positions <= m->capacity) return OK;
    const Config *c = &m->config;
    int64_t wanted = 2 * (int64_t)m->capacity > 256 ? 2 * (int64_t)m->capacity : 256;
    if (wanted > c->seq_len) wanted = c->seq_len;
    if (wanted < positions) wanted = positions;
    uint64_t old = (uint64_t)m->capacity, new = ((uint64_t)wanted + TILE - 1) / TILE * TILE;
    uint64_t score_rows = (uint64_t)MAX_THREADS * m->queries_at_once;
    uint64_t row = (uint64_t)pad4(c->head_size);
    for (int run = 0; run < c->n_layers * c->repeats; run++) {
        Cache *cache = &m->caches[run];
        if ((uint64_t)cache->capacity >= new) continue; /* has grown before the memory was not enough for another */
        if (!grow(&cache->data, 2 * c->n_kv_heads, cache->capacity * row, new * row)) return E_MEMORY;
        cache->capacity = (int)new;
    }
    if (!grow(&m->scores, 1, old * score_rows, new * score_rows)) return E_MEMORY;
    for (Rope *rope = m->ropes; rope < m->ropes + ROPES; rope++)
        if (rope->angles && !grow(&rope->turns, 1, old * c->rope_size, new * c->rope_size)) return E_MEMORY;
    for (Rope *rope = m->ropes; rope < m->ropes + ROPES; rope++)
        if (rope->angles) fill_turns(rope, c->rope_size, old, new);
    m->capacity = (int)new;
    return OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* What a tensor's rows and columns are as many as. */
typedef enum { ONE, DIM, HIDDEN_DIM, Q_DIM, KV_DIM, VOCAB_SIZE, Q_NORM, K_NORM } Size;

/* A vector, which has one row, is a float * at this place in Layer or Model; a matrix is a Matrix there. */
typedef struct {
    bool in_layers;
    size_t place;
    Size rows, cols;
    bool turned; /* its rows, or a vector's numbers, are turned by RoPE */
} Tensor;

/* By their numbers, in the order of architectures.py. */
static const Tensor TENSORS[] = {
    {false, offsetof(Model, token_embd), VOCAB_SIZE, DIM, false},
    {true, offsetof(Layer, attn_norm), ONE, DIM, false},
    {true, offsetof(Layer, attn_q), Q_DIM, DIM, true},
    {true, offsetof(Layer, attn_k), KV_DIM, DIM, true},
    {true, offsetof(Layer, attn_v), KV_DIM, DIM, false},
    {true, offsetof(Layer, attn_q_bias), ONE, Q_DIM, true},
    {true, offsetof(Layer, attn_k_bias), ONE, KV_DIM, true},
    {true, offsetof(Layer, attn_v_bias), ONE, KV_DIM, false},
    {true, offsetof(Layer, attn_q_norm), ONE, Q_NORM, true},
    {true, offsetof(Layer, attn_k_norm), ONE, K_NORM, true},
    {true, offsetof(Layer, attn_output), DIM, Q_DIM, false},
    {true, offsetof(Layer, attn_output_bias), ONE, DIM, false},
    {true, offsetof(Layer, post_attention_norm), ONE, DIM, false},
    {true, offsetof(Layer, ffn_norm), ONE, DIM, false},
    {true, offsetof(Layer, ffn_gate), HIDDEN_DIM, DIM, false},
    {true, offsetof(Layer, ffn_gate_bias), ONE, HIDDEN_DIM, false},
    {true, offsetof(Layer, ffn_down), DIM, HIDDEN_DIM, false},
    {true, offsetof(Layer, ffn_down_bias), ONE, DIM, false},
    {true, offsetof(Layer, ffn_up), HIDDEN_DIM, DIM, false},
    {true, offsetof(Layer, ffn_up_bias), ONE, HIDDEN_DIM, false},
    {true, offsetof(Layer, post_ffw_norm), ONE, DIM, false},
    {false, offsetof(Model, output_norm), ONE, DIM, false},
    {false, offsetof(Model, output), VOCAB_SIZE, DIM, false},
};
enum { N_TENSORS = sizeof TENSORS / sizeof *TENSORS };

static int size_of(const Model *m, Size size) {
    switch (size) {
    case ONE: return 1;
    case DIM: return m->config.dim;
    case HIDDEN_DIM: return m->config.hidden_dim;
    case Q_DIM: return m->q_dim;
    case KV_DIM: return m->kv_dim;
    case VOCAB_SIZE: return m->config.vocab_size;
    case Q_NORM: return m->config.joint_norm ? m->q_dim : m->config.head_size;
    default: return m->config.joint_norm ? m->kv_dim : m->config.head_size; /* K_NORM */
    }
}

static bool is_vector(const Tensor *tensor) { return tensor->rows == ONE; }

/* A layer's vectors may be absent. */
static bool is_needed(const Tensor *tensor) { return !(tensor->in_layers && is_vector(tensor)); }

/* Where a tensor of a layer, or of the model, is. */
static void *tensor_place(Model *m, const Tensor *tensor, int layer) {
    return (char *)(tensor->in_layers ? (void *)&m->layers[layer] : m) + tensor->place;
}

static Halves halves_of(const Model *m, const Tensor *tensor) {
    if (tensor->turned && m->config.halves) return (Halves){m->config.head_size, m->config.rope_size};
    return (Halves){0};
}

/* A tied model has no matrix of its own for the output. */
static bool is_borrowed(const Model *m, const Tensor *tensor) {
    return m->config.tied && tensor->place == offsetof(Model, output) && !tensor->in_layers;
}

/* ---- loading ---------------------------------------------------------------------------------------------------- */

/* Frees a model and all that it owns; NULL is allowed. */
EXPORT void model_free(Model *m) {
    if (!m) return;
    adapter_clear(&m->adapter);
    for (int i = 0; i < N_TENSORS; i++) {
        const int count = TENSORS[i].in_layers ? (m->layers ? m->config.n_layers : 0) : !is_borrowed(m, &TENSORS[i]);
        for (int l = 0; l < count; l++) {
            void *place = tensor_place(m, &TENSORS[i], l);
            free(is_vector(&TENSORS[i]) ? (void *)*(float **)place : (void *)((Matrix *)place)->panels);
        }
    }
    for (int run = 0; m->caches && run < m->config.n_layers * m->config.repeats; run++) free(m->caches[run].data);
    for (int i = 0; i < ROPES; i++) free(m->ropes[i].angles), free(m->ropes[i].turns);
    // clang-format off
    void *owned[] = {
        m->x, m->xb, m->xb2, m->q, m->k, m->v, m->h1, m->h3, m->logits.values, m->logits.candidates,
        m->quantized, m->groups, m->scores, m->heads, m->caches, m->layers, m,
    };
    // clang-format on
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

static bool config_is_valid(const Config *c) {
    const int32_t sizes[] = {c->dim,        c->hidden_dim, c->n_layers,  c->repeats,    c->n_heads,
                             c->n_kv_heads, c->head_size,  c->rope_size, c->vocab_size, c->seq_len};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] <= 0 || sizes[i] > MAX_SIZE) return false;
    const int32_t flags[] = {c->tied, c->halves, c->joint_norm, c->gelu};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (flags[i] != 0 && flags[i] != 1) return false;
    const float numbers[] = {c->norm_eps,    c->embedding_scale, c->attention_scale, c->residual_scale,
                             c->logit_scale, c->attention_cap,   c->logit_cap};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!(numbers[i] >= 0) || !is_finite(numbers[i])) return false;
    return c->n_heads % c->n_kv_heads == 0 && (int64_t)c->n_heads * c->head_size <= MAX_SIZE &&
           (int64_t)c->n_layers * c->repeats <= MAX_SIZE && c->rope_size % 2 == 0 && c->rope_size <= c->head_size &&
           c->logit_scale > 0;
}

/* Makes an empty model in *out, or NULL. Errors: E_CONFIG, E_MEMORY. */
EXPORT int model_new(const Config *config, Model **out) {
    *out = NULL;
    if (!config_is_valid(config)) return E_CONFIG;
    Model *m = calloc(1, sizeof *m);
    if (!m) return E_MEMORY;
    const Config *c = &m->config;
    m->config = *config;
    if (c->attention_scale == 0) m->config.attention_scale = 1.0f / __builtin_sqrtf((float)c->head_size);
    m->q_dim = c->n_heads * c->head_size;
    m->kv_dim = c->n_kv_heads * c->head_size;
    m->kv_mul = c->n_heads / c->n_kv_heads;
    m->tokens_at_once = m->kv_mul < QUERIES ? QUERIES / m->kv_mul : 1;
    m->queries_at_once = m->tokens_at_once * m->kv_mul;
    m->missing = 1; /* the first table of RoPE */
    for (int i = 0; i < N_TENSORS; i++)
        if (is_needed(&TENSORS[i]) && !is_borrowed(m, &TENSORS[i]))
            m->missing += TENSORS[i].in_layers ? c->n_layers : 1;
    const int wide = c->dim > m->q_dim ? c->dim : m->q_dim, widest = wide > c->hidden_dim ? wide : c->hidden_dim;
    bool enough = (m->layers = allocate_zeroed((uint64_t)c->n_layers, sizeof(Layer))) &&
                  (m->caches = allocate_zeroed((uint64_t)c->n_layers * c->repeats, sizeof(Cache))) &&
                  (m->x = allocate_floats(BATCH, c->dim)) && (m->xb = allocate_floats(BATCH, wide)) &&
                  (m->xb2 = allocate_floats(BATCH, c->dim)) && (m->q = allocate_floats(BATCH, m->q_dim)) &&
                  (m->k = allocate_floats(BATCH, m->kv_dim)) && (m->v = allocate_floats(BATCH, m->kv_dim)) &&
                  (m->h1 = allocate_floats(BATCH, c->hidden_dim)) && (m->h3 = allocate_floats(BATCH, c->hidden_dim)) &&
                  (m->logits.values = allocate_floats(1, c->vocab_size)) &&
                  (m->quantized = allocate_zeroed(BATCH * (uint64_t)widest, sizeof(Quantized))) &&
                  (m->groups = allocate_zeroed(BATCH * (uint64_t)(widest / GROUP), sizeof(InputGroup))) &&
                  (m->logits.candidates = allocate_zeroed((uint64_t)c->vocab_size, sizeof(Candidate))) &&
                  (m->heads = allocate_floats((uint64_t)MAX_THREADS * m->queries_at_once, c->head_size));
    if (!enough) {
        model_free(m);
        return E_MEMORY;
    }
    for (int id = 0; id < pad4(c->vocab_size); id++) m->logits.values[id] = -__builtin_inff();
    m->logits.vocab_size = c->vocab_size;
    *out = m;
    return OK;
}

/* Sets a table of RoPE: by how many radians each pair of a head is turned further from one position to the next,
 * (rope_size / 2), and what all are multiplied by. Before the first forward. Errors: E_CONFIG, E_MEMORY. */
EXPORT int set_rope(Model *m, int table, const double *angles, double magnitude) {
    if (table < 0 || table >= ROPES || m->capacity || !(magnitude > 0 && magnitude < 1e6)) return E_CONFIG;
    const int count = m->config.rope_size / 2;
    for (int i = 0; i < count; i++) /* maths.h knows angles below 2^20 */
        if (!(angles[i] >= 0 && angles[i] * m->config.seq_len <= 1 << 20)) return E_CONFIG;
    Rope *rope = &m->ropes[table];
    if (!rope->angles) {
        if (!(rope->angles = allocate_zeroed((uint64_t)count, sizeof(double)))) return E_MEMORY;
        m->missing -= table == 0;
    }
    memcpy(rope->angles, angles, count * sizeof(double));
    rope->magnitude = magnitude;
    return OK;
}

/* Says which table of RoPE a layer uses, -1 for none, and how many positions it sees, 0 for all. Error: E_CONFIG. */
EXPORT int set_layer(Model *m, int layer, int rope, int window) {
    if (layer < 0 || layer >= m->config.n_layers || rope < -1 || rope >= ROPES || window < 0) return E_CONFIG;
    if (rope > 0 && !m->ropes[rope].angles) return E_CONFIG;
    m->layers[layer].rope = rope;
    m->layers[layer].window = window;
    return OK;
}

/* The angles are functions of the host's making; these are for it, because its own differ from machine to machine. */
EXPORT double exponential(double a) { return exp_double(a); }

EXPORT double logarithm(double a) { return log_double(a); }

/* Starts a tensor of (rows, cols) numbers of a GGUF type; a vector has one row. `group` is 0 but for I8, where so many
 * weights, counted over the whole tensor, share a scale. Errors: E_TENSOR, also before the tensor begun earlier has all
 * its rows; E_MEMORY. The model is as it was then. */
EXPORT int tensor_begin(Model *m, int tensor, int layer, int type, int rows, int cols, int group) {
    if (tensor < 0 || tensor >= N_TENSORS || layer < 0 || layer >= m->config.n_layers || m->loading.rows || cols <= 0)
        return E_TENSOR;
    if (file_row_bytes(type, cols) == 0 || (type == TYPE_I8 ? group <= 0 : group != 0)) return E_TENSOR;
    const Tensor *wanted = &TENSORS[tensor];
    if (is_borrowed(m, wanted) || rows != size_of(m, wanted->rows) || cols != size_of(m, wanted->cols)) return E_TENSOR;
    Loading loading = {.type = type, .group = group, .rows = rows, .cols = cols};
    loading.halves = halves_of(m, wanted);
    void *place = tensor_place(m, wanted, layer);
    loading.needed = is_needed(wanted);
    int error = is_vector(wanted) ? begin_vector(&loading, place) : begin_matrix(&loading, place);
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
        m->missing -= loading->needed;
        m->size += packed_bytes(loading);
        m->has_integers |= loading->matrix && !is_float(loading->matrix->layout);
        if (m->config.tied) m->output = m->token_embd;
    }
    *loading = (Loading){0};
    return error;
}

/* Bytes of all weights that are loaded, as they are packed. */
EXPORT double weights_size(const Model *m) { return (double)m->size; }

/* ---- adapters --------------------------------------------------------------------------------------------------- */

/* What was computed without an adapter, or with another, cannot be gone on with. */
static void forget_all(Model *m) {
    m->filled = 0;
    m->logits.n_candidates = 0;
}

/* Takes the model's adapter away, if it has one, and makes room for one of so many matrices. All positions are forgotten
 * by this and by what follows. Errors: E_INCOMPLETE, E_CONFIG, E_MEMORY. */
EXPORT int adapter_new(Model *m, int count) {
    if (m->missing || m->loading.rows) return E_INCOMPLETE;
    if (count < 0 || count > m->config.n_layers * N_TENSORS) return E_CONFIG;
    adapter_clear(&m->adapter);
    forget_all(m);
    if (count && !(m->adapter.adapted = allocate_zeroed((uint64_t)count, sizeof(Adapted)))) return E_MEMORY;
    m->adapter.room = count;
    return OK;
}

/* Starts what the adapter has for a matrix of a layer. Errors: E_TENSOR, also if it has it already, if there is no room
 * for more, or while the adapter is off; E_CONFIG, of rank and scale; E_MEMORY. */
EXPORT int adapter_begin(Model *m, int tensor, int layer, int rank, float scale) {
    if (tensor < 0 || tensor >= N_TENSORS || layer < 0 || layer >= m->config.n_layers) return E_TENSOR;
    const Tensor *wanted = &TENSORS[tensor];
    if (!wanted->in_layers || is_vector(wanted)) return E_TENSOR;
    forget_all(m);
    return adapter_add(&m->adapter, tensor_place(m, wanted, layer), halves_of(m, wanted), rank, scale, BATCH);
}

/* Fills A (part 0: rank rows) or B (part 1: the matrix's rows, of rank numbers each) of the matrix started last with
 * `size` bytes of F32, F16 or BF16, as they lie in the file. Without both the matrix stays alone. Errors: E_TENSOR, also
 * if it is there already; E_NOT_FINITE, E_MEMORY. */
EXPORT int adapter_part(Model *m, int part, int type, const char *data, uint32_t size) {
    if (part != 0 && part != 1) return E_TENSOR;
    forget_all(m);
    return adapter_fill(&m->adapter, part == 1, type, data, size);
}

/* Switches the adapter off, or on again. */
EXPORT void adapter_use(Model *m, int on) {
    forget_all(m);
    adapter_switch(&m->adapter, !on);
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

/* The same in place for rows of any length that lie one after the other: heads. */
static void rmsnorm_heads(float *x, const float *weight, int size, float eps, int n) {
    for (int h = 0; h < n; h++, x += size) {
        float squares = 0;
        for (int i = 0; i < size; i++) squares += x[i] * x[i];
        const float scale = 1.0f / __builtin_sqrtf(squares / (float)size + eps);
        for (int i = 0; i < size; i++) x[i] = x[i] * scale * weight[i];
    }
}

/* Turns each adjacent pair of a head by its angle at this position; those behind rope_size stay. */
static void rope(float *heads, const float *angles, int n_heads, int head_size, int rope_size) {
    for (int h = 0; h < n_heads; h++, heads += head_size) {
        for (int i = 0; i < rope_size; i += 2) {
            float a = heads[i], b = heads[i + 1], cosine = angles[i], sine = angles[i + 1];
            heads[i] = a * cosine - b * sine;
            heads[i + 1] = a * sine + b * cosine;
        }
    }
}

/* A key/value head's keys from a position on, (head_size, TILE): within a tile the next column is the next position. */
static View keys_from(const Cache *cache, int head, int position, int head_size) {
    const size_t tile = (size_t)2 * head * cache->capacity + position / TILE * TILE;
    return (View){cache->data + tile * pad4(head_size) + position % TILE, TILE};
}

/* Its values from a position on, (positions, head_size). */
static View values_from(const Cache *cache, int head, int position, int head_size) {
    const size_t row = (size_t)(2 * head + 1) * cache->capacity + position;
    return (View){cache->data + row * pad4(head_size), pad4(head_size)};
}

static void cache_key_value(Cache *cache, const Config *c, const float *k, const float *v, int position) {
    const int size = c->head_size;
    for (int h = 0; h < c->n_kv_heads; h++, k += size, v += size) {
        const View keys = keys_from(cache, h, position, size);
        for (int i = 0; i < size; i++) *row_of(keys, i) = k[i];
        memcpy(values_from(cache, h, position, size).data, v, (size_t)size * 4);
    }
}

/* cap * tanh(x / cap), but NaN for what is not finite. */
INLINE f32x4 capped(f32x4 x, float cap) { return cap * f32x4_tanh(x * (1.0f / cap)) + (x - x); }

/* weights[first .. n - 1] = softmax(scale * weights), capped; zeros elsewhere up to end, a multiple of 4. All are NaN
 * if a score is not finite: a position must not be lost in silence. */
static void softmax(float *weights, int first, int n, int end, float scale, float cap) {
    f32x4 max4 = f32x4_splat(-3e38f), total = f32x4_splat(0);
    for (int i = 0; i < end; i += 4) {
        const i32x4 position = i32x4_splat(i) + (i32x4){0, 1, 2, 3}, unseen = (position < first) | (position >= n);
        f32x4 score = f32x4_load(weights + i) * scale;
        if (cap != 0) score = capped(score, cap);
        score = f32x4_select(unseen, f32x4_splat(-3e38f), score);
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
    const Config *config;
    const Cache *cache;
    int kv_head, size;   /* of a head */
    int n_heads, n;      /* heads, tokens */
    int position;        /* of the first token */
    int begin, end;      /* the positions that they see, from a tile's beginning on */
    int window;          /* how many each of them sees; 0: all up to its own */
    View q, out;         /* (n, n_heads * size), in m->q and m->xb */
    View scores, result; /* (n_heads * n, end), (n_heads * n, size): of this thread, head by head */
} Block;

/* scores[t, p] = q[t] . k[p] */
static void score_positions(const Block *b) {
    for (int tile = b->begin; tile < b->end; tile += TILE) {
        const View keys = keys_from(b->cache, b->kv_head, tile, b->size);
        for (int h = 0; h < b->n_heads; h++)
            f32_product(keys, view_from(b->q, 0, h * b->size), view_from(b->scores, h * b->n, tile), TILE, b->size,
                        b->n, FRESH);
    }
}

/* The first position that a token at `position` sees. */
static int first_seen(int position, int window) { return window && position >= window ? position + 1 - window : 0; }

/* scores[t, :] = softmax(scores[t, :] * scale) over the positions that the token sees */
static void weigh_positions(const Block *b) {
    for (int row = 0; row < b->n_heads * b->n; row++) {
        const int position = b->position + row % b->n, first = first_seen(position, b->window);
        softmax(row_of(b->scores, row) + b->begin, first - b->begin, position + 1 - b->begin, pad4(b->end) - b->begin,
                b->config->attention_scale, b->config->attention_cap);
    }
}

/* out[t] = the sum over p of scores[t, p] * v[p] */
static void mix_values(const Block *b) {
    memset(b->result.data, 0, (size_t)b->n_heads * b->n * b->result.stride * sizeof(float));
    for (int tile = b->begin; tile < b->end; tile += TILE) {
        const View values = values_from(b->cache, b->kv_head, tile, b->size);
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
    const Cache *cache;
    int position, n; /* the batch: its first position, how many tokens */
} AttentionJob;

/* A block by its number, for a thread: m->q in, m->xb out. */
static Block block_of(const AttentionJob *job, int block, int thread) {
    const Model *m = job->m;
    const int size = m->config.head_size, n_kv_heads = m->config.n_kv_heads;
    const View q = {m->q, pad4(m->q_dim)}, out = {m->xb, pad4(m->q_dim)};
    const View scores = {m->scores, m->capacity}, result = {m->heads, pad4(size)};
    const int kv_head = block % n_kv_heads, token = block / n_kv_heads * m->tokens_at_once;
    const int n = job->n - token < m->tokens_at_once ? job->n - token : m->tokens_at_once;
    const int position = job->position + token, column = kv_head * m->kv_mul * size;
    return (Block){
        .config = &m->config,
        .cache = job->cache,
        .kv_head = kv_head,
        .size = size,
        .n_heads = m->kv_mul,
        .n = n,
        .position = position,
        .begin = first_seen(position, job->layer->window) / TILE * TILE,
        .end = position + n,
        .window = job->layer->window,
        .q = view_from(q, token, column),
        .out = view_from(out, token, column),
        .scores = view_from(scores, thread * m->queries_at_once, 0),
        .result = view_from(result, thread * m->queries_at_once, 0),
    };
}

/* The blocks first .. end - 1 of attention. */
static void attention(void *context, int first, int end, int thread) {
    for (int block = first; block < end; block++) {
        const Block b = block_of(context, block, thread);
        score_positions(&b);
        weigh_positions(&b);
        mix_values(&b);
    }
}

/* h1 = activation(h1) * h3. GELU, as its authors approximate it: z / 2 (1 + tanh u) = z / (1 + e^-2u). */
static void gated(float *h1, const float *h3, int count, bool gelu) {
    for (int i = 0; i < count; i += 4) {
        f32x4 a = f32x4_load(h1 + i), b = a;
        if (gelu) b = 1.59576912f * (a + 0.044715f * a * a * a); /* 2 sqrt(2 / pi) */
        f32x4_store(h1 + i, a / (1.0f + f32x4_exp(-b)) * f32x4_load(h3 + i));
    }
}

/* x += scale * y */
static void add(float *x, const float *y, float scale, int count) {
    for (int i = 0; i < count; i += 4) f32x4_store(x + i, f32x4_load(x + i) + scale * f32x4_load(y + i));
}

/* x = x * scale / divisor, capped */
static void rescale(float *x, float scale, float divisor, float cap, int count) {
    if (scale == 1 && divisor == 1 && cap == 0) return; /* as in most families */
    for (int i = 0; i < count; i += 4) {
        f32x4 value = f32x4_load(x + i) * scale / divisor;
        f32x4_store(x + i, cap != 0 ? capped(value, cap) : value);
    }
}

/* Wraps a buffer as matmul's input; quantises it once for all the matrices that read it. Weights that come from memory
 * are read side by side: that is faster there, though not in the cache (LOG.md). */
static Activations activations(const Model *m, float *x, int cols, int n) {
    Activations a = {{x, pad4(cols)}, m->quantized, m->groups, m->size > CACHE};
    if (m->has_integers && cols % GROUP == 0) quantize(&a, cols, n);
    return a;
}

/* A block's input: the stream, normed, unless this family does without. */
static Activations block_input(Model *m, const float *norm, int n) {
    const Config *c = &m->config;
    if (!norm) return activations(m, m->x, c->dim, n);
    rmsnorm(m->xb, m->x, norm, c->dim, c->norm_eps, n);
    return activations(m, m->xb, c->dim, n);
}

/* Adds a block's output, xb2, to the stream. */
static void add_to_stream(Model *m, const float *norm, int n) {
    const Config *c = &m->config;
    if (norm) rmsnorm(m->xb2, m->xb2, norm, c->dim, c->norm_eps, n);
    add(m->x, m->xb2, c->residual_scale, n * pad4(c->dim));
}

/* Norms q and k of a token, if the layer has weights for that, and turns them by their position. */
static void place_query_key(const Model *m, const Layer *layer, float *q, float *k, int position) {
    const Config *c = &m->config;
    const int q_size = c->joint_norm ? m->q_dim : c->head_size, k_size = c->joint_norm ? m->kv_dim : c->head_size;
    if (layer->attn_q_norm) rmsnorm_heads(q, layer->attn_q_norm, q_size, c->norm_eps, m->q_dim / q_size);
    if (layer->attn_k_norm) rmsnorm_heads(k, layer->attn_k_norm, k_size, c->norm_eps, m->kv_dim / k_size);
    if (layer->rope < 0) return;
    const float *turns = m->ropes[layer->rope].turns + (size_t)position * c->rope_size;
    rope(q, turns, c->n_heads, c->head_size, c->rope_size);
    rope(k, turns, c->n_kv_heads, c->head_size, c->rope_size);
}

/* n tokens through a layer: fills its cache at position .. position + n - 1, adds to the stream in x. */
static void forward_layer(Model *m, const Layer *layer, Cache *cache, int n, int position) {
    const Config *c = &m->config;

    /* attention: x += output * attend(q * norm(x), k * norm(x), v * norm(x)) */
    Activations in = block_input(m, layer->attn_norm, n);
    matmul((Product[]){{&layer->attn_q, m->q, layer->attn_q_bias},
                       {&layer->attn_k, m->k, layer->attn_k_bias},
                       {&layer->attn_v, m->v, layer->attn_v_bias}},
           3, &in, n);
    for (int t = 0; t < n; t++) {
        float *q = m->q + (size_t)t * pad4(m->q_dim), *k = m->k + (size_t)t * pad4(m->kv_dim);
        place_query_key(m, layer, q, k, position + t);
        cache_key_value(cache, c, k, m->v + (size_t)t * pad4(m->kv_dim), position + t);
    }
    const int blocks = (n + m->tokens_at_once - 1) / m->tokens_at_once;
    parallel(attention, &(AttentionJob){m, layer, cache, position, n}, blocks * c->n_kv_heads);
    in = activations(m, m->xb, m->q_dim, n);
    matmul(&(Product){&layer->attn_output, m->xb2, layer->attn_output_bias}, 1, &in, n);
    add_to_stream(m, layer->post_attention_norm, n);

    /* feed-forward: x += down * (silu(gate * norm(x)) * (up * norm(x))) */
    in = block_input(m, layer->ffn_norm, n);
    matmul((Product[]){{&layer->ffn_gate, m->h1, layer->ffn_gate_bias}, {&layer->ffn_up, m->h3, layer->ffn_up_bias}}, 2,
           &in, n);
    gated(m->h1, m->h3, n * pad4(c->hidden_dim), c->gelu);
    in = activations(m, m->h1, c->hidden_dim, n);
    matmul(&(Product){&layer->ffn_down, m->xb2, layer->ffn_down_bias}, 1, &in, n);
    add_to_stream(m, layer->post_ffw_norm, n);
}

/* Begins the stream of n tokens: x = embedding[token] */
static void embed(Model *m, const int32_t *tokens, int n) {
    const int dim = pad4(m->config.dim);
    for (int t = 0; t < n; t++) matrix_row(&m->token_embd, tokens[t], m->x + (size_t)t * dim);
    rescale(m->x, m->config.embedding_scale, 1, 0, n * dim);
}

/* Up to BATCH tokens through all layers: fills the caches, leaves the stream in x. */
static void forward_batch(Model *m, const int32_t *tokens, int n, int position) {
    const Config *c = &m->config;
    embed(m, tokens, n);
    for (int run = 0; run < c->n_layers * c->repeats; run++)
        forward_layer(m, &m->layers[run / c->repeats], &m->caches[run], n, position);
}

/* logits = output * (norm(stream)), of one token */
static void compute_logits(Model *m, const float *stream) {
    const Config *c = &m->config;
    m->logits.n_candidates = 0; /* those of other logits */
    rmsnorm(m->xb, stream, m->output_norm, c->dim, c->norm_eps, 1);
    Activations in = activations(m, m->xb, c->dim, 1);
    matmul(&(Product){&m->output, m->logits.values, NULL}, 1, &in, 1);
    rescale(m->logits.values, 1, c->logit_scale, c->logit_cap, pad4(c->vocab_size));
    for (int id = c->vocab_size; id < pad4(c->vocab_size); id++) m->logits.values[id] = -__builtin_inff();
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
    for (int done = 0, batch; done < n; done += batch) {
        batch = n - done < BATCH ? n - done : BATCH;
        forward_batch(m, tokens + done, batch, position + done);
        m->filled += batch;
    }
    compute_logits(m, m->x + (size_t)((n - 1) % BATCH) * pad4(c->dim));
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

/* ---- probe ------------------------------------------------------------------------------------------------------ */

/* weights (n_heads, position + 1): how much each head of the layer that has just computed a token looked at each
 * position. Its query and all keys are still there. */
static void note_attention(const AttentionJob *job, float *weights) {
    for (int kv_head = 0; kv_head < job->m->config.n_kv_heads; kv_head++) {
        const Block b = block_of(job, kv_head, 0);
        score_positions(&b);
        weigh_positions(&b);
        for (int h = 0; h < b.n_heads; h++, weights += b.end) {
            memset(weights, 0, (size_t)b.begin * sizeof(float)); /* what the layer does not see */
            memcpy(weights + b.begin, row_of(b.scores, h) + b.begin, (size_t)(b.end - b.begin) * sizeof(float));
        }
    }
}

/* best[k]: the likeliest tokens, if a token's stream as it is now were that behind the last layer; id -1 where there
 * are no more. */
static void note_lens(Model *m, Candidate *best, int k) {
    compute_logits(m, m->x);
    int count = shortlist(&m->logits, k);
    if (count < 0) count = 0;
    probabilities(&m->logits, 1);
    for (int i = 0; i < k; i++) best[i] = i < count ? m->logits.candidates[i] : (Candidate){.id = -1};
}

/* Computes a token once more, at the position where it was computed already, and notes what it is like inside. For each
 * layer, and each time that it is run:
 *
 *   attention (n_layers * repeats, n_heads, position + 1)    how much each head looks at each position so far
 *   lens      (n_layers * repeats, k)                        what the stream behind the layer would say
 *
 * of which either may be NULL. All positions stay computed, and as they were to the bit, but the logits are now those
 * after this token. Errors: E_INCOMPLETE, E_POSITION, E_TOKEN. */
EXPORT int probe(Model *m, int32_t token, int position, float *attention, Candidate *lens, int k) {
    const Config *c = &m->config;
    if (m->missing) return E_INCOMPLETE;
    if (position < 0 || position >= m->filled) return E_POSITION;
    if (token < 0 || token >= c->vocab_size) return E_TOKEN;
    embed(m, &token, 1);
    for (int run = 0; run < c->n_layers * c->repeats; run++) {
        const AttentionJob job = {m, &m->layers[run / c->repeats], &m->caches[run], position, 1};
        forward_layer(m, job.layer, &m->caches[run], 1, position);
        if (attention) note_attention(&job, attention + (size_t)run * c->n_heads * (position + 1));
        if (lens && k > 0) note_lens(m, lens + (size_t)run * k, k);
    }
    compute_logits(m, m->x);
    return OK;
}
