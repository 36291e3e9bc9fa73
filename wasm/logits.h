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

/* The k best candidates, best first; of equals the smaller id first. Returns how many there are at logits_candidates:
 * fewer than k only if there are no more; E_LOGITS if there is none. */
EXPORT int shortlist(Logits *logits, int k) {
    const float *values = logits->values;
    Candidate *heap = logits->candidates;
    int n = logits->n_candidates = 0;
    if (k <= 0) return 0;
    if (k > logits->vocab_size) k = logits->vocab_size;
    for (int id = 0; id < logits->vocab_size; id++) {
        /* Once there are k, most tokens are no better than the worst of them: skip four at a time. */
        if (n == k && id % 4 == 0 && !i32x4_any(f32x4_load(values + id) > heap[0].logit)) {
            id += 3;
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

/* The largest finite logit; -inf without any. */
static float largest_logit(const Logits *logits) {
    f32x4 largest = f32x4_splat(-__builtin_inff());
    for (int id = 0; id < logits->vocab_size; id += 4) {
        f32x4 logit = f32x4_load(logits->values + id);
        largest = f32x4_select((logit > largest) & f32x4_finite(logit), logit, largest);
    }
    return f32x4_largest(largest);
}

/* e^((values[id .. id + 3] - largest) / temperature); 0 where there is no finite logit. */
static f32x4 four_weights(const Logits *logits, int id, float largest, float inverse_temperature) {
    f32x4 logit = f32x4_load(logits->values + id);
    return (f32x4)((i32x4)f32x4_exp((logit - largest) * inverse_temperature) & f32x4_finite(logit));
}

/* The sum of e^((logit - largest) / temperature) over the vocabulary; 0 without any finite logit. */
static double sum_of_weights(const Logits *logits, double temperature, float *largest) {
    double sum = 0;
    *largest = largest_logit(logits);
    if (!(temperature > 0) || !is_finite(*largest)) return 0;
    for (int id = 0; id < logits->vocab_size; id += 4) {
        f32x4 weight = four_weights(logits, id, *largest, (float)(1 / temperature));
        for (int lane = 0; lane < 4; lane++) sum += weight[lane];
    }
    return sum;
}

/* Gives the candidates their probabilities, softmax(logits / temperature) over the whole vocabulary, so that the host
 * needs no exp of its own, which is not the same on all machines. E_LOGITS without any finite logit. */
EXPORT int probabilities(Logits *logits, double temperature) {
    float largest = 0;
    double sum = sum_of_weights(logits, temperature, &largest);
    if (sum == 0) return E_LOGITS;
    for (int i = 0; i < logits->n_candidates; i++) {
        Candidate *candidate = &logits->candidates[i];
        double exponent = ((double)candidate->logit - largest) / temperature;
        candidate->probability = exponent < -700 ? 0 : exp_double(exponent) / sum;
    }
    return OK;
}

/* The first token, in the order of ids, up to which the probabilities add up to more than `coin` (0 <= coin < 1);
 * E_LOGITS without any. */
EXPORT int draw(const Logits *logits, double temperature, double coin) {
    float largest = 0;
    double sum = sum_of_weights(logits, temperature, &largest), remaining = coin * sum;
    int last = E_LOGITS;
    if (sum == 0) return E_LOGITS;
    for (int id = 0; id < logits->vocab_size; id += 4) {
        f32x4 weight = four_weights(logits, id, largest, (float)(1 / temperature));
        for (int lane = 0; lane < 4; lane++) {
            if (weight[lane] == 0) continue;
            last = id + lane;
            if (remaining < weight[lane]) return last;
            remaining -= weight[lane];
        }
    }
    return last;
}

#endif
