/* Number formats of model files, by GGUF's numbers: how rows of weights lie in a file, and how to read them.
 *
 *     F32, F16, BF16   a number each
 *     Q8_0             32 columns: scale (f16), 32 int8                        weight = scale * int8
 *     Q5_0             32 columns: scale (f16), 32 bits, 16 bytes              weight = scale * (nibble + 16 * bit - 16)
 *     Q4_0             32 columns: scale (f16), 16 bytes of two nibbles        weight = scale * (nibble - 8)
 *     Q4_1             32 columns: scale, minimum (f16), 16 bytes              weight = scale * nibble + minimum
 *     I8               an int8 each; the scales (f32) lie elsewhere: llama2.c's version 2
 *
 * In the 16 bytes the low nibbles are columns 0 .. 15, the high ones columns 16 .. 31.
 */
#ifndef FABELLA_FORMATS_H
#define FABELLA_FORMATS_H

#include "abi.h"
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { GROUP = 32 }; /* columns that share a scale */

// clang-format off
enum {
    TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 30,
    TYPE_Q8_0 = 8, TYPE_Q5_0 = 6, TYPE_Q4_0 = 2, TYPE_Q4_1 = 3,
    TYPE_I8 = 24,
};
// clang-format on

/* What matrices are packed in; see matrix.h. */
typedef enum { F32, Q8, Q4, Q4M } Layout;

typedef struct {
    int block;     /* columns that are stored together: 1, or a group */
    int bytes;     /* of such a block; 0 if there is no such format */
    Layout layout; /* what it is packed in */
} Format;

/* The one table of formats. */
static inline Format format_of(int type) {
    switch (type) {
    case TYPE_F32: return (Format){1, 4, F32};
    case TYPE_F16:
    case TYPE_BF16: return (Format){1, 2, F32};
    case TYPE_I8: return (Format){1, 1, Q8}; /* if its groups are ours */
    case TYPE_Q8_0: return (Format){GROUP, 2 + GROUP, Q8};
    case TYPE_Q5_0: return (Format){GROUP, 2 + GROUP / 8 + GROUP / 2, Q8};
    case TYPE_Q4_0: return (Format){GROUP, 2 + GROUP / 2, Q4};
    case TYPE_Q4_1: return (Format){GROUP, 4 + GROUP / 2, Q4M};
    default: return (Format){1, 0, F32};
    }
}

/* Bytes of a row in the file; 0 if there can be no such row. */
static uint64_t file_row_bytes(int type, int cols) {
    const Format format = format_of(type);
    return cols % format.block ? 0 : (uint64_t)cols / format.block * format.bytes;
}

static inline bool is_finite(float f) { return f - f == 0; }

static inline float f32_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline float f32_from_f16(const char *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float subnormal = (float)mantissa * 5.9604644775390625e-8f; /* mantissa * 2^-24 */
    return sign ? -subnormal : subnormal;
}

/* One weight of a row of floats. */
static inline float read_float(int type, const char *row, int col) {
    uint16_t upper;
    float f;
    switch (type) {
    case TYPE_F16: return f32_from_f16(row + 2 * (size_t)col);
    case TYPE_BF16: memcpy(&upper, row + 2 * (size_t)col, 2); return f32_from_bits((uint32_t)upper << 16);
    default: memcpy(&f, row + 4 * (size_t)col, 4); return f;
    }
}

/* 32 columns of a row: weight = scale * values[i] + minimum; the values of Q4_0 are -8 .. 7. */
typedef struct {
    float scale, minimum;
    int8_t values[GROUP];
} Group;

/* The integer of column i in 16 bytes of two nibbles. */
static inline int nibble_of(const char *bytes, int i) { return (bytes[i % 16] >> (i < 16 ? 0 : 4)) & 15; }

/* Reads group g of a row. I8 rows find their scales by themselves: the caller sets `scale` before. */
static inline int read_group(int type, const char *row, int g, Group *group) {
    const char *block = row + g * file_row_bytes(type, GROUP);
    int8_t *values = group->values;
    uint32_t bits;
    group->minimum = 0;
    if (type != TYPE_I8) group->scale = f32_from_f16(block), block += 2;
    switch (type) {
    case TYPE_Q5_0:
        memcpy(&bits, block, sizeof bits);
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)(nibble_of(block + 4, i) + (bits >> i & 1) * 16 - 16);
        break;
    case TYPE_Q4_0:
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)(nibble_of(block, i) - 8);
        break;
    case TYPE_Q4_1:
        group->minimum = f32_from_f16(block);
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)nibble_of(block + 2, i);
        break;
    default: /* Q8_0 and I8 */
        for (int i = 0; i < GROUP; i++)
            if ((values[i] = (int8_t)block[i]) == -128) return E_RANGE;
    }
    return is_finite(group->scale) && is_finite(group->minimum) ? OK : E_NOT_FINITE;
}

#endif
