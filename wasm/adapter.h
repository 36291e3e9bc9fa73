/* Adapters (LoRA): what the matrices of a loaded model have beside them, put there, taken away and put back. */
#ifndef FABELLA_ADAPTER_H
#define FABELLA_ADAPTER_H

#include "loading.h"

enum { MAX_RANK = 1024 };

typedef struct {
    Matrix *matrix;
    Lora lora;
    Halves halves; /* of the matrix's rows in the file */
} Adapted;

typedef struct {
    Adapted *adapted; /* (room) */
    int room, count;
    bool off;
} Adapter;

/* Takes all of it away. */
static void adapter_clear(Adapter *adapter) {
    for (int i = 0; i < adapter->count; i++) {
        const Adapted *one = &adapter->adapted[i];
        one->matrix->lora = NULL;
        free(one->lora.a.data);
        free(one->lora.b.data);
        free(one->lora.inner);
    }
    free(adapter->adapted);
    *adapter = (Adapter){0};
}

/* Has a matrix add what is beside it, once A and B are there. */
static void attach(Adapted *one) { one->matrix->lora = one->lora.a.data && one->lora.b.data ? &one->lora : NULL; }

/* Has all matrices, or none, add what they have. */
static void adapter_switch(Adapter *adapter, bool off) {
    adapter->off = off;
    for (int i = 0; i < adapter->count; i++) {
        attach(&adapter->adapted[i]);
        if (off) adapter->adapted[i].matrix->lora = NULL;
    }
}

static bool has(const Adapter *adapter, const Matrix *w) {
    for (int i = 0; i < adapter->count; i++)
        if (adapter->adapted[i].matrix == w) return true;
    return false;
}

/* Makes room for what stands beside a matrix when `tokens` are computed at once; A and B are to come. Errors: E_TENSOR,
 * E_CONFIG, E_MEMORY. */
static int adapter_add(Adapter *adapter, Matrix *w, Halves halves, int rank, float scale, int tokens) {
    if (adapter->count == adapter->room || adapter->off || has(adapter, w)) return E_TENSOR;
    if (rank < 1 || rank > MAX_RANK || !is_finite(scale)) return E_CONFIG;
    Lora lora = {.rank = rank, .scale = scale, .inner = allocate_floats((uint64_t)tokens, rank)};
    if (!lora.inner) return E_MEMORY;
    adapter->adapted[adapter->count++] = (Adapted){w, lora, halves};
    return OK;
}

/* Fills A, or B if `is_b`, of the matrix added last with its rows as they lie in the file. Errors: E_TENSOR,
 * E_NOT_FINITE, E_MEMORY. */
static int adapter_fill(Adapter *adapter, bool is_b, int type, const char *data, uint32_t size) {
    if (adapter->count == 0 || adapter->off || !is_float_type(type)) return E_TENSOR;
    Adapted *one = &adapter->adapted[adapter->count - 1];
    FloatMatrix *part = is_b ? &one->lora.b : &one->lora.a;
    const int rank = one->lora.rank, rows = is_b ? one->matrix->rows : rank, cols = is_b ? rank : one->matrix->cols;
    const uint64_t row_bytes = file_row_bytes(type, cols);
    if (part->data || size != rows * row_bytes) return E_TENSOR;
    part->layout = type == TYPE_BF16 ? BF16 : F32;
    const int bytes = float_bytes(part->layout);
    if (!(part->data = allocate_zeroed((uint64_t)cols * pad4(rows), bytes))) return E_MEMORY;
    for (int r = 0; r < rows; r++) {
        const int place = is_b ? place_of(one->halves, r) : r;
        for (int c = 0; c < cols; c++) {
            const float weight = read_float(type, data + r * row_bytes, c);
            if (!is_finite(weight)) {
                free(part->data);
                part->data = NULL;
                return E_NOT_FINITE;
            }
            const char *kept = (const char *)&weight + sizeof weight - bytes; /* BF16: the upper half */
            memcpy(part->data + ((size_t)c * pad4(rows) + place) * bytes, kept, bytes);
        }
    }
    attach(one);
    return OK;
}

#endif
