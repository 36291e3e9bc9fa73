/* Number formats of model files, by GGUF's numbers: how rows of weights lie in a file, and how to read them.
 *
 *     F32, F16, BF16   a number each
 *     I8               an int8 each; the scales (f32) lie elsewhere: llama2.c's version 2
 *
 * and blocks of 32 columns, in which d is a scale and m a minimum (f16), e an exponent (uint8):
 *
 *     Q8_0     d, 32 int8                               weight = d * int8
 *     Q5_0     d, 32 bits, 16 bytes of nibbles          weight = d * (nibble + 16 * bit - 16)
 *     Q5_1     d, m, 32 bits, 16 bytes of nibbles       weight = d * (nibble + 16 * bit) + m
 *     Q4_0     d, 16 bytes of nibbles                   weight = d * (nibble - 8)
 *     Q4_1     d, m, 16 bytes of nibbles                weight = d * nibble + m
 *     IQ4_NL   d, 16 bytes of nibbles                   weight = d * IQ4[nibble]
 *     MXFP4    e, 16 bytes of nibbles                   weight = 2^(e - 128) * FP4[nibble]
 *
 * and of 256 columns, which have d and, for their groups of 32 or 16 columns, small integers s (and t) besides:
 *
 *     Q6_K     128 bytes, 64 bytes, 16 s (int8), d      weight = d * s * (low 4 bits + 16 * high 2 bits - 32)
 *     Q5_K     d, m, 8 s, 8 t, 32 bytes, 128 bytes      weight = d * s * (nibble + 16 * bit) - m * t
 *     Q4_K     d, m, 8 s, 8 t, 128 bytes                weight = d * s * nibble - m * t
 *     Q3_K     32 bytes, 64 bytes, 16 s (6 bits), d     weight = d * (s - 32) * (2 bits + 4 * bit - 4)
 *     IQ4_XS   d, 8 s (6 bits), 128 bytes               weight = d * (s - 32) * IQ4[nibble]
 *     TQ2_0    64 bytes, d                              weight = d * (2 bits - 1)
 *     TQ1_0    52 bytes of five trits each, d           weight = d * (trit - 1)
 *
 * In 16 bytes of nibbles the low ones are columns 0 .. 15, the high ones columns 16 .. 31.
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
    TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 30, TYPE_I8 = 24,
    TYPE_Q8_0 = 8, TYPE_Q5_0 = 6, TYPE_Q5_1 = 7, TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_IQ4_NL = 20, TYPE_MXFP4 = 39,
    TYPE_Q6_K = 14, TYPE_Q5_K = 13, TYPE_Q4_K = 12, TYPE_Q3_K = 11, TYPE_IQ4_XS = 23, TYPE_TQ2_0 = 35, TYPE_TQ1_0 = 34,
};
// clang-format on

/* What matrices are packed in; see matrix.h. */
typedef enum { F32, BF16, Q8, Q8S, Q5, Q5M, Q4, Q4M } Layout;

typedef struct {
    int block;     /* columns that are stored together: 1, or so many groups */
    int bytes;     /* of such a block; 0 if there is no such format */
    Layout layout; /* what it is packed in */
} Format;

/* The one table of formats. */
static inline Format format_of(int type) {
    switch (type) {
    case TYPE_F32: return (Format){1, 4, F32};
    case TYPE_F16: return (Format){1, 2, F32};
    case TYPE_BF16: return (Format){1, 2, BF16};
    case TYPE_I8: return (Format){1, 1, Q8}; /* if its groups are ours */
    case TYPE_Q8_0: return (Format){32, 34, Q8};
    case TYPE_Q5_0: return (Format){32, 22, Q5};
    case TYPE_Q5_1: return (Format){32, 24, Q5M};
    case TYPE_Q4_0: return (Format){32, 18, Q4};
    case TYPE_Q4_1: return (Format){32, 20, Q4M};
    case TYPE_IQ4_NL: return (Format){32, 18, Q8};
    case TYPE_MXFP4: return (Format){32, 17, Q8};
    case TYPE_Q6_K: return (Format){256, 210, Q8S};
    case TYPE_Q5_K: return (Format){256, 176, Q5M};
    case TYPE_Q4_K: return (Format){256, 144, Q4M};
    case TYPE_Q3_K: return (Format){256, 110, Q8S};
    case TYPE_IQ4_XS: return (Format){256, 136, Q8};
    case TYPE_TQ2_0: return (Format){256, 66, Q8};
    case TYPE_TQ1_0: return (Format){256, 54, Q8};
    default: return (Format){1, 0, F32};
    }
}

/* A float each, whatever its width. */
static inline bool is_float_type(int type) { return type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16; }

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

#endif
