// Products of matrices that are too small for a library to be worth its call.
#pragma once

#include "vectors.hpp"

namespace hdf {

template <typename R>
struct Matrix {  // any strides
  const R* data;
  int64_t row, column;
};

template <typename R, int Rows, int Columns>
HDF_INLINE inline void multiply_tile(Matrix<R> a, const R* b, int64_t b_row, R* c, int64_t c_row,
                                     int64_t inner, bool add) {
  Real<R> sum[Rows][Columns];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Columns; ++v)
      sum[r][v] = add ? load(c + r * c_row + v * lanes<R>) : Real<R>{};
  for (int64_t k = 0; k < inner; ++k) {
    Real<R> line[Columns];
    for (int v = 0; v < Columns; ++v) line[v] = load(b + k * b_row + v * lanes<R>);
    for (int r = 0; r < Rows; ++r) {
      const R factor = a.data[r * a.row + k * a.column];
      for (int v = 0; v < Columns; ++v) sum[r][v] += factor * line[v];
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Columns; ++v) store(c + r * c_row + v * lanes<R>, sum[r][v]);
}

template <typename R, int Columns>
HDF_INLINE inline void multiply_rows(Matrix<R> a, const R* b, int64_t b_row, R* c, int64_t c_row,
                                     int64_t rows, int64_t inner, bool add) {
  int64_t r = 0;
  for (; r + 7 <= rows; r += 7, a.data += 7 * a.row, c += 7 * c_row)
    multiply_tile<R, 7, Columns>(a, b, b_row, c, c_row, inner, add);
  for (; r + 3 <= rows; r += 3, a.data += 3 * a.row, c += 3 * c_row)
    multiply_tile<R, 3, Columns>(a, b, b_row, c, c_row, inner, add);
  for (; r < rows; ++r, a.data += a.row, c += c_row)
    multiply_tile<R, 1, Columns>(a, b, b_row, c, c_row, inner, add);
}

template <typename R>
void multiply_rest(Matrix<R> a, const R* b, int64_t b_row, R* c, int64_t c_row, int64_t rows,
                   int64_t inner, int64_t length, bool add) {
  for (int64_t r = 0; r < rows; ++r, c += c_row) {
    if (!add) std::memset(c, 0, length * sizeof(R));
    for (int64_t k = 0; k < inner; ++k) {
      const R factor = a.data[r * a.row + k * a.column];
      for (int64_t i = 0; i < length; ++i) c[i] += factor * b[k * b_row + i];
    }
  }
}

template <typename R>
HDF_INLINE inline void multiply_all(Matrix<R> a, const R* b, int64_t b_row, R* c, int64_t c_row,
                                    int64_t rows, int64_t inner, int64_t length, bool add) {
  int64_t i = 0;
  for (; i + 2 * lanes<R> <= length; i += 2 * lanes<R>)
    multiply_rows<R, 2>(a, b + i, b_row, c + i, c_row, rows, inner, add);
  for (; i + lanes<R> <= length; i += lanes<R>)
    multiply_rows<R, 1>(a, b + i, b_row, c + i, c_row, rows, inner, add);
  if (i < length) multiply_rest(a, b + i, b_row, c + i, c_row, rows, inner, length - i, add);
}

// c (rows, length) = a (rows, inner) · b (inner, length), or added to c. The rows of b may overlap.
// Where the factors of a column are contiguous and the compiler knows it, that is a tenth faster.
template <typename R>
void multiply(Matrix<R> a, const R* b, int64_t b_row, R* c, int64_t c_row, int64_t rows,
              int64_t inner, int64_t length, bool add = false) {
  if (a.row == 1)
    multiply_all<R>({a.data, 1, a.column}, b, b_row, c, c_row, rows, inner, length, add);
  else
    multiply_all(a, b, b_row, c, c_row, rows, inner, length, add);
}

}  // namespace hdf
