/* What the host asks of the logits: the best candidates, their probabilities, a draw among all tokens.
 *
 * A logit that is not a finite number counts nowhere. A temperature is at least 1e-38: the inverse of a smaller one is
 * not a float.
 */
#ifndef FABELLA_LOGITS_H
#define FABELLA_LOGITS_H

#include "abi.h"
#include "formats.h"
#include "maths.h"
#include "simd.h"

/* A token that may come next. */
typedef struct {
    int32_t id;
    float logit;
    double probability; /* once probabilities() has been called */
} Candidate;

typedef struct {
    float *values; /* (vocab_size), with -inf up to pad4(vocab_size) */
    int vocab_size;
    Candidate *candidates; /* (vocab_size), the result of shortlist */
    int n_candidates;      /* how many of them are valid */
    double begin, end;     /* between which running sums the token drawn last lies */
} Logits;

/* True if a ranks after b: a smaller logit, or the same and a larger id. */
static bool ranks_after(Candidate a, Candidate b) { return a.logit < b.logit || (a.logit == b.logit && a.id > b.id); }

static void swap(Candidate *a, Candidate *b) {
    Candidate c = *a;
    *a = *b;
    *b = c;
}

/* Restores the heap below node i: its root is the candidate that ranks last. */
static void sift_down(Candidate *heap, int n, int i) {
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && ranks_after(heap[child + 1], heap[child])) child++;
        if (!ranks_after(heap[child], heap[i])) return;
        swap(&heap[i], &heap[child]);
    }
}

static void make_heap(Candidate *heap, int n) {
    for (int i = n / 2 - 1; i >= 0; i--) sift_down(heap, n, i);
}

enum { SKIPPED = 16 };

/* True if there may be a larger one among the next SKIPPED logits; `id` is a multiple of four. */
static bool any_above(const Logits *logits, int id, float logit) {
    const float *values = logits->values + id;
    if (id + SKIPPED > logits->vocab_size) return true;
    return i32x4_any((f32x4_load(values) > logit) | (f32x4_load(values + 4) > logit) |
                     (f32x4_load(values + 8) > logit) | (f32x4_load(values + 12) > logit));
}

/* The k best candidates, best first; of equals the smaller id first. Returns how many there are at logits_candidates:
 * fewer than k only if there are no more; E_LOGITS if there is none. */
EXPORT int shortlist(Logits *logits, int k) {
    const float *values = logits->values;
    Candidate *heap = logits->candidates;
    int n = logits->n_candidates = 0;
    if (k <= 0) return 0;
    if (k > logits->vocab_size) k = logits->vocab_size;
    for (int id = 0; id < logits->vocab_size; id++) {
        /* Once there are k, most tokens are no better than the worst of them. */
        if (n == k && id % 4 == 0 && !any_above(logits, id, heap[0].logit)) {
            id += SKIPPED - 1;
            continue;
        }
        Candidate next = {.id = id, .logit = values[id]};
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
        swap(&heap[0], &heap[last]);
        sift_down(heap, last, 0);
    }
    return logits->n_candidates = n;
}

/* (vocab_size): those of the last forward; -inf before the first. */
EXPORT float *logits_values(Logits *logits) { return logits->values; }

/* As many as shortlist or forward_token returned; valid until the next call of either. */
EXPORT Candidate *logits_candidates(Logits *logits) { return logits->candidates; }

/* ---- Softmax -------------------------------------------------------------------------------------------------------
 *
 * A token's weight is e^((logit - largest) / temperature), so that the likeliest one's is 1. Its probability is its
 * share of the sum over the vocabulary, for which weights are added a block at a time, first within each lane.
 */

typedef struct {
    float largest; /* of the finite logits */
    float scale;   /* log2(e) / temperature */
    double sum;    /* 0 without any finite logit */
} Softmax;

enum { BLOCK = 64 }; /* tokens */

/* The largest finite logit; -inf without any. */
static float largest_logit(const Logits *logits) {
    const f32x4 none = f32x4_splat(-__builtin_inff());
    f32x4 largest = none;
    for (int id = 0; id < logits->vocab_size; id += 4) {
        f32x4 logit = f32x4_load(logits->values + id);
        largest = f32x4_max(largest, f32x4_select(f32x4_finite(logit), logit, none));
    }
    return f32x4_largest(largest);
}

/* The weights of the tokens id .. id + 3; 0 where there is no finite logit. */
static f32x4 four_weights(const Logits *logits, const Softmax *softmax, int id) {
    return f32x4_exp2_of_negative((f32x4_load(logits->values + id) - softmax->largest) * softmax->scale);
}

static int block_end(const Logits *logits, int begin) {
    return begin + BLOCK < logits->vocab_size ? begin + BLOCK : logits->vocab_size;
}

static float block_weight(const Logits *logits, const Softmax *softmax, int begin) {
    f32x4 sum = {0};
    for (int id = begin; id < block_end(logits, begin); id += 4) sum += four_weights(logits, softmax, id);
    return f32x4_sum(sum);
}

/* `largest` is the largest finite logit. */
static Softmax softmax_of(const Logits *logits, float largest, double temperature) {
    Softmax softmax = {.largest = largest, .scale = (float)(LOG2_E / temperature)};
    if (!(temperature > 0) || !is_finite(softmax.largest)) return softmax;
    for (int id = 0; id < logits->vocab_size; id += BLOCK) softmax.sum += block_weight(logits, &softmax, id);
    return softmax;
}

static double share(const Softmax *softmax, float logit, double temperature) {
    double exponent = ((double)logit - softmax->largest) / temperature;
    return exponent < -700 ? 0 : exp_double(exponent) / softmax->sum;
}

/* The softmax of which the candidates, if there are any, have the largest logit. */
static Softmax candidates_softmax(const Logits *logits, double temperature) {
    float largest = logits->n_candidates ? logits->candidates[0].logit : largest_logit(logits);
    return softmax_of(logits, largest, temperature);
}

static void set_probabilities(Logits *logits, const Softmax *softmax, double temperature) {
    for (int i = 0; i < logits->n_candidates; i++)
        logits->candidates[i].probability = share(softmax, logits->candidates[i].logit, temperature);
}

/* Gives the candidates their probabilities, softmax(logits / temperature) over the whole vocabulary, so that the host
 * needs no exp of its own, which is not the same on all machines. E_LOGITS without any finite logit. */
EXPORT int probabilities(Logits *logits, double temperature) {
    Softmax softmax = candidates_softmax(logits, temperature);
    if (softmax.sum == 0) return E_LOGITS;
    set_probabilities(logits, &softmax, temperature);
    return OK;
}

/* Of the block from `begin` on, the first token up to which the weights add up to more than `weight`; or its last. */
static int token_at(Logits *logits, const Softmax *softmax, int begin, double weight, double coin) {
    int last = begin;
    for (int id = begin; id < block_end(logits, begin); id += 4) {
        f32x4 four = four_weights(logits, softmax, id);
        for (int lane = 0; lane < 4; lane++) {
            if (four[lane] == 0) continue;
            last = id + lane;
            logits->begin = coin - weight / softmax->sum;
            logits->end = logits->begin + four[lane] / softmax->sum;
            if (weight < four[lane]) return last;
            weight -= four[lane];
        }
    }
    return last;
}

/* The first token, in the order of ids, up to which the probabilities add up to more than `coin` (0 <= coin < 1);
 * E_LOGITS without any. */
EXPORT int draw(Logits *logits, double temperature, double coin) {
    Softmax softmax = softmax_of(logits, largest_logit(logits), temperature);
    double remaining = coin * softmax.sum;
    int found = 0;
    if (softmax.sum == 0) return E_LOGITS;
    for (int begin = 0; begin < logits->vocab_size; begin += BLOCK) {
        float block = block_weight(logits, &softmax, begin);
        if (block == 0) continue;
        found = begin;
        if (remaining < block) break;
        remaining -= block;
    }
    return token_at(logits, &softmax, found, remaining, coin);
}

/* The probabilities of all tokens before the one drawn last, added up; and the same with its own. */
EXPORT double drawn_begin(const Logits *logits) { return logits->begin; }

EXPORT double drawn_end(const Logits *logits) { return logits->end; }

/* The mean of the logits, less the largest, each with its token's probability; NaN without any finite logit. */
static double mean_below(const Logits *logits, Softmax softmax) {
    double sum = 0;
    for (int begin = 0; begin < logits->vocab_size; begin += BLOCK) {
        f32x4 part = {0};
        for (int id = begin; id < block_end(logits, begin); id += 4) {
            f32x4 below =
                f32x4_load(logits->values + id) - softmax.largest; /* where it does not count, the weight is 0 */
            f32x4 weight = four_weights(logits, &softmax, id);
            part += f32x4_select(weight > 0, weight * below, f32x4_splat(0));
        }
        sum += f32x4_sum(part);
    }
    return sum / softmax.sum;
}

/* The mean of the logits, each with its token's probability; NaN without any finite logit. */
EXPORT double mean_logit(const Logits *logits, double temperature) {
    const Softmax softmax = softmax_of(logits, largest_logit(logits), temperature);
    return softmax.largest + mean_below(logits, softmax);
}

/* The entropy of softmax(logits) in nats; NaN without any finite logit. The candidates get their probabilities in it. */
EXPORT double entropy(Logits *logits) {
    const Softmax softmax = candidates_softmax(logits, 1);
    set_probabilities(logits, &softmax, 1);
    return log_double(softmax.sum) - mean_below(logits, softmax);
}

/* A token's probability in softmax(logits / temperature); 0 for what is none, and where no logit is finite. */
EXPORT double probability(const Logits *logits, int id, double temperature) {
    if (id < 0 || id >= logits->vocab_size || !is_finite(logits->values[id])) return 0;
    const Softmax softmax = softmax_of(logits, largest_logit(logits), temperature);
    return softmax.sum == 0 ? 0 : share(&softmax, logits->values[id], temperature);
}

/* The natural logarithm of a token's probability at temperature 1: finite, or -inf, or NaN without any finite logit. */
EXPORT double log_probability(const Logits *logits, int id) {
    if (id < 0 || id >= logits->vocab_size || !is_finite(logits->values[id])) return -__builtin_inf();
    Softmax softmax = softmax_of(logits, largest_logit(logits), 1);
    return (double)logits->values[id] - softmax.largest - log_double(softmax.sum);
}

/* ---- Other logits for some tokens ---------------------------------------------------------------------------------- */

static bool are_tokens(const Logits *logits, const int32_t *ids, int n) {
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= logits->vocab_size) return false;
    return true;
}

/* values[n] = the logits of the tokens ids[n]. E_TOKEN if one is none. */
EXPORT int read_logits(const Logits *logits, const int32_t *ids, float *values, int n) {
    if (!are_tokens(logits, ids, n)) return E_TOKEN;
    for (int i = 0; i < n; i++) values[i] = logits->values[ids[i]];
    return OK;
}

/* Exchanges the logits of the tokens ids[n], no two the same, for values[n]: twice, and all is as before. Candidates
 * found before are those of other logits. E_TOKEN if one is no token. */
EXPORT int exchange_logits(Logits *logits, const int32_t *ids, float *values, int n) {
    if (!are_tokens(logits, ids, n)) return E_TOKEN;
    for (int i = 0; i < n; i++) {
        float logit = logits->values[ids[i]];
        logits->values[ids[i]] = values[i];
        values[i] = logit;
    }
    logits->n_candidates = 0;
    return OK;
}

#endif
