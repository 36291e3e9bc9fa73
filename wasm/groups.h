/* Reads the blocks of formats.h, a group of 32 columns at a time, as small integers and their scale. */
#ifndef FABELLA_GROUPS_H
#define FABELLA_GROUPS_H

#include "formats.h"

/* 32 columns of a row: weight = scale * values[i] + minimum; in layout Q8S scale * sub_scales[i / 16] * values[i]. */
typedef struct {
    float scale, minimum;
    int8_t sub_scales[2];
    int8_t values[GROUP];
} Group;

static const int8_t IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t FP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

typedef const uint8_t *Packed; /* bytes of one */

static inline float f16_at(Packed p) { return f32_from_f16((const char *)p); }

/* The integer of column i in 16 bytes of nibbles, and the bit of column i in 4 bytes. */
static inline int nibble_of(Packed bytes, int i) { return bytes[i % 16] >> (i < 16 ? 0 : 4) & 15; }
static inline int bit_of(Packed bytes, int i) { return bytes[i / 8] >> i % 8 & 1; }

/* The 2 bits of column c of 256: of 128 columns the first 32 are the lowest bits of 32 bytes, and so on. */
static inline int two_bits_of(Packed bytes, int c) { return bytes[c / 128 * 32 + c % 32] >> c % 128 / 32 * 2 & 3; }

static inline int check_group(const Group *group) {
    return is_finite(group->scale) && is_finite(group->minimum) ? OK : E_NOT_FINITE;
}

static inline int read_int8s(Packed bytes, Group *group) {
    memcpy(group->values, bytes, GROUP);
    for (int i = 0; i < GROUP; i++)
        if (group->values[i] == -128) return E_RANGE;
    return check_group(group);
}

/* Reads group k of a block of Q4_K or Q5_K, whose s and t, of 6 bits each, are packed in 12 bytes. */
static inline void read_q4_k(Packed block, int k, bool fifth_bit, Group *group) {
    const Packed s = block + 4, bits = block + 16, nibbles = bits + (fifth_bit ? 32 : 0) + k / 2 * 32;
    const int scale = k < 4 ? s[k] & 63 : (s[k + 4] & 15) | s[k - 4] >> 6 << 4;
    const int minimum = k < 4 ? s[k + 4] & 63 : s[k + 4] >> 4 | s[k] >> 6 << 4;
    group->scale = f16_at(block) * (float)scale;
    group->minimum = -(f16_at(block + 2) * (float)minimum);
    for (int i = 0; i < GROUP; i++) {
        const int bit = fifth_bit ? bits[i] >> k & 1 : 0;
        group->values[i] = (int8_t)((nibbles[i] >> k % 2 * 4 & 15) + 16 * bit);
    }
}

static inline void read_q6_k(Packed block, int k, Group *group) {
    const Packed low = block, high = block + 128, scales = block + 192;
    group->scale = f16_at(block + 208);
    for (int i = 0; i < GROUP; i++) {
        const int c = 32 * k + i, nibble = low[c / 128 * 64 + c % 64] >> c % 128 / 64 * 4 & 15;
        group->values[i] = (int8_t)(nibble + 16 * two_bits_of(high, c) - 32);
    }
    memcpy(group->sub_scales, scales + 2 * k, 2);
}

static inline void read_q3_k(Packed block, int k, Group *group) {
    const Packed high = block, low = block + 32, s = block + 96;
    group->scale = f16_at(block + 108);
    for (int i = 0; i < GROUP; i++)
        group->values[i] = (int8_t)(two_bits_of(low, 32 * k + i) + 4 * (high[i] >> k & 1) - 4);
    for (int half = 0; half < 2; half++) {
        const int j = 2 * k + half, low4 = s[j % 8] >> j / 8 * 4 & 15, high2 = s[8 + j % 4] >> j / 4 * 2 & 3;
        group->sub_scales[half] = (int8_t)(low4 + 16 * high2 - 32);
    }
}

static inline void read_iq4_xs(Packed block, int k, Group *group) {
    const int low4 = block[4 + k / 2] >> k % 2 * 4 & 15, high2 = block[2 + k / 4] >> k % 4 * 2 & 3;
    group->scale = f16_at(block) * (float)(low4 + 16 * high2 - 32);
    for (int i = 0; i < GROUP; i++) group->values[i] = IQ4[nibble_of(block + 8 + 16 * k, i)];
}

/* Five trits are the first digits, to base 3, of a byte as a fraction of 256; the last four bytes hold only four. */
static inline void read_tq1_0(Packed block, int k, Group *group) {
    static const uint8_t powers[] = {1, 3, 9, 27, 81};
    group->scale = f16_at(block + 52);
    for (int i = 0; i < GROUP; i++) {
        const int c = 32 * k + i;
        int byte, digit;
        if (c < 160)
            byte = c % 32, digit = c / 32;
        else if (c < 240)
            byte = 32 + (c - 160) % 16, digit = (c - 160) / 16;
        else
            byte = 48 + (c - 240) % 4, digit = (c - 240) / 4;
        group->values[i] = (int8_t)(((uint8_t)(block[byte] * powers[digit]) * 3 >> 8) - 1);
    }
}

/* Reads group g of a row. I8 rows find their scales by themselves: the caller sets `scale` before. */
static inline int read_group(int type, const char *row, int g, Group *group) {
    const Format format = format_of(type);
    const int groups = format.block > GROUP ? format.block / GROUP : 1, k = g % groups;
    const Packed block = (Packed)row + (size_t)(g / groups) * (type == TYPE_I8 ? GROUP : format.bytes);
    int8_t *values = group->values;
    group->minimum = 0;
    switch (type) {
    case TYPE_Q5_0:
        group->scale = f16_at(block);
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)(nibble_of(block + 6, i) + 16 * bit_of(block + 2, i) - 16);
        break;
    case TYPE_Q5_1:
        group->scale = f16_at(block);
        group->minimum = f16_at(block + 2);
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)(nibble_of(block + 8, i) + 16 * bit_of(block + 4, i));
        break;
    case TYPE_Q4_0:
        group->scale = f16_at(block);
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)(nibble_of(block + 2, i) - 8);
        break;
    case TYPE_Q4_1:
        group->scale = f16_at(block);
        group->minimum = f16_at(block + 2);
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)nibble_of(block + 4, i);
        break;
    case TYPE_IQ4_NL:
        group->scale = f16_at(block);
        for (int i = 0; i < GROUP; i++) values[i] = IQ4[nibble_of(block + 2, i)];
        break;
    case TYPE_MXFP4: /* the two smallest are subnormal floats */
        group->scale = f32_from_bits(block[0] < 2 ? 0x200000u << block[0] : (block[0] - 1u) << 23);
        for (int i = 0; i < GROUP; i++) values[i] = FP4[nibble_of(block + 1, i)];
        break;
    case TYPE_Q6_K: read_q6_k(block, k, group); break;
    case TYPE_Q5_K: read_q4_k(block, k, true, group); break;
    case TYPE_Q4_K: read_q4_k(block, k, false, group); break;
    case TYPE_Q3_K: read_q3_k(block, k, group); break;
    case TYPE_IQ4_XS: read_iq4_xs(block, k, group); break;
    case TYPE_TQ2_0:
        group->scale = f16_at(block + 64);
        for (int i = 0; i < GROUP; i++) values[i] = (int8_t)(two_bits_of(block, 32 * k + i) - 1);
        break;
    case TYPE_TQ1_0: read_tq1_0(block, k, group); break;
    case TYPE_Q8_0: group->scale = f16_at(block); return read_int8s(block + 2, group);
    default: return read_int8s(block, group); /* I8 */
    }
    return check_group(group);
}

#endif
