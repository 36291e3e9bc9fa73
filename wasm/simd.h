/* The vector vocabulary: four floats, four int32 or eight int16 in 128 bits.
 *
 * The types are GCC/Clang vector extensions, so + - * work lane by lane and the same source compiles to wasm SIMD128
 * and to native code. Only what the extensions cannot say is a function here. Every operation is exact or correctly
 * rounded IEEE arithmetic: the bits are the same in every build (compile with -ffp-contract=off).
 */
#ifndef FABELLA_SIMD_H
#define FABELLA_SIMD_H

#include <stdint.h>
#include <string.h>
#ifdef __wasm_simd128__
#include <wasm_simd128.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int16_t i16x8 __attribute__((vector_size(16)));

INLINE f32x4 f32x4_load(const float *p) {
    f32x4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void f32x4_store(float *p, f32x4 v) { memcpy(p, &v, sizeof v); }

INLINE f32x4 f32x4_splat(float a) { return (f32x4){a, a, a, a}; }

/* Always in this order: sums over lanes are part of what "same bits" means. */
INLINE float f32x4_sum(f32x4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }

INLINE f32x4 f32x4_max(f32x4 a, f32x4 b) {
    i32x4 greater = a > b;
    return (f32x4)(((i32x4)a & greater) | ((i32x4)b & ~greater));
}

INLINE f32x4 f32x4_abs(f32x4 a) { return (f32x4)((i32x4)a & 0x7fffffff); }

INLINE f32x4 f32x4_from_i32x4(i32x4 a) { return __builtin_convertvector(a, f32x4); }

/* Nearest integer (ties to even) of |a| < 2^22: adding 1.5 * 2^23 pushes the fraction out of the mantissa. */
#define ROUND_MAGIC 12582912.0f
INLINE i32x4 i32x4_round_f32x4(f32x4 a) { return (i32x4)(a + ROUND_MAGIC) - (i32x4)f32x4_splat(ROUND_MAGIC); }

/* e^a. Range reduction to |r| <= ln(2)/2, a polynomial of degree 6, then 2^n by the exponent bits.
 * Relative error below 3e-7; 0 below -87, e^88 above 88. */
INLINE f32x4 f32x4_exp(f32x4 a) {
    i32x4 kept = a >= -87.0f;
    f32x4 clamped = (f32x4)((i32x4)a & kept);
    i32x4 small = clamped < 88.0f;
    clamped = (f32x4)(((i32x4)clamped & small) | ((i32x4)f32x4_splat(88.0f) & ~small));
    i32x4 n = i32x4_round_f32x4(clamped * 1.44269504f); /* log2(e) */
    f32x4 nf = f32x4_from_i32x4(n);
    f32x4 r = clamped - nf * 0.693359375f; /* ln(2) in two parts; the first has 10 bits, so nf * it is exact */
    r = r + nf * 2.12194440e-4f;
    f32x4 p = r * (1.0f / 720) + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    f32x4 power = (f32x4)((n + 127) << 23);
    return (f32x4)((i32x4)(p * power) & kept);
}

/* Eight int8 weights, widened to int16. */
INLINE i16x8 i16x8_load8x8(const int8_t *p) {
#ifdef __wasm_simd128__
    return (i16x8)wasm_i16x8_load8x8(p);
#else
    typedef int8_t i8x8 __attribute__((vector_size(8)));
    i8x8 v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, i16x8);
#endif
}

/* Two int16 activations, repeated in all four pairs of lanes. */
INLINE i16x8 i16x8_splat_pair(const int16_t *p) {
    int32_t pair;
    memcpy(&pair, p, sizeof pair);
    return (i16x8)(i32x4){pair, pair, pair, pair};
}

/* Lane i is a[2i] * b[2i] + a[2i + 1] * b[2i + 1], exactly. */
INLINE i32x4 i32x4_dot_i16x8(i16x8 a, i16x8 b) {
#ifdef __wasm_simd128__
    return (i32x4)wasm_i32x4_dot_i16x8((v128_t)a, (v128_t)b);
#else
    i32x4 sum;
    for (int i = 0; i < 4; i++) sum[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sum;
#endif
}

#endif
