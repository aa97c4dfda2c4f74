// The frequency branch and its gradient; names as in functional.py.
#pragma once

#include "planes.hpp"
#include "scratch.hpp"

namespace hdf {

template <typename R, typename P = const R*>
struct FrequencyWeights {  // P: const R* for the weights, R* for their gradients
  P clean_weight, perturbed_weight;
  P noise, noise_scale, spread_scale;  // null without perturbation; the second also for 1
  P slope, scale, shift;
  P readout, readout2;  // the second is null where there is one convolution
};

template <typename R>
constexpr R kSpreadRate = R(0.05);  // λ_w
template <typename R>
constexpr R kEps = R(1e-6);  // in the standard deviation over the frequencies, and beside it
template <typename R>
constexpr R kRounding = sizeof(R) == 4 ? R(1.1920928955078125e-07) : R(2.220446049250313e-16);

// The maps of one sample, flat rows of ``grid.length``.
template <typename R>
struct Frequency {
  Grid grid;
  int64_t maps;    // n²
  int64_t hidden;  // maps between the two read-out convolutions, or 0
  int64_t threads;
  bool kept;    // whether each step has memory of its own
  bool whole;   // whether the maps are there as a whole, or one block after the other
  int64_t row;  // distance of two maps
  R* inside;    // 1 at the positions, 0 in the margins
  R *spectrum, *mixed, *squashed, *fitted, *between;
  R *average, *deviation_over_maps, *slope, *gate;
  R *level, *deviation, *amount;  // by map, over the positions
  R *scale, *shift;               // by map: fitted = scale · squashed + shift
  R *image, *lines;               // framed, and its transforms along the height
  R* room;                        // for what needs memory on the way

  // What ``room`` has to hold for convolutions, their gradient and that of the local spectrum.
  int64_t room_needed() const {
    const int64_t convolution = Contributions<R>::size(grid, threads);
    const int64_t backward =
        (kTaps + kTapsPadded) * grid.length + grid.framed() + maps * kTapsPadded;
    const int64_t local = (2 * grid.half + 1) * (grid.framed() + grid.length);
    if (!kept) return convolution;
    const int64_t most = convolution > backward ? convolution : backward;
    return most > local ? most : local;
  }

  // Without ``keep`` a step writes over what the one before it made, and where nobody comes back to
  // the maps only blocks of them are ever there: a network has driven all this out of the caches.
  Frequency(const Grid& grid, int64_t maps, int64_t hidden, bool keep, int64_t threads,
            Scratch& scratch)
      : grid(grid), maps(maps), hidden(hidden), threads(threads), kept(keep),
        whole(keep || hidden), row(whole ? grid.length : grid.block()) {
    auto rows = [&](int64_t count) { return scratch.take<R>(count * grid.length); };
    inside = rows(1);
    spectrum = mixed = squashed = fitted = scratch.take<R>(maps * row * (whole ? 1 : threads));
    if (keep) mixed = rows(maps), squashed = rows(maps), fitted = rows(maps);
    between = rows(hidden);
    average = rows(1), deviation_over_maps = rows(1), slope = rows(1), gate = rows(1);
    level = scratch.take<R>(maps), deviation = scratch.take<R>(maps);
    amount = scratch.take<R>(maps);
    scale = scratch.take<R>(maps), shift = scratch.take<R>(maps);
    image = scratch.take<R>(grid.framed());
    lines = scratch.take<R>((2 * grid.half + 1) * grid.framed());
    room = scratch.take<R>(room_needed());
    for (int64_t i = 0; i < grid.length; ++i) inside[i] = 0;
    for (int64_t y = 0; y < grid.height; ++y)
      for (int64_t x = 0; x < grid.width; ++x) inside[y * grid.pitch + x] = 1;
  }

  // Where a block begins in rows of maps; thread ``who`` has it if they are not whole.
  int64_t start(int64_t part, int64_t who) const {
    return whole ? part * grid.block() : who * maps * row;
  }
};

// ν·a + λ_w·b·deviation of map f.
template <typename R>
R perturbation(const FrequencyWeights<R>& w, int64_t f, R deviation) {
  const R noise = w.noise_scale ? w.noise[f] * w.noise_scale[f] : w.noise[f];
  return noise + kSpreadRate<R> * w.spread_scale[f] * deviation;
}

// Level and deviation of every map, block by block: each block around its own mean, so that nothing
// cancels (Chan et al., 1979).
template <typename R>
void measure(Frequency<R>& k, const R* basis) {
  R before = 0;  // positions
  for (int64_t f = 0; f < k.maps; ++f) k.level[f] = k.deviation[f] = 0;
  for (int64_t part = 0; part < k.grid.blocks(); ++part) {
    const int64_t begin = part * k.grid.block(), length = k.grid.end_of(part) - begin;
    const R* inside = k.inside + begin;
    R* maps = k.spectrum + k.start(part, 0);
    spectrum(k.lines, basis, maps, k.row, part, k.grid);
    const R count = sum_all<R>(length, [&](int64_t i) HDF_INLINE { return load(inside + i); });
    if (count == 0) continue;
    const R all = before + count;
    for (int64_t f = 0; f < k.maps; ++f) {
      const R* d = maps + f * k.row;
      const R sum = sum_all<R>(
          length, [&](int64_t i) HDF_INLINE { return load(d + i) * load(inside + i); });
      const R level = sum / count, apart = level - k.level[f];
      const R squares = sum_all<R>(length, [&](int64_t i) HDF_INLINE {
        const Real<R> rest = (load(d + i) - level) * load(inside + i);
        return rest * rest;
      });
      k.level[f] += apart * count / all;
      k.deviation[f] += squares + apart * apart * before * count / all;
    }
    before = all;
  }
  const R tiny = R(16) * kRounding<R> * R(__builtin_sqrt(double(before)));
  for (int64_t f = 0; f < k.maps; ++f) {
    const R deviation = R(__builtin_sqrt(k.deviation[f]));
    const bool constant = deviation <= tiny * R(__builtin_fabs(k.level[f]));
    k.deviation[f] = constant ? R(0) : deviation;  // rounding has no direction
  }
}

// The spectrum, perturbed, standardised over the frequencies and squashed, at some whole vectors of
// positions from ``place``, which are ``i`` in rows of maps. Several at once: each is a chain of
// sums that wait for each other.
template <typename R, int kVectors>
void fit_vectors(Frequency<R>& k, const FrequencyWeights<R>& w, int64_t place, int64_t i) {
  const int64_t row = k.row, maps = k.maps;
  const R *spectrum = k.spectrum + i, *amount = k.amount, *scale = k.scale, *shift = k.shift;
  R *mixed = k.mixed + i, *squashed = k.kept ? k.squashed + i : nullptr, *fitted = k.fitted + i;
  const R clean = R(0.5) * (*w.clean_weight + *w.perturbed_weight);
  Real<R> average[kVectors]{}, squares[kVectors]{}, slope[kVectors], inside[kVectors];
  for (int64_t f = 0; f < maps; ++f)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = f * row + v * lanes<R>;
      const Real<R> value = load(spectrum + j);
      const Real<R> mixture = clean * value + with_sign<R>(amount[f], value);
      store(mixed + j, mixture);
      average[v] += mixture;
    }
  for (int v = 0; v < kVectors; ++v) average[v] /= R(maps);
  for (int64_t f = 0; f < maps; ++f)
    for (int v = 0; v < kVectors; ++v) {
      const Real<R> rest = load(mixed + f * row + v * lanes<R>) - average[v];
      squares[v] += rest * rest;
    }
  for (int v = 0; v < kVectors; ++v) {
    const int64_t j = place + v * lanes<R>;
    const Real<R> deviation = root<R>(squares[v] / R(maps - 1) + kEps<R>);
    slope[v] = R(2) * *w.slope / (deviation + kEps<R>);
    inside[v] = load(k.inside + j);
    store(k.average + j, average[v]);
    store(k.deviation_over_maps + j, deviation);
    store(k.slope + j, slope[v]);
  }
  for (int64_t f = 0; f < maps; ++f)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t j = f * row + v * lanes<R>;
      const Real<R> squash = sigmoid<R>(slope[v] * load(mixed + j));
      if (squashed) store(squashed + j, squash);
      store(fitted + j, (squash * scale[f] + shift[f]) * inside[v]);
    }
}

template <typename R>
void fit(Frequency<R>& k, const FrequencyWeights<R>& w, int64_t part, int64_t start) {
  const int64_t begin = part * k.grid.block(), length = k.grid.end_of(part) - begin;
  int64_t i = 0;
  for (; i + 2 * lanes<R> <= length; i += 2 * lanes<R>)
    fit_vectors<R, 2>(k, w, begin + i, start + i);
  if (i < length) fit_vectors<R, 1>(k, w, begin + i, start + i);
}

// f of every position, in ``gate``; total is (positions).
template <typename R>
void frequency_gate(Frequency<R>& k, const FrequencyWeights<R>& w, const R* total,
                    const R* basis) {
  const Grid& grid = k.grid;
  clear_margins(k.image, grid);
  embed(total, k.image + grid.reach, grid);
  transform_lines(k.image, basis, k.lines, grid);
  if (w.noise || k.whole) measure(k, basis);
  for (int64_t f = 0; f < k.maps; ++f) {
    k.amount[f] = w.noise ? R(0.5) * *w.perturbed_weight * perturbation(w, f, k.deviation[f]) : 0;
    k.scale[f] = R(2) * w.scale[f], k.shift[f] = w.shift[f] - w.scale[f];
  }
  const auto fitted = [&](int64_t part, int64_t who, bool first) -> Rows<R> {
    const int64_t start = k.start(part, who);
    if (!k.whole) spectrum(k.lines, basis, k.spectrum + start, k.row, part, grid);
    if (first) fit(k, w, part, start);
    return {k.fitted + start, k.row};
  };
  const auto rectified = [&](int64_t part, int64_t, bool) -> Rows<R> {
    const int64_t begin = part * grid.block();
    for (int64_t o = 0; o < k.hidden; ++o)
      for (int64_t i = o * grid.length + begin; i < o * grid.length + grid.end_of(part); ++i)
        if (k.between[i] < R(0)) k.between[i] = 0;
    return {k.between + begin, grid.length};
  };
  if (k.hidden) {
    convolve(w.readout, k.maps, k.hidden, k.between, k.inside, grid, k.room, k.threads, fitted);
    convolve(w.readout2, k.hidden, int64_t(1), k.gate, k.inside, grid, k.room, k.threads,
             rectified);
  } else {
    convolve(w.readout, k.maps, int64_t(1), k.gate, k.inside, grid, k.room, k.threads, fitted);
  }
  for (int64_t i = 0; i < grid.length; i += lanes<R>)
    store(k.gate + i, sigmoid<R>(load(k.gate + i)));
}

template <typename R>
void fit_backward(Frequency<R>& k, const FrequencyWeights<R>& w, const FrequencyWeights<R, R*>& g,
                  R* grad) {
  const int64_t length = k.grid.length;
  for (int64_t f = 0; f < k.maps; ++f) {
    Real<R> by_shift{}, by_scale{};
    const R scale = R(2) * w.scale[f];
    for (int64_t i = 0; i < length; i += lanes<R>) {
      Real<R> upstream = load(grad + f * length + i);
      const Real<R> squashed = load(k.squashed + f * length + i);
      by_shift += upstream;
      by_scale += upstream * (R(2) * squashed - R(1));
      store(grad + f * length + i, upstream * scale * squashed * (R(1) - squashed));
    }
    g.shift[f] = sum_lanes<R>(by_shift);
    g.scale[f] = sum_lanes<R>(by_scale);
  }
  Real<R> by_slope{};
  for (int64_t i = 0; i < length; i += lanes<R>) {
    Real<R> dot{};
    for (int64_t f = 0; f < k.maps; ++f)
      dot += load(grad + f * length + i) * load(k.mixed + f * length + i);
    const Real<R> deviation = load(k.deviation_over_maps + i), below = deviation + kEps<R>;
    const Real<R> slope = load(k.slope + i), average = load(k.average + i);
    by_slope += dot / below;
    // d slope/d s = −slope/(s + ε) and d s/d d' = (d' − average)/((n² − 1) s)
    const Real<R> rate = dot * slope / (below * deviation * R(1 - k.maps));
    for (int64_t f = 0; f < k.maps; ++f) {
      R* place = grad + f * length + i;
      store(place, load(place) * slope + rate * (load(k.mixed + f * length + i) - average));
    }
  }
  *g.slope = R(2) * sum_lanes<R>(by_slope);
}

template <typename R>
void perturb_backward(Frequency<R>& k, const FrequencyWeights<R>& w,
                      const FrequencyWeights<R, R*>& g, R* grad) {
  const int64_t length = k.grid.length;
  const R clean = R(0.5) * (*w.clean_weight + *w.perturbed_weight);
  R by_clean = 0, by_perturbed = 0;
  for (int64_t f = 0; f < k.maps; ++f) {
    const R* d = k.spectrum + f * length;
    R *upstream = grad + f * length, pull = 0, level = 0;
    Real<R> along{}, signed_sum{};
    for (int64_t i = 0; i < length; i += lanes<R>) {
      const Real<R> value = load(d + i), up = load(upstream + i);
      along += value * up;
      signed_sum += sign<R>(value) * up;
    }
    by_clean += sum_lanes<R>(along);
    if (w.noise) {
      const R deviation = k.deviation[f], by_amount = sum_lanes<R>(signed_sum);
      by_perturbed += by_amount * perturbation(w, f, deviation);
      const R by_noise = R(0.5) * *w.perturbed_weight * by_amount;
      g.noise[f] = w.noise_scale ? by_noise * w.noise_scale[f] : by_noise;
      if (w.noise_scale) g.noise_scale[f] = by_noise * w.noise[f];
      const R by_spread = by_noise * kSpreadRate<R>;
      g.spread_scale[f] = by_spread * deviation;
      if (deviation != 0) pull = by_spread * w.spread_scale[f] / deviation, level = k.level[f];
    }
    for (int64_t i = 0; i < length; i += lanes<R>) {
      const Real<R> towards = pull * (load(d + i) - level) * load(k.inside + i);
      store(upstream + i, clean * load(upstream + i) + towards);
    }
  }
  *g.clean_weight = R(0.5) * by_clean;
  *g.perturbed_weight = R(0.5) * (by_clean + by_perturbed);
}

// Gradients from ``grad``, that of f (positions): of the weights, and of m, written to ``total``.
template <typename R>
void frequency_gate_backward(Frequency<R>& k, const FrequencyWeights<R>& w,
                             const FrequencyWeights<R, R*>& g, const R* grad, const R* basis,
                             R* total, Scratch& scratch) {
  const Grid& grid = k.grid;
  R *upstream = scratch.take<R>(grid.length), *image = scratch.take<R>(grid.length);
  R *by_fitted = scratch.take<R>(k.maps * grid.length);
  R *by_between = scratch.take<R>(k.hidden * grid.length);
  embed(grad, upstream, grid);
  for (int64_t i = 0; i < grid.length; i += lanes<R>) {
    const Real<R> gate = load(k.gate + i);
    store(upstream + i, load(upstream + i) * gate * (R(1) - gate));
  }
  if (k.hidden) {
    convolve_backward(upstream, k.between, w.readout2, k.hidden, int64_t(1), by_between, g.readout2,
                      k.inside, grid, k.room);
    for (int64_t i = 0; i < k.hidden * grid.length; ++i)
      if (k.between[i] == R(0)) by_between[i] = 0;
    convolve_backward(by_between, k.fitted, w.readout, k.maps, k.hidden, by_fitted, g.readout,
                      k.inside, grid, k.room);
  } else {
    convolve_backward(upstream, k.fitted, w.readout, k.maps, int64_t(1), by_fitted, g.readout,
                      k.inside, grid, k.room);
  }
  fit_backward(k, w, g, by_fitted);
  perturb_backward(k, w, g, by_fitted);
  spectrum_backward(by_fitted, basis, image, grid, k.room);
  crop(image, total, grid);
}

}  // namespace hdf
