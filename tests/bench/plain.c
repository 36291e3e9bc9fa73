/* The yardstick REF: a Llama's forward pass in float32, written as one writes it first, in the manner of llama2.c.
 *
 * No intrinsics, no packing, no batches: what a compiler makes of plain loops with -O3 -msimd128 -ffast-math. The
 * prompt is computed token by token, the logits after its last one.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, tied;
    float rope_base, norm_eps;
} Config;

static Config config;
static float *weights; /* in the order in which forward() reads them */
static float *x, *xb, *xb2, *q, *h1, *h3, *scores, *logits, *keys, *values;

static size_t kv_dim(void) { return (size_t)(config.dim / config.n_heads * config.n_kv_heads); }

static size_t n_weights(void) {
    size_t dim = (size_t)config.dim, hidden = (size_t)config.hidden_dim, vocab = (size_t)config.vocab_size;
    size_t layer = 2 * dim + 2 * dim * dim + 2 * dim * kv_dim() + 3 * dim * hidden;
    return vocab * dim + (size_t)config.n_layers * layer + dim + (config.tied ? 0 : vocab * dim);
}

static float *floats(size_t n) { return calloc(n, sizeof(float)); }

/* Where the host writes the Config, and then (after plain_new) the weights. */
__attribute__((export_name("plain_config"))) Config *plain_config(void) { return &config; }

__attribute__((export_name("plain_new"))) float *plain_new(void) {
    size_t dim = (size_t)config.dim, cache = (size_t)config.n_layers * (size_t)config.seq_len * kv_dim();
    x = floats(dim), xb = floats(dim), xb2 = floats(dim), q = floats(dim);
    h1 = floats((size_t)config.hidden_dim), h3 = floats((size_t)config.hidden_dim);
    scores = floats((size_t)config.seq_len), logits = floats((size_t)config.vocab_size);
    keys = floats(cache), values = floats(cache);
    weights = malloc(n_weights() * sizeof(float));
    if (!x || !xb || !xb2 || !q || !h1 || !h3 || !scores || !logits || !keys || !values) return NULL;
    return weights;
}

static void rmsnorm(float *out, const float *in, const float *weight, int n) {
    float squares = 0;
    for (int i = 0; i < n; i++) squares += in[i] * in[i];
    float scale = 1.0f / sqrtf(squares / (float)n + config.norm_eps);
    for (int i = 0; i < n; i++) out[i] = in[i] * scale * weight[i];
}

/* out[rows] = w[rows][cols] in[cols] */
static void matmul(float *out, const float *in, const float *w, int cols, int rows) {
    for (int r = 0; r < rows; r++) {
        float sum = 0;
        for (int c = 0; c < cols; c++) sum += w[(size_t)r * (size_t)cols + (size_t)c] * in[c];
        out[r] = sum;
    }
}

static void rope(float *vector, int n, int head_size, int position) {
    for (int i = 0; i < n; i += 2) {
        float frequency = 1.0f / powf(config.rope_base, (float)(i % head_size) / (float)head_size);
        float angle = (float)position * frequency, cosine = cosf(angle), sine = sinf(angle);
        float a = vector[i], b = vector[i + 1];
        vector[i] = a * cosine - b * sine;
        vector[i + 1] = a * sine + b * cosine;
    }
}

static void softmax(float *p, int n) {
    float max = p[0], sum = 0;
    for (int i = 1; i < n; i++) max = p[i] > max ? p[i] : max;
    for (int i = 0; i < n; i++) sum += p[i] = expf(p[i] - max);
    for (int i = 0; i < n; i++) p[i] /= sum;
}

/* Computes one token at a position; returns the likeliest next one if that is `wanted`. */
__attribute__((export_name("plain_forward"))) int plain_forward(int token, int position, int wanted) {
    const int dim = config.dim, hidden = config.hidden_dim, kv = (int)kv_dim();
    const int head_size = dim / config.n_heads, group = config.n_heads / config.n_kv_heads;
    const float *embedding = weights, *w = weights + (size_t)config.vocab_size * (size_t)dim;
    memcpy(x, embedding + (size_t)token * (size_t)dim, (size_t)dim * sizeof(float));

    for (int l = 0; l < config.n_layers; l++) {
        float *layer_keys = keys + (size_t)l * (size_t)config.seq_len * (size_t)kv;
        float *layer_values = values + (size_t)l * (size_t)config.seq_len * (size_t)kv;
        float *k = layer_keys + (size_t)position * (size_t)kv, *v = layer_values + (size_t)position * (size_t)kv;
        rmsnorm(xb, x, w, dim), w += dim;
        matmul(q, xb, w, dim, dim), w += dim * dim;
        matmul(k, xb, w, dim, kv), w += dim * kv;
        matmul(v, xb, w, dim, kv), w += dim * kv;
        rope(q, dim, head_size, position);
        rope(k, kv, head_size, position);
        for (int h = 0; h < config.n_heads; h++) {
            const float *head_q = q + h * head_size;
            float *out = xb + h * head_size;
            for (int t = 0; t <= position; t++) {
                const float *head_k = layer_keys + t * kv + h / group * head_size;
                float score = 0;
                for (int i = 0; i < head_size; i++) score += head_q[i] * head_k[i];
                scores[t] = score / sqrtf((float)head_size);
            }
            softmax(scores, position + 1);
            memset(out, 0, (size_t)head_size * sizeof(float));
            for (int t = 0; t <= position; t++) {
                const float *head_v = layer_values + t * kv + h / group * head_size;
                for (int i = 0; i < head_size; i++) out[i] += scores[t] * head_v[i];
            }
        }
        matmul(xb2, xb, w, dim, dim), w += dim * dim;
        for (int i = 0; i < dim; i++) x[i] += xb2[i];

        rmsnorm(xb, x, w, dim), w += dim;
        matmul(h1, xb, w, dim, hidden), w += dim * hidden;
        matmul(h3, xb, w, dim, hidden), w += dim * hidden;
        for (int i = 0; i < hidden; i++) h1[i] *= h3[i] / (1.0f + expf(-h1[i]));
        matmul(xb2, h1, w, hidden, dim), w += dim * hidden;
        for (int i = 0; i < dim; i++) x[i] += xb2[i];
    }
    if (!wanted) return -1;
    rmsnorm(x, x, w, dim), w += dim;
    matmul(logits, x, config.tied ? embedding : w, dim, config.vocab_size);
    int best = 0;
    for (int i = 1; i < config.vocab_size; i++) best = logits[i] > logits[best] ? i : best;
    return best;
}
