// Loads and stores of 16 bytes, the widest of a thread.
#pragma once

#include "../amun_math.h"

namespace amun {

// `width` elements of one load, by default 16 bytes.
template <typename E, int width = 16 / sizeof(E)>
struct alignas(sizeof(E) * width < 16 ? sizeof(E) * width : 16) Pack {
  E at[width];
};

template <typename T>
constexpr int pack_width = 16 / sizeof(T);

template <int width, typename E>
AMUN_HD Pack<E, width>& pack(void* elements, int64_t i) {
  return *reinterpret_cast<Pack<E, width>*>(static_cast<E*>(elements) + i);
}

template <int width, typename E>
AMUN_HD const Pack<E, width>& pack(const void* elements, int64_t i) {
  return *reinterpret_cast<const Pack<E, width>*>(static_cast<const E*>(elements) + i);
}

// The same for memory that is only read, by an instruction that the compiler does not split, as it would for sm_100.
template <int width, typename E>
__device__ __forceinline__ Pack<E, width> read_pack(const E* elements, int64_t i) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Pack<E, width>) == 16) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(elements + i));
    return reinterpret_cast<const Pack<E, width>&>(bits);
  }
#endif
  return pack<width, E>(elements, i);
}

template <int width, typename E>
AMUN_HD bool is_aligned(const void* elements) {
  return reinterpret_cast<uintptr_t>(elements) % alignof(Pack<E, width>) == 0;
}

// ------------------------------------------------------------------------------------------------------ rows of packs

// A row is divided into packs from its first element on; the last one may be shorter. `whole`: it is not, and all rows
// begin at a multiple of 16 bytes. Otherwise packs are read element by element, with the same division: which thread
// adds which elements depends only on the length of the row.
template <typename T>
AMUN_HD int64_t packs_of(int64_t length) {
  return (length + pack_width<T> - 1) / pack_width<T>;
}

template <typename T>
AMUN_HD bool are_whole(int64_t length, const void* rows) {
  return length % pack_width<T> == 0 && is_aligned<pack_width<T>, T>(rows);
}

// Pack i of a row; beyond its end, `fill`.
template <bool whole, typename T>
__device__ __forceinline__ Pack<T> load(const T* row, int i, int64_t length, T fill = T(0)) {
  constexpr int width = pack_width<T>;
  const int64_t first = int64_t(i) * width;
  if constexpr (whole)
    if (first < length) return pack<width, T>(row, first);
  Pack<T> part;
#pragma unroll
  for (int j = 0; j < width; ++j) part.at[j] = !whole && first + j < length ? row[first + j] : fill;
  return part;
}

template <bool whole, typename T>
__device__ __forceinline__ void store(T* row, int i, int64_t length, const Pack<T>& part) {
  constexpr int width = pack_width<T>;
  const int64_t first = int64_t(i) * width;
  if constexpr (whole) {
    if (first < length) pack<width, T>(row, first) = part;
  } else {
#pragma unroll
    for (int j = 0; j < width; ++j)
      if (first + j < length) row[first + j] = part.at[j];
  }
}

}  // namespace amun
