// Vectors of the processor's width, and what the storage types read as.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#define HDF_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define HDF_VECTOR_BYTES 32
#else
#define HDF_VECTOR_BYTES 16
#endif

// Closures that hold sums: out of line, the sums would live in memory.
#define HDF_INLINE __attribute__((always_inline))

namespace hdf {

template <typename R, int Bytes>
struct Vector;
template <int Bytes>
struct Vector<float, Bytes> {
  typedef float Real __attribute__((vector_size(Bytes)));
  typedef int32_t Int __attribute__((vector_size(Bytes)));
};
template <int Bytes>
struct Vector<double, Bytes> {
  typedef double Real __attribute__((vector_size(Bytes)));
  typedef int64_t Int __attribute__((vector_size(Bytes)));
};

template <typename R>
using Real = typename Vector<R, HDF_VECTOR_BYTES>::Real;
template <typename R>
using Int = typename Vector<R, HDF_VECTOR_BYTES>::Int;
template <typename R>
using Whole = decltype(Int<R>{}[0] + 0);  // an integer as wide as R
template <typename R>
constexpr int64_t lanes = HDF_VECTOR_BYTES / sizeof(R);

struct BFloat16 {
  uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(HDF_VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(HDF_VECTOR_BYTES)));

template <typename To, typename From>
inline To cast_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <typename R>
inline Real<R> fill(R value) {
  return Real<R>{} + value;
}

inline float get(float value) { return value; }
inline double get(double value) { return value; }
inline float get(BFloat16 value) { return cast_bits<float>(uint32_t(value.bits) << 16); }

inline void put(float* to, float value) { *to = value; }
inline void put(double* to, double value) { *to = value; }
inline void put(BFloat16* to, float value) {  // to the nearest, ties to even
  uint32_t bits = cast_bits<uint32_t>(value);
  to->bits = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

template <typename R>
inline Real<R> load(const R* from) {
  Real<R> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline Real<float> load(const BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return cast_bits<Real<float>>(__builtin_convertvector(halves, Words) << 16);
}

template <typename R>
inline void store(R* to, Real<R> value) {
  std::memcpy(to, &value, sizeof value);
}
inline void store(BFloat16* to, Real<float> value) {
  Words bits = cast_bits<Words>(value);
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words nan = cast_bits<Words>(value != value);
  Halves halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// Lanes First, First + 1, … of a vector.
template <std::size_t First, typename Vector, std::size_t... Lane>
inline auto lanes_from(Vector value, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(value, value, (First + Lane)...);
}

// Combine all lanes, halves with halves. (By shuffles: a vector that memory is read from stays
// there.)
template <typename E, typename Vector, typename Combine>
inline E reduce_lanes(Vector value, Combine combine) {
  constexpr std::size_t half = sizeof(Vector) / sizeof(E) / 2;
  if constexpr (half == 1) {
    return combine(E(value[0]), E(value[1]));
  } else {
    constexpr auto lane = std::make_index_sequence<half>();
    return reduce_lanes<E>(combine(lanes_from<0>(value, lane), lanes_from<half>(value, lane)),
                           combine);
  }
}

template <typename R>
inline R sum_lanes(Real<R> value) {
  return reduce_lanes<R>(value, [](auto a, auto b) HDF_INLINE { return a + b; });
}

// Sum value(i) for the vectors of a length, in four sums that need not wait for each other.
template <typename R, typename Value>
HDF_INLINE inline R sum_all(int64_t length, Value value) {
  Real<R> sums[4]{};
  int64_t i = 0;
  for (; i + 4 * lanes<R> <= length; i += 4 * lanes<R>)
    for (int v = 0; v < 4; ++v) sums[v] += value(i + v * lanes<R>);
  for (; i < length; i += lanes<R>) sums[0] += value(i);
  return sum_lanes<R>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename R>
inline bool any_lane(Int<R> mask) {
  return reduce_lanes<Whole<R>>(mask, [](auto a, auto b) HDF_INLINE { return a | b; });
}

// 2^(whole + rest), |rest| at most a half: the minimax polynomial with 2^0 = 1, error 1e-7. What
// the product with log2 e loses adds |x| times as much.
inline Real<float> exponential(Real<float> x) {
  x *= 1.44269504088896341f;
  x = x < -126.0f ? fill(-126.0f) : x;
  x = x > 126.0f ? fill(126.0f) : x;
  const Real<float> shifted = x + 12582912.0f;  // 1.5 · 2^23: its last bits count in ones
  const Real<float> rest = x - (shifted - 12582912.0f);
  Real<float> p = rest * 1.3264731e-3f + 9.6715139e-3f;
  p = p * rest + 5.5507336e-2f;
  p = p * rest + 2.4022242e-1f;
  p = p * rest + 6.9314700e-1f;
  p = p * rest + 1.0f;
  return cast_bits<Real<float>>(cast_bits<Int<float>>(p) + (cast_bits<Int<float>>(shifted) << 23));
}
inline Real<double> exponential(Real<double> x) {
  for (int64_t i = 0; i < lanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

template <typename R>
inline Real<R> root(Real<R> x) {
  for (int64_t i = 0; i < lanes<R>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

template <typename V>
inline V reciprocal(V x) {
  return 1 / x;
}
#if defined(__AVX512F__)
inline Real<float> reciprocal(Real<float> x) {  // of normal numbers, within 1 ulp: half a division
  const Real<float> near = cast_bits<Real<float>>(_mm512_rcp14_ps(cast_bits<__m512>(x)));
  return near * (2.0f - x * near);
}
#endif

template <typename R>
inline Real<R> sigmoid(Real<R> x) {
  return reciprocal(R(1) + exponential(-x));
}

template <typename R>
inline Real<R> sign(Real<R> x) {
  return (x > R(0) ? fill(R(1)) : fill(R(0))) - (x < R(0) ? fill(R(1)) : fill(R(0)));
}

// amount · sign(x)
template <typename R>
inline Real<R> with_sign(R amount, Real<R> x) {
  const Int<R> bit = Int<R>{} + std::numeric_limits<Whole<R>>::min();
  const Int<R> turned = cast_bits<Int<R>>(fill(amount)) ^ (cast_bits<Int<R>>(x) & bit);
  return cast_bits<Real<R>>(turned & (x != R(0)));
}

}  // namespace hdf
