// Convolutions of single maps.
//
// A map lies in one flat row with zeros between its lines, so that moving the map by a line or a
// column is moving the row by a constant, and a convolution is a matrix product and a sum over
// shifted rows.
#pragma once

#include "products.hpp"
#include "threads.hpp"
#include "vectors.hpp"

namespace hdf {

constexpr int64_t kKernel = 7;  // side of the read-out convolution
constexpr int64_t kTaps = kKernel * kKernel;
constexpr int64_t kBlock = 256;  // positions of all maps that stay in a cache between two steps
constexpr int64_t kTapsPadded = 64;  // a multiple of every vector

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

struct Grid {
  int64_t height, width;
  int64_t half;    // reach of the local spectrum
  int64_t pitch;   // distance of two lines: the margin serves the one before and the one behind
  int64_t length;  // of the flat row, a multiple of the vector
  int64_t reach;   // zeros that a shift may read before and behind the row

  Grid(int64_t height, int64_t width, int64_t half, int64_t step)
      : height(height), width(width), half(half) {
    const int64_t margin = half > kKernel / 2 ? half : kKernel / 2;
    pitch = width + margin;
    length = round_up(height * pitch, step);
    reach = round_up(margin * (pitch + 1), step);
  }
  int64_t framed() const { return length + 2 * reach; }
  int64_t block() const { return length < kBlock ? length : kBlock; }
  int64_t blocks() const { return (length + kBlock - 1) / kBlock; }
  int64_t end_of(int64_t part) const {
    return (part + 1) * block() < length ? (part + 1) * block() : length;
  }
  int64_t shift(int64_t dy, int64_t dx) const { return dy * pitch + dx; }
};

template <typename R>
void embed(const R* map, R* row, const Grid& grid) {
  for (int64_t i = 0; i < grid.length; ++i) row[i] = 0;
  for (int64_t y = 0; y < grid.height; ++y)
    std::memcpy(row + y * grid.pitch, map + y * grid.width, grid.width * sizeof(R));
}

template <typename R>
void crop(const R* row, R* map, const Grid& grid) {
  for (int64_t y = 0; y < grid.height; ++y)
    std::memcpy(map + y * grid.width, row + y * grid.pitch, grid.width * sizeof(R));
}

// out (length) = sum of ``height`` × ``width`` rows, tap (i, j) moved by
// sign · (i − height/2, j − width/2).
template <typename R>
void sum_shifted(const R* rows, int64_t row, R* out, int64_t length, int64_t height, int64_t width,
                 int64_t sign, const Grid& grid) {
  for (int64_t x = 0; x < length; x += lanes<R>) {
    Real<R> sum{};
    const R* from = rows + x;
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j, from += row)
        sum += load(from + sign * grid.shift(i - height / 2, j - width / 2));
    store(out + x, sum);
  }
}

template <typename R>
void clear_margins(R* row, const Grid& grid) {  // of a framed row
  for (int64_t i = 0; i < grid.reach; ++i) row[i] = row[grid.reach + grid.length + i] = 0;
}

template <typename R>
struct Rows {  // of maps, one behind the other
  const R* data;
  int64_t row;
};

// What blocks add to their positions and to those around them.
template <typename R>
struct Contributions {
  const Grid& grid;
  int64_t width, blocks;
  R *rows, *sums;

  static int64_t size(const Grid& grid, int64_t threads) {
    const int64_t width = grid.block() + 2 * grid.reach;
    return threads * (kKernel * width + 2 * lanes<R>) + (threads > 1 ? grid.blocks() : 1) * width;
  }
  Contributions(const Grid& grid, R* memory, int64_t threads)
      : grid(grid),
        width(grid.block() + 2 * grid.reach),
        blocks(threads > 1 ? grid.blocks() : 1),
        rows(memory + blocks * width + lanes<R>),
        sums(memory) {}

  R* sum(int64_t part) const { return sums + part % blocks * width; }

  // A row for every column of the kernel, into which the lines of the kernel are summed, then the
  // sum of these rows. Seven rows, because what one product writes the next must not read:
  // processors wait for that.
  void compute(int64_t part, Rows<R> maps, const R* kernel, int64_t inputs, int64_t who) const {
    R* own = rows + who * (kKernel * width + 2 * lanes<R>);
    std::memset(own - lanes<R>, 0, (kKernel * width + 2 * lanes<R>) * sizeof(R));
    for (int64_t dy = 0; dy < kKernel; ++dy)
      multiply<R>({kernel + dy * kKernel, 1, kTaps}, maps.data, maps.row,
                  own + grid.reach - grid.shift(dy - kKernel / 2, 0), width, kKernel, inputs,
                  grid.end_of(part) - part * grid.block(), true);
    sum_shifted(own, width, sum(part), width, 1, kKernel, 1, grid);
  }
  void add_to(R* out, int64_t part) const {
    const int64_t first = part * grid.block() - grid.reach, end = first + width;
    const R* from = sum(part);
    for (int64_t x = first > 0 ? first : 0; x < end && x < grid.length; x += lanes<R>)
      store(out + x, load(out + x) + load(from + x - first));
  }
};

// Zero-padded correlation of maps (inputs, length) with a kernel (outputs, inputs, 7, 7), on several
// threads. ``prepare(part, who, first)`` returns the maps' rows at a block; ``first`` is false where
// it did that before. scratch: Contributions.
template <typename R, typename Prepare>
void convolve(const R* kernel, int64_t inputs, int64_t outputs, R* out, const R* inside,
              const Grid& grid, R* scratch, int64_t threads, Prepare prepare) {
  const Contributions<R> around(grid, scratch, threads);
  for (int64_t o = 0; o < outputs; ++o) {
    R* result = out + o * grid.length;
    std::memset(result, 0, grid.length * sizeof(R));
    side_by_side(threads, grid.blocks(), [&](int64_t part, int64_t who) {
      around.compute(part, prepare(part, who, o == 0), kernel + o * inputs * kTaps, inputs, who);
      if (threads == 1) around.add_to(result, part);
    });
    for (int64_t part = 0; threads > 1 && part < grid.blocks(); ++part)  // always in this order
      around.add_to(result, part);
    for (int64_t i = 0; i < grid.length; ++i) result[i] *= inside[i];
  }
}

// Gradients of ``convolve``: of the maps (inputs, length), overwritten, and of the kernel.
// scratch: (49, length), then (length, 64), then one framed row.
template <typename R>
void convolve_backward(const R* grad, const R* maps, const R* kernel, int64_t inputs,
                       int64_t outputs, R* grad_maps, R* grad_kernel, const R* inside,
                       const Grid& grid, R* scratch) {
  R *moved = scratch, *around = moved + kTaps * grid.length;
  R* framed = around + grid.length * kTapsPadded;
  R* products = framed + grid.framed();  // (inputs, 64)
  clear_margins(framed, grid);
  for (int64_t o = 0; o < outputs; ++o) {
    std::memcpy(framed + grid.reach, grad + o * grid.length, grid.length * sizeof(R));
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      const int64_t shift = grid.shift(tap / kKernel - kKernel / 2, tap % kKernel - kKernel / 2);
      std::memcpy(moved + tap * grid.length, framed + grid.reach - shift, grid.length * sizeof(R));
    }
    const R* kernels = kernel + o * inputs * kTaps;
    multiply<R>({kernels, kTaps, 1}, moved, grid.length, grad_maps, grid.length, inputs, kTaps,
                grid.length, o > 0);
    for (int64_t i = 0; i < grid.length; ++i) {  // taps from last to first: runs of seven
      R* to = around + i * kTapsPadded;
      for (int64_t dy = 0; dy < kKernel; ++dy, to += kKernel) {
        const R* from = framed + grid.reach + i + grid.shift(dy - kKernel / 2, -(kKernel / 2));
        std::memcpy(to, from, kKernel * sizeof(R));
      }
    }
    multiply<R>({maps, grid.length, 1}, around, kTapsPadded, products, kTapsPadded, inputs,
                grid.length, kTapsPadded);
    for (int64_t m = 0; m < inputs; ++m)
      for (int64_t tap = 0; tap < kTaps; ++tap)
        grad_kernel[(o * inputs + m) * kTaps + tap] = products[m * kTapsPadded + kTaps - 1 - tap];
  }
  for (int64_t m = 0; m < inputs; ++m)
    for (int64_t i = 0; i < grid.length; ++i) grad_maps[m * grid.length + i] *= inside[i];
}

// ``kSide`` transforms of the rows at ``in`` + k · step, one at every place: out row u is basis row u
// times them. Even basis rows are symmetric and odd ones antisymmetric, so they are half as long.
template <typename R, int kSide>
void transform(const R* in, int64_t step, const R* basis, R* out, int64_t out_step,
               int64_t length) {
  constexpr int kHalf = kSide / 2;
  for (int64_t i = 0; i < length; i += lanes<R>) {
    Real<R> part[2][kHalf];
    for (int k = 0; k < kHalf; ++k) {
      const Real<R> before = load(in + k * step + i);
      const Real<R> behind = load(in + (kSide - 1 - k) * step + i);
      part[0][k] = before + behind, part[1][k] = before - behind;
    }
    const Real<R> middle = load(in + kHalf * step + i);
    for (int u = 0; u < kSide; ++u) {
      Real<R> sum = u % 2 ? Real<R>{} : basis[u * kSide + kHalf] * middle;
      for (int k = 0; k < kHalf; ++k) sum += basis[u * kSide + k] * part[u % 2][k];
      store(out + u * out_step + i, sum);
    }
  }
}

template <typename R>
void transform(const R* in, int64_t step, const R* basis, R* out, int64_t out_step, int64_t length,
               int64_t side) {
  if (side == 7)  // the default
    transform<R, 7>(in, step, basis, out, out_step, length);
  else
    multiply<R>({basis, side, 1}, in, step, out, out_step, side, side, length);
}

// Transforms of a framed image along the height: (n, framed).
template <typename R>
void transform_lines(const R* image, const R* basis, R* out, const Grid& grid) {
  const int64_t n = 2 * grid.half + 1;
  for (int64_t u = 0; u < n; ++u) clear_margins(out + u * grid.framed(), grid);
  transform(image + grid.reach - grid.half * grid.pitch, grid.pitch, basis, out + grid.reach,
            grid.framed(), grid.length, n);
}

// Local spectrum of a block from these: n² rows, frequency v·n + u with u along the height; what is
// in the margins means nothing.
template <typename R>
void spectrum(const R* lines, const R* basis, R* out, int64_t row, int64_t part,
              const Grid& grid) {
  const int64_t n = 2 * grid.half + 1, begin = part * grid.block();
  for (int64_t u = 0; u < n; ++u)
    transform(lines + u * grid.framed() + grid.reach - grid.half + begin, int64_t(1), basis,
              out + u * row, n * row, grid.end_of(part) - begin, n);
}

// Gradient of the local spectrum with respect to the image, (length). scratch: (n, framed), (n, length).
template <typename R>
void spectrum_backward(const R* grad, const R* basis, R* out, const Grid& grid, R* scratch) {
  const int64_t n = 2 * grid.half + 1;
  R *framed = scratch, *rows = scratch + n * grid.framed();
  for (int64_t u = 0; u < n; ++u) clear_margins(framed + u * grid.framed(), grid);
  for (int64_t u = 0; u < n; ++u) {
    multiply<R>({basis, 1, n}, grad + u * grid.length, n * grid.length, framed + grid.reach,
                grid.framed(), n, n, grid.length);
    sum_shifted(framed + grid.reach, grid.framed(), rows + u * grid.length, grid.length, 1, n, -1,
                grid);
  }
  multiply<R>({basis, 1, n}, rows, grid.length, framed + grid.reach, grid.framed(), n, n,
              grid.length);
  sum_shifted(framed + grid.reach, grid.framed(), out, grid.length, n, 1, -1, grid);
}

}  // namespace hdf
