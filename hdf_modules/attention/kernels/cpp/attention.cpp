// Distributional attention on a processor: one pass that reads the clip, one that writes it.
//
// The same numbers as functional.py, sample by sample, so that the second pass finds the
// sample in a cache. Plain pointers, no library: ../native.py says what they point at.
// The order of every sum is fixed, whatever the number of threads.

#include <atomic>
#include <cstdint>
#include <new>

#include "clip.hpp"
#include "frequency.hpp"
#include "scratch.hpp"
#include "temporal.hpp"
#include "threads.hpp"

namespace hdf {

struct Sizes {  // as ../native.py lays them out
  int64_t storage, threads, batch, frames, channels, height, width;
  int64_t bins, length, along_time, side, hidden;
  int64_t x[4], y[4], grad[4];  // strides: batch, time, channel, position
};

template <typename R, typename P>
struct Weights {
  TemporalWeights<R, P> temporal;
  FrequencyWeights<R, P> frequency;
  P temporal_weight, frequency_weight, strength;
};

// In the order that hdf_weights() tells; absent ones are null.
constexpr int64_t kWeights = 24;

template <typename R>
struct Constants {
  const R *basis, *inward, *outward;  // the last two resample time, null where nothing is to do
};

template <typename R>
struct Pointers {
  Constants<R> constants;
  const R* const* weights;
  void *x, *y, *grad;
  R* kept;          // (batch, statistics), or null where nobody asks for them
  R* grad_weights;  // (batch, all weights)
};

template <typename R, typename P>
Weights<R, P> arrange(P const* w) {
  return {{w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10]},
          {w[11], w[12], w[13], w[14], w[15], w[16], w[17], w[18], w[19], w[20]},
          w[21],
          w[22],
          w[23]};
}

template <typename R>
struct Statistics {  // of one sample
  R *mean, *peak;  // (frames, bins)
  int32_t* place;  // of each peak among the (channels, positions) of its frame; null if not asked
  R* total;        // (positions)
};

template <typename R>
struct Problem {
  const Sizes& z;
  const Pointers<R>& at;
  int64_t positions, maps, chunks;
  Grid grid;
  Weights<R, const R*> w;

  Problem(const Sizes& z, const Pointers<R>& at)
      : z(z),
        at(at),
        positions(z.height * z.width),
        maps(z.side * z.side),
        chunks((z.frames + kChunk - 1) / kChunk),
        grid(z.height, z.width, z.side / 2, lanes<R>),
        w(arrange<R, const R*>(at.weights)) {}

  Size size() const { return {z.frames, z.channels, positions}; }
  int64_t table() const { return z.frames * z.bins; }
  // Those of sample b, of which the caller keeps [mean, peak, place, total] one behind the other.
  Statistics<R> statistics(int64_t b, Scratch& scratch) const {
    const int64_t count = (at.kept ? 3 : 2) * table() + positions;
    R* start = at.kept ? at.kept + b * count : scratch.take<R>(count);
    R *peak = start + table(), *behind = peak + table();
    if (!at.kept) return {start, peak, nullptr, behind};
    return {start, peak, reinterpret_cast<int32_t*>(behind), behind + table()};
  }

  // How many threads share the work on one sample.
  int64_t threads_for(int64_t values) const {
    return z.batch >= z.threads || values < kWorthwhile ? 1 : z.threads;
  }

  // Call ``work`` with ranges of frames: chunks side by side where a sample has several threads,
  // else all at once if ``whole`` allows it.
  template <typename Work>
  void each_range(bool whole, Work work) const {
    const int64_t frames = z.frames, threads = threads_for(frames * z.channels * positions);
    const int64_t step = threads == 1 && whole ? frames : kChunk;
    side_by_side(threads, (frames + step - 1) / step, [&](int64_t range, int64_t) {
      const int64_t begin = range * step;
      work(begin, begin + step < frames ? begin + step : frames);
    });
  }
};

template <typename S>
Clip<S> clip(void* data, const int64_t* strides) {
  return {static_cast<S*>(data), strides[0], strides[1], strides[2], strides[3]};
}

inline int64_t first_channel(int64_t bin, int64_t channels, int64_t bins) {
  return bin * channels / bins;
}
inline int64_t end_channel(int64_t bin, int64_t channels, int64_t bins) {
  return ((bin + 1) * channels + bins - 1) / bins;
}

// Sum tables of chunks, in their order.
template <typename R>
void sum_chunks(const R* parts, int64_t chunks, int64_t stride, int64_t positions, R* out) {
  clear(out, positions);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t p = 0; p < positions; ++p) out[p] += parts[chunk * stride + p];
}

template <typename R, typename S>
void read_statistics(const Problem<R>& problem, int64_t b, const Statistics<R>& found,
                     Scratch& scratch) {
  const Sizes& z = problem.z;
  const int64_t positions = problem.positions, all = z.frames * z.channels;
  const Clip<const S> x = clip<const S>(problem.at.x, z.x).sample(b);
  const bool by_map = x.position == 1, locate = found.place != nullptr;
  const Maps<R> maps{scratch.take<R>(all), scratch.take<R>(all),
                     locate && !by_map ? scratch.take<int32_t>(all) : nullptr};
  const int64_t part = accumulators<R>(positions), line = 3 * kChunk * accumulators<R>(z.channels);
  R* parts = scratch.take<R>(problem.chunks * part);
  R* room = by_map ? nullptr : scratch.take<R>(problem.chunks * line);
  problem.each_range(by_map, [&](int64_t begin, int64_t end) {
    R* sum = parts + begin / kChunk * part;
    R* own = room + begin / kChunk * line;
    if (by_map)
      read_maps<R, S>(x, problem.size(), begin, end, maps, parts);
    else if (locate)
      read_lines<R, S, true>(x, problem.size(), begin, end, maps, sum, own);
    else
      read_lines<R, S, false>(x, problem.size(), begin, end, maps, sum, own);
  });
  sum_chunks(parts, problem.chunks, part, positions, found.total);
  for (int64_t p = 0; p < positions; ++p) found.total[p] /= z.frames;
  for (int64_t t = 0; t < z.frames; ++t)
    for (int64_t k = 0; k < z.bins; ++k) {
      const int64_t first = first_channel(k, z.channels, z.bins);
      const int64_t end = end_channel(k, z.channels, z.bins);
      R sum = 0;
      int64_t top = t * z.channels + first;
      for (int64_t map = t * z.channels + first; map < t * z.channels + end; ++map) {
        sum += maps.sum[map] / positions;
        if (maps.peak[map] > maps.peak[top]) top = map;
      }
      const int64_t i = t * z.bins + k;
      found.mean[i] = sum / (end - first);
      found.peak[i] = maps.peak[top];
      if (!locate) continue;
      const int64_t channel = top - t * z.channels;
      const int32_t place = by_map ? find_first<R>(x.at(t, channel, 0), positions, maps.peak[top])
                                   : maps.place[top];
      found.place[i] = int32_t(channel * positions + place);
    }
}

// Both branches of one sample and the two parts of its factor.
template <typename R>
struct Gates {
  Temporal<R> temporal;
  Frequency<R> frequency;
  R *g, *f, *by_time, *by_position;

  Gates(const Problem<R>& problem, const Statistics<R>& stats, bool keep, Scratch& scratch)
      : temporal(problem.z.length, problem.z.bins, problem.z.along_time, scratch),
        frequency(problem.grid, problem.maps, problem.z.hidden, keep,
                  problem.threads_for(problem.maps * problem.positions), scratch) {
    const Sizes& z = problem.z;
    const Weights<R, const R*>& w = problem.w;
    g = scratch.take<R>(z.frames), by_time = scratch.take<R>(z.frames);
    f = scratch.take<R>(problem.positions), by_position = scratch.take<R>(problem.positions);
    resample(problem.at.constants.inward, stats.mean, temporal.mean, z.length, z.frames, z.bins);
    resample(problem.at.constants.inward, stats.peak, temporal.peak, z.length, z.frames, z.bins);
    temporal_gate(temporal, w.temporal);
    resample(problem.at.constants.outward, temporal.gate, g, z.frames, z.length, int64_t(1));
    frequency_gate(frequency, w.frequency, stats.total, problem.at.constants.basis);
    crop(frequency.gate, f, problem.grid);
    const R strength = w.strength ? *w.strength : R(1);
    for (int64_t t = 0; t < z.frames; ++t)
      by_time[t] = R(1) - strength + strength * R(0.5) * *w.temporal_weight * (1 + g[t]);
    for (int64_t p = 0; p < problem.positions; ++p)
      by_position[p] = strength * R(0.5) * *w.frequency_weight * (1 + f[p]);
  }

  static void resample(const R* matrix, const R* from, R* to, int64_t rows, int64_t inner,
                       int64_t columns) {
    if (matrix)
      small_product(matrix, inner, int64_t(1), from, columns, to, rows, inner, columns);
    else
      std::memcpy(to, from, rows * columns * sizeof(R));
  }
};

template <typename R, typename S>
void forward_sample(const Problem<R>& problem, int64_t b, Scratch& scratch) {
  const Sizes& z = problem.z;
  const Statistics<R> stats = problem.statistics(b, scratch);
  read_statistics<R, S>(problem, b, stats, scratch);
  const Gates<R> gates(problem, stats, false, scratch);
  const Clip<const S> x = clip<const S>(problem.at.x, z.x).sample(b);
  const Clip<S> y = clip<S>(problem.at.y, z.y).sample(b);
  problem.each_range(true, [&](int64_t begin, int64_t end) {
    scale<R, S>(x, y, problem.size(), begin, end, {gates.by_time, gates.by_position});
  });
}

// From the gradients of the two parts to those of g and f, in place, and of the mixture's weights.
template <typename R>
void mixture_backward(const Problem<R>& problem, const Gates<R>& gates,
                      const Weights<R, R*>& grads, R* by_time, R* by_position) {
  const Weights<R, const R*>& w = problem.w;
  const R strength = w.strength ? *w.strength : R(1);
  R time = 0, from_gate = 0, position = 0;
  for (int64_t t = 0; t < problem.z.frames; ++t) {
    from_gate += by_time[t] * (1 + gates.g[t]);
    time += by_time[t];
    by_time[t] *= strength * R(0.5) * *w.temporal_weight;
  }
  for (int64_t p = 0; p < problem.positions; ++p) {
    position += by_position[p] * (1 + gates.f[p]);
    by_position[p] *= strength * R(0.5) * *w.frequency_weight;
  }
  *grads.temporal_weight = strength * R(0.5) * from_gate;
  *grads.frequency_weight = strength * R(0.5) * position;
  if (grads.strength)
    *grads.strength = R(0.5) * *w.temporal_weight * from_gate - time +
                      R(0.5) * *w.frequency_weight * position;
}

// The gradients of a sample's weights lie one behind the other.
template <typename R>
Weights<R, R*> gradients_of(const Problem<R>& problem, int64_t b) {
  const Sizes& z = problem.z;
  const int64_t n = problem.maps, squares = z.bins * z.bins, table = z.length * z.bins;
  const int64_t taps = (z.hidden ? z.hidden : 1) * n * kTaps;
  const int64_t sizes[kWeights] = {
      1, 1, table, table, z.length * z.length,                          // before Q, K, V
      squares, z.bins, squares, z.bins, squares, z.bins,                // Q, K, V
      1, 1, n, n, n, 1, n, n,                                           // frequency
      taps, z.hidden * kTaps, 1, 1, 1};                                 // read-out, mixture
  int64_t all = 0;
  for (int64_t i = 0; i < kWeights; ++i) all += problem.at.weights[i] ? sizes[i] : 0;
  R *next = problem.at.grad_weights + b * all, *found[kWeights];
  for (int64_t i = 0; i < kWeights; ++i) {
    found[i] = problem.at.weights[i] ? next : nullptr;
    next += problem.at.weights[i] ? sizes[i] : 0;
  }
  return arrange<R, R*>(found);
}

template <typename R, typename S>
void backward_sample(const Problem<R>& problem, int64_t b, Scratch& scratch) {
  const Sizes& z = problem.z;
  const int64_t positions = problem.positions;
  const Clip<const S> x = clip<const S>(problem.at.x, z.x).sample(b);
  const Clip<const S> grad = clip<const S>(problem.at.grad, z.grad).sample(b);
  R *by_time = scratch.take<R>(z.frames), *by_position = scratch.take<R>(positions);
  const int64_t part = accumulators<R>(positions);
  R* parts = scratch.take<R>(problem.chunks * part);
  const bool by_map = x.position == 1;
  problem.each_range(by_map, [&](int64_t begin, int64_t end) {
    if (by_map)
      multiply_maps<R, S>(x, grad, problem.size(), begin, end, by_time, parts);
    else
      multiply_lines<R, S>(x, grad, problem.size(), begin, end, by_time,
                           parts + begin / kChunk * part);
  });
  sum_chunks(parts, problem.chunks, part, positions, by_position);

  const Statistics<R> stats = problem.statistics(b, scratch);
  Gates<R> gates(problem, stats, true, scratch);
  const Weights<R, R*> grads = gradients_of(problem, b);
  mixture_backward(problem, gates, grads, by_time, by_position);
  R* by_gate = scratch.take<R>(z.length);
  if (problem.at.constants.outward)
    small_product(problem.at.constants.outward, int64_t(1), z.length, by_time, int64_t(1), by_gate,
                  z.length, z.frames, int64_t(1));
  else
    std::memcpy(by_gate, by_time, z.frames * sizeof(R));
  temporal_gate_backward(gates.temporal, problem.w.temporal, grads.temporal, by_gate, scratch);
  frequency_gate_backward(gates.frequency, problem.w.frequency, grads.frequency, by_position,
                          problem.at.constants.basis, by_position, scratch);
  if (!problem.at.y) return;  // the input needs no gradient

  R *mean = gates.temporal.mean, *peak = gates.temporal.peak;
  if (problem.at.constants.inward) {
    R *longer = scratch.take<R>(problem.table()), *highest = scratch.take<R>(problem.table());
    small_product(problem.at.constants.inward, int64_t(1), z.frames, mean, z.bins, longer,
                  z.frames, z.length, z.bins);
    small_product(problem.at.constants.inward, int64_t(1), z.frames, peak, z.bins, highest,
                  z.frames, z.length, z.bins);
    mean = longer, peak = highest;
  }
  R* from_map = scratch.take<R>(z.frames * z.channels);
  clear(from_map, z.frames * z.channels);
  for (int64_t t = 0; t < z.frames; ++t)
    for (int64_t k = 0; k < z.bins; ++k) {
      const int64_t first = first_channel(k, z.channels, z.bins);
      const int64_t end = end_channel(k, z.channels, z.bins);
      for (int64_t c = first; c < end; ++c)
        from_map[t * z.channels + c] += mean[t * z.bins + k] / ((end - first) * positions);
    }
  for (int64_t p = 0; p < positions; ++p) by_position[p] /= z.frames;
  const Clip<S> out = clip<S>(problem.at.y, z.y).sample(b);
  problem.each_range(true, [&](int64_t begin, int64_t end) {
    write_gradient<R, S>(grad, out, problem.size(), begin, end,
                         {gates.by_time, gates.by_position}, from_map, by_position);
    for (int64_t i = begin * z.bins; i < end * z.bins; ++i) {
      S* top = out.at(i / z.bins, stats.place[i] / positions, stats.place[i] % positions);
      put(top, get(*top) + peak[i]);
    }
  });
}

template <bool kBackward, typename R, typename S>
int run(const Sizes& sizes, const Pointers<R>& at) {
  const Problem<R> problem(sizes, at);
  const bool many = sizes.batch >= sizes.threads;
  std::atomic<int> failed{0};
  side_by_side(many ? sizes.threads : 1, sizes.batch, [&](int64_t b, int64_t) {
    static thread_local Scratch scratch;
    try {
      scratch.reset();
      if constexpr (kBackward)
        backward_sample<R, S>(problem, b, scratch);
      else
        forward_sample<R, S>(problem, b, scratch);
    } catch (const std::bad_alloc&) {
      ++failed;
    }
  });
  return failed;
}

struct Arguments {  // as ../native.py gives them
  const Sizes* sizes;
  const void *constants, *weights;
  void *x, *y, *grad, *kept, *grad_weights;

  template <typename R>
  Pointers<R> at() const {
    return {*static_cast<const Constants<R>*>(constants), static_cast<const R* const*>(weights),
            x, y, grad, static_cast<R*>(kept), static_cast<R*>(grad_weights)};
  }
};

enum Storage { kFloat, kDouble, kBFloat16 };

template <bool kBackward>
int dispatch(const Arguments& call) {
  switch (call.sizes->storage) {
    case kDouble:
      return run<kBackward, double, double>(*call.sizes, call.at<double>());
    case kBFloat16:
      return run<kBackward, float, BFloat16>(*call.sizes, call.at<float>());
    default:
      return run<kBackward, float, float>(*call.sizes, call.at<float>());
  }
}

}  // namespace hdf

#define HDF_EXPORT extern "C" __attribute__((visibility("default")))

// Counts the changes of the interface, so that ../native.py leaves builds of another one
// alone.
HDF_EXPORT const int hdf_interface = 2;

// The order in which the weights are taken, for the caller to compare with its own.
HDF_EXPORT const char* hdf_weights() {
  return "temporal.mean_weight temporal.peak_weight temporal.scale temporal.distance_scale "
         "temporal.mixing temporal.query temporal.query_bias temporal.key temporal.key_bias "
         "temporal.value temporal.value_bias "
         "frequency.clean_weight frequency.perturbed_weight frequency.noise frequency.noise_scale "
         "frequency.spread_scale frequency.slope frequency.scale frequency.shift "
         "frequency.readout.0 frequency.readout.1 "
         "temporal_weight frequency_weight strength";
}

// Return 0, or the number of samples there was no memory for.
HDF_EXPORT int hdf_forward(const hdf::Sizes* sizes, const void* constants, const void* weights,
                           void* x, void* y, void* grad, void* kept, void* grad_weights) {
  return hdf::dispatch<false>({sizes, constants, weights, x, y, grad, kept, grad_weights});
}

HDF_EXPORT int hdf_backward(const hdf::Sizes* sizes, const void* constants, const void* weights,
                            void* x, void* y, void* grad, void* kept, void* grad_weights) {
  return hdf::dispatch<true>({sizes, constants, weights, x, y, grad, kept, grad_weights});
}
