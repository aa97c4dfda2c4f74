// The passes over a whole clip: its statistics, the product with the gate, the input's gradient.
#pragma once

#include "vectors.hpp"

namespace hdf {

// One sample of a tensor (batch, time, channels, positions), by its strides in elements. Either the
// positions of a map or the channels of a position are contiguous.
template <typename S>
struct Clip {
  S* data;
  int64_t batch, time, channel, position;

  Clip sample(int64_t b) const { return {data + b * batch, batch, time, channel, position}; }
  S* at(int64_t t, int64_t c, int64_t p) const {
    return data + t * time + c * channel + p * position;
  }
};

constexpr int64_t kChunk = 4;  // frames that are summed by position before they meet the others

struct Size {
  int64_t frames, channels, positions;
};

template <typename T>
inline void clear(T* values, int64_t count) {
  std::memset(values, 0, count * sizeof(T));
}

struct Everything {};

template <typename R>
inline Real<R> keep(Real<R> value, Everything) {
  return value;
}
template <typename R>
inline Real<R> keep(Real<R> value, Int<R> mask) {
  return mask ? value : fill(R(0));
}
template <typename R>
inline Int<R> both(Int<R> condition, Everything) {
  return condition;
}
template <typename R>
inline Int<R> both(Int<R> condition, Int<R> mask) {
  return condition & mask;
}

template <typename R>
inline Int<R> count_up() {
  Int<R> result{};
  for (int64_t i = 0; i < lanes<R>; ++i) result[i] = i;
  return result;
}

// Visit a line by vectors; lines shorter than a vector are visited by ``one``.
//
// The last vector begins early and is masked where it repeats. Its place for accumulators, the
// second argument, does not overlap the one before: memory that was just written in other pieces
// is slow to read. ``settle`` closes the gap.
template <typename R, typename Many, typename One>
HDF_INLINE inline void visit(int64_t length, Many many, One one) {
  if (length < lanes<R>) {
    for (int64_t i = 0; i < length; ++i) one(i);
    return;
  }
  int64_t i = 0;
  for (; i + lanes<R> <= length; i += lanes<R>) many(i, i, Everything{});
  if (i < length)
    many(length - lanes<R>, i, count_up<R>() >= Whole<R>(i + lanes<R> - length));
}

template <typename R, typename T>
inline void settle(T* accumulators, int64_t length) {
  const int64_t rest = length % lanes<R>;
  if (length < lanes<R> || !rest) return;
  T* last = accumulators + (length - rest);
  for (int64_t i = 0; i < rest; ++i) last[i] = last[i + lanes<R> - rest];
}

// How many accumulators ``visit`` writes to.
template <typename R>
inline int64_t accumulators(int64_t length) {
  return length < lanes<R> ? length : (length + lanes<R> - 1) / lanes<R> * lanes<R>;
}

// Visit the maps of frames [begin, end) in memory's order, one at a time: processors fetch ahead for
// a single stream.
template <typename S, typename Visit>
HDF_INLINE inline void each_map(const Clip<S>& x, Size size, int64_t begin, int64_t end,
                                Visit visit_map) {
  if (x.time > x.channel) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t c = 0; c < size.channels; ++c) visit_map(t, c);
  } else {
    for (int64_t c = 0; c < size.channels; ++c)
      for (int64_t t = begin; t < end; ++t) visit_map(t, c);
  }
}

// Sums by position, one line of accumulators for every chunk of a clip; those of a range of frames.
template <typename R>
struct ChunkTotals {
  R* totals;
  int64_t positions, line, first, last;

  ChunkTotals(R* totals, Size size, int64_t begin, int64_t end)
      : totals(totals),
        positions(size.positions),
        line(accumulators<R>(positions)),
        first(begin / kChunk),
        last((end - 1) / kChunk) {
    clear(totals + first * line, (last + 1 - first) * line);
  }
  R* of(int64_t t) const { return totals + t / kChunk * line; }
  void settle_all() const {
    for (int64_t chunk = first; chunk <= last; ++chunk)
      settle<R>(totals + chunk * line, positions);
  }
};

template <typename R>
struct Maps {  // of one sample, by frame and channel
  R* sum;
  R* peak;
  int32_t* place;  // of the first maximum; null where nobody asks
};

template <typename R>
inline R top_lane(Real<R> value) {
  return reduce_lanes<R>(value, [](auto a, auto b) HDF_INLINE { return a > b ? a : b; });
}

template <typename R, typename S>
int32_t find_first(const S* line, int64_t length, R wanted) {
  int64_t i = 0;
  while (i + lanes<R> <= length && !any_lane<R>(load(line + i) == wanted)) i += lanes<R>;
  for (; i < length; ++i)
    if (get(line[i]) == wanted) return int32_t(i);
  return 0;  // nothing but NaN
}

// Statistics of frames [begin, end): sum and maximum by map; their sum by position is written to
// ``totals``, one line of accumulators for every chunk of the clip. A maximum passes NaN over; the
// sums do not, and they make the whole sample NaN.
template <typename R, typename S>
void read_maps(Clip<const S> x, Size size, int64_t begin, int64_t end, Maps<R> maps, R* totals) {
  const ChunkTotals<R> chunks(totals, size, begin, end);
  each_map(x, size, begin, end, [&](int64_t t, int64_t c) HDF_INLINE {
    const S* line = x.at(t, c, 0);
    R* total = chunks.of(t);
    Real<R> sum{}, top = fill(-R(__builtin_inf()));
    R rest = 0, rest_top = -R(__builtin_inf());
    visit<R>(
        size.positions,
        [&](int64_t i, int64_t own, auto mask) HDF_INLINE {
          Real<R> value = load(line + i);
          top = value > top ? value : top;
          value = keep<R>(value, mask);
          sum += value;
          store(total + own, load(total + own) + value);
        },
        [&](int64_t i) HDF_INLINE {
          const R value = get(line[i]);
          rest_top = value > rest_top ? value : rest_top;
          rest += value;
          total[i] += value;
        });
    const R most = top_lane<R>(top);
    const int64_t map = t * size.channels + c;
    maps.sum[map] = sum_lanes<R>(sum) + rest;
    maps.peak[map] = rest_top > most ? rest_top : most;
  });
  chunks.settle_all();
}

// The same where the channels of a position are contiguous; with Locate also the first maximum.
// ``room`` holds three lines of accumulators for every frame.
template <typename R, typename S, bool Locate>
void read_lines(Clip<const S> x, Size size, int64_t begin, int64_t end, Maps<R> maps, R* total,
                R* room) {
  typedef int32_t Places __attribute__((vector_size(4 * lanes<R>)));
  const int64_t channels = accumulators<R>(size.channels), all = (end - begin) * channels;
  R *sums = room, *peaks = room + all;
  int32_t* places = reinterpret_cast<int32_t*>(room + 2 * all);
  clear(sums, all);
  clear(places, all);
  for (int64_t i = 0; i < all; ++i) peaks[i] = -R(__builtin_inf());
  for (int64_t p = 0; p < size.positions; ++p) {
    Real<R> added{};
    R rest = 0;
    for (int64_t t = begin; t < end; ++t) {
      const S* line = x.at(t, 0, p);
      const int64_t frame = (t - begin) * channels;
      R *sum = sums + frame, *peak = peaks + frame;
      int32_t* place = places + frame;
      visit<R>(
          size.channels,
          [&](int64_t i, int64_t own, auto mask) HDF_INLINE {
            Real<R> value = load(line + i), before = load(peak + own);
            Int<R> better = value > before;
            if (Locate) {
              Places known;
              std::memcpy(&known, place + own, sizeof known);
              known = __builtin_convertvector(better, Places) ? Places{} + int32_t(p) : known;
              std::memcpy(place + own, &known, sizeof known);
            }
            store(peak + own, better ? value : before);
            value = keep<R>(value, mask);
            store(sum + own, load(sum + own) + value);
            added += value;
          },
          [&](int64_t i) HDF_INLINE {
            R value = get(line[i]);
            if (value > peak[i]) peak[i] = value, place[i] = int32_t(p);
            sum[i] += value;
            rest += value;
          });
    }
    total[p] = sum_lanes<R>(added) + rest;
  }
  for (int64_t t = begin; t < end; ++t) {
    const int64_t frame = (t - begin) * channels, map = t * size.channels;
    settle<R>(sums + frame, size.channels);
    settle<R>(peaks + frame, size.channels);
    settle<R>(places + frame, size.channels);
    std::memcpy(maps.sum + map, sums + frame, size.channels * sizeof(R));
    std::memcpy(maps.peak + map, peaks + frame, size.channels * sizeof(R));
    if (Locate)
      std::memcpy(maps.place + map, places + frame, size.channels * sizeof(int32_t));
  }
}

// The parts of a factor: of frames and of positions.
template <typename R>
struct Factor {
  const R *by_time, *by_position;
};

// y = x · (by_time + by_position).
template <typename R, typename S>
void scale(Clip<const S> x, Clip<S> y, Size size, int64_t begin, int64_t end, Factor<R> factor) {
  if (x.position == 1) {
    each_map(x, size, begin, end, [&](int64_t t, int64_t c) HDF_INLINE {
      const S* from = x.at(t, c, 0);
      S* to = y.at(t, c, 0);
      const R by_time = factor.by_time[t], *by_position = factor.by_position;
      visit<R>(
          size.positions,
          [&](int64_t i, int64_t, auto) HDF_INLINE {
            store(to + i, load(from + i) * (by_time + load(by_position + i)));
          },
          [&](int64_t i) HDF_INLINE { put(to + i, get(from[i]) * (by_time + by_position[i])); });
    });
    return;
  }
  for (int64_t t = begin; t < end; ++t)
    for (int64_t p = 0; p < size.positions; ++p) {
      const S* from = x.at(t, 0, p);
      S* to = y.at(t, 0, p);
      const R both = factor.by_time[t] + factor.by_position[p];
      visit<R>(
          size.channels,
          [&](int64_t i, int64_t, auto) HDF_INLINE { store(to + i, load(from + i) * both); },
          [&](int64_t i) HDF_INLINE { put(to + i, get(from[i]) * both); });
    }
}

// Sums of grad · x: by frame, and by position into ``totals`` as ``read_maps`` does it.
template <typename R, typename S>
void multiply_maps(Clip<const S> x, Clip<const S> grad, Size size, int64_t begin, int64_t end,
                   R* by_time, R* totals) {
  const ChunkTotals<R> chunks(totals, size, begin, end);
  clear(by_time + begin, end - begin);
  each_map(x, size, begin, end, [&](int64_t t, int64_t c) HDF_INLINE {
    const S *values = x.at(t, c, 0), *upstream = grad.at(t, c, 0);
    R *total = chunks.of(t), rest = 0;
    Real<R> sum{};
    visit<R>(
        size.positions,
        [&](int64_t i, int64_t own, auto mask) HDF_INLINE {
          Real<R> product = keep<R>(load(values + i) * load(upstream + i), mask);
          store(total + own, load(total + own) + product);
          sum += product;
        },
        [&](int64_t i) HDF_INLINE {
          const R product = get(values[i]) * get(upstream[i]);
          total[i] += product;
          rest += product;
        });
    by_time[t] += sum_lanes<R>(sum) + rest;
  });
  chunks.settle_all();
}

// The same where the channels of a position are contiguous, for one chunk.
template <typename R, typename S>
void multiply_lines(Clip<const S> x, Clip<const S> grad, Size size, int64_t begin, int64_t end,
                    R* by_time, R* total) {
  clear(total, size.positions);
  for (int64_t t = begin; t < end; ++t) {
    by_time[t] = 0;
    for (int64_t p = 0; p < size.positions; ++p) {
      const S *value = x.at(t, 0, p), *upstream = grad.at(t, 0, p);
      Real<R> sum{};
      R rest = 0;
      visit<R>(
          size.channels,
          [&](int64_t i, int64_t, auto mask) HDF_INLINE {
            sum += keep<R>(load(value + i) * load(upstream + i), mask);
          },
          [&](int64_t i) HDF_INLINE { rest += get(value[i]) * get(upstream[i]); });
      const R all = sum_lanes<R>(sum) + rest;
      total[p] += all;
      by_time[t] += all;
    }
  }
}

// The gradient: grad · (by_time + by_position) + by_map + from_position, by_map being that of every
// (frame, channel).
template <typename R, typename S>
void write_gradient(Clip<const S> grad, Clip<S> out, Size size, int64_t begin, int64_t end,
                    Factor<R> factor, const R* by_map, const R* from_position) {
  if (grad.position == 1) {
    each_map(grad, size, begin, end, [&](int64_t t, int64_t c) HDF_INLINE {
      const S* from = grad.at(t, c, 0);
      S* to = out.at(t, c, 0);
      const R by_time = factor.by_time[t], *by_position = factor.by_position;
      const R added = by_map[t * size.channels + c];
      visit<R>(
          size.positions,
          [&](int64_t i, int64_t, auto) HDF_INLINE {
            Real<R> both = by_time + load(by_position + i);
            store(to + i, load(from + i) * both + (added + load(from_position + i)));
          },
          [&](int64_t i) HDF_INLINE {
            put(to + i, get(from[i]) * (by_time + by_position[i]) + (added + from_position[i]));
          });
    });
    return;
  }
  for (int64_t t = begin; t < end; ++t)
    for (int64_t p = 0; p < size.positions; ++p) {
      const S* from = grad.at(t, 0, p);
      S* to = out.at(t, 0, p);
      const R both = factor.by_time[t] + factor.by_position[p], added = from_position[p];
      const R* by_channel = by_map + t * size.channels;
      visit<R>(
          size.channels,
          [&](int64_t i, int64_t, auto) HDF_INLINE {
            store(to + i, load(from + i) * both + (added + load(by_channel + i)));
          },
          [&](int64_t i) HDF_INLINE {
            put(to + i, get(from[i]) * both + (added + by_channel[i]));
          });
    }
}

}  // namespace hdf
