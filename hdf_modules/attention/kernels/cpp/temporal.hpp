// The temporal branch and its gradient; names as in functional.py.
#pragma once

#include "products.hpp"
#include "scratch.hpp"
#include "vectors.hpp"

namespace hdf {

template <typename R, typename P = const R*>
struct TemporalWeights {  // P: const R* for the weights, R* for their gradients
  P mean_weight, peak_weight;
  P scale, distance_scale;  // (frames, bins)
  P mixing;                 // (frames, frames)
  P query, query_bias, key, key_bias, value, value_bias;
};

// out (rows, columns) = a (rows, inner), by strides, · b (inner, columns); added to out on request.
template <typename R>
void small_product(const R* a, int64_t a_row, int64_t a_column, const R* b, int64_t b_row, R* out,
                   int64_t rows, int64_t inner, int64_t columns, bool add = false) {
  multiply<R>({a, a_row, a_column}, b, b_row, out, columns, rows, inner, columns, add);
}

// One sample: tables of (frames, bins) unless said otherwise. What is behind a table's end, up to a
// whole vector, may be written.
template <typename R>
struct Temporal {
  int64_t frames, bins;
  bool along_time;  // the axis of the consistency term
  R *mean, *peak, *pooled, *change, *importance, *tokens, *query, *key;
  R *attention;                 // (frames, frames)
  R *distance, *value, *gate;   // (frames)
  R* value_row;                 // (bins), mean of V over its outputs
  R* turned;                    // room for a transposed table or weight

  Temporal(int64_t frames, int64_t bins, bool along_time, Scratch& scratch)
      : frames(frames), bins(bins), along_time(along_time) {
    auto table = [&] { return scratch.take<R>(frames * bins); };
    mean = table(), peak = table(), pooled = table(), change = table();
    importance = table(), tokens = table(), query = table(), key = table();
    attention = scratch.take<R>(frames * frames);
    distance = scratch.take<R>(frames), value = scratch.take<R>(frames);
    gate = scratch.take<R>(frames);
    value_row = scratch.take<R>(bins);
    turned = scratch.take<R>(bins * (frames > bins ? frames : bins));
  }

  // Where the entry before (t, k) is, or −1 at the first.
  int64_t before(int64_t t, int64_t k) const {
    if (along_time) return t ? (t - 1) * bins + k : -1;
    return k ? t * bins + k - 1 : -1;
  }
};

template <typename R>
void importance_of_bins(Temporal<R>& s, const TemporalWeights<R>& w) {
  const R a = *w.mean_weight, b = *w.peak_weight;
  for (int64_t t = 0; t < s.frames; ++t) {
    const R* mean = s.mean + t * s.bins;
    R middle = 0, squares = 0;
    for (int64_t k = 0; k < s.bins; ++k) middle += mean[k];
    middle /= s.bins;
    for (int64_t k = 0; k < s.bins; ++k) squares += (mean[k] - middle) * (mean[k] - middle);
    s.distance[t] = R(__builtin_sqrt(squares));
    for (int64_t k = 0; k < s.bins; ++k) {
      const int64_t i = t * s.bins + k, j = s.before(t, k);
      s.change[i] = j < 0 ? R(0) : s.mean[i] - s.mean[j];
      s.pooled[i] = a * s.mean[i] + b * s.peak[i];
      const R apart = s.change[i] < 0 ? -s.change[i] : s.change[i];
      s.importance[i] = w.scale[i] * s.pooled[i] + w.distance_scale[i] * s.distance[t] - apart;
    }
  }
  for (int64_t i = 0; i < s.frames * s.bins; i += lanes<R>)
    store(s.importance + i, sigmoid<R>(load(s.importance + i)));
}

template <typename R>
void transpose(const R* from, R* to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
}

// out = tokens · weightᵀ + bias
template <typename R>
void project(Temporal<R>& s, const R* weight, const R* bias, R* out) {
  for (int64_t t = 0; t < s.frames; ++t) std::memcpy(out + t * s.bins, bias, s.bins * sizeof(R));
  transpose(weight, s.turned, s.bins, s.bins);
  small_product(s.tokens, s.bins, int64_t(1), s.turned, s.bins, out, s.frames, s.bins, s.bins,
                true);
}

template <typename R>
void attend_to_frames(Temporal<R>& s) {
  const int64_t frames = s.frames, bins = s.bins;
  const R root = R(__builtin_sqrt(double(bins)));
  transpose(s.key, s.turned, frames, bins);
  small_product(s.query, bins, int64_t(1), s.turned, frames, s.attention, frames, bins, frames);
  for (int64_t t = 0; t < frames; ++t) {
    R *row = s.attention + t * frames, top = row[0];
    for (int64_t u = 1; u < frames; ++u) top = row[u] > top ? row[u] : top;
    for (int64_t u = 0; u < frames; ++u) row[u] = (row[u] - top) / root;
  }
  for (int64_t i = 0; i < frames * frames; i += lanes<R>)
    store(s.attention + i, exponential(load(s.attention + i)));
  for (int64_t t = 0; t < frames; ++t) {
    R *row = s.attention + t * frames, sum = 0, result = 0;
    for (int64_t u = 0; u < frames; ++u) sum += row[u];
    for (int64_t u = 0; u < frames; ++u) result += (row[u] /= sum) * s.value[u];
    s.gate[t] = result;
  }
  for (int64_t t = 0; t < frames; t += lanes<R>) store(s.gate + t, sigmoid<R>(load(s.gate + t)));
}

// g of every frame, in ``gate``, from ``mean`` and ``peak``.
template <typename R>
void temporal_gate(Temporal<R>& s, const TemporalWeights<R>& w) {
  const int64_t frames = s.frames, bins = s.bins;
  importance_of_bins(s, w);
  small_product(w.mixing, frames, int64_t(1), s.importance, bins, s.tokens, frames,
                frames, bins);
  project(s, w.query, w.query_bias, s.query);
  project(s, w.key, w.key_bias, s.key);
  R bias = 0;
  for (int64_t k = 0; k < bins; ++k) s.value_row[k] = 0;
  for (int64_t o = 0; o < bins; ++o) {
    bias += w.value_bias[o] / bins;
    for (int64_t k = 0; k < bins; ++k) s.value_row[k] += w.value[o * bins + k] / bins;
  }
  for (int64_t t = 0; t < frames; ++t) {
    s.value[t] = bias;
    for (int64_t k = 0; k < bins; ++k) s.value[t] += s.tokens[t * bins + k] * s.value_row[k];
  }
  attend_to_frames(s);
}

template <typename R>
void sum_rows(const R* table, int64_t rows, int64_t columns, R* out) {
  for (int64_t j = 0; j < columns; ++j) out[j] = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j] += table[i * columns + j];
}

// From the gradient of g: those of Q, K, V and their biases, and of the tokens, written to ``out``.
template <typename R>
void attention_backward(Temporal<R>& s, const TemporalWeights<R>& w,
                        const TemporalWeights<R, R*>& g, const R* grad, R* out, Scratch& scratch) {
  const int64_t frames = s.frames, bins = s.bins, one = 1;
  R *scores = scratch.take<R>(frames * frames), *value = scratch.take<R>(frames);
  R *query = scratch.take<R>(frames * bins), *key = scratch.take<R>(frames * bins);
  const R root = R(__builtin_sqrt(double(bins)));
  for (int64_t u = 0; u < frames; ++u) value[u] = 0;
  for (int64_t t = 0; t < frames; ++t) {
    const R* row = s.attention + t * frames;
    const R upstream = grad[t] * s.gate[t] * (1 - s.gate[t]);
    R mean = 0;
    for (int64_t u = 0; u < frames; ++u) {
      value[u] += row[u] * upstream;
      mean += row[u] * s.value[u];
    }
    for (int64_t u = 0; u < frames; ++u)
      scores[t * frames + u] = row[u] * upstream * (s.value[u] - mean) / root;
  }
  small_product(scores, frames, one, s.key, bins, query, frames, frames, bins);
  small_product(scores, one, frames, s.query, bins, key, frames, frames, bins);
  small_product(query, one, bins, s.tokens, bins, g.query, bins, frames, bins);
  small_product(key, one, bins, s.tokens, bins, g.key, bins, frames, bins);
  sum_rows(query, frames, bins, g.query_bias);
  sum_rows(key, frames, bins, g.key_bias);
  small_product(value, one, one, s.tokens, bins, g.value, one, frames, bins);
  R bias = 0;
  for (int64_t t = 0; t < frames; ++t) bias += value[t] / bins;
  for (int64_t k = 0; k < bins; ++k) g.value[k] /= bins;
  for (int64_t o = 0; o < bins; ++o) {
    g.value_bias[o] = bias;
    if (o) std::memcpy(g.value + o * bins, g.value, bins * sizeof(R));
  }
  small_product(query, bins, one, w.query, bins, out, frames, bins, bins);
  small_product(key, bins, one, w.key, bins, out, frames, bins, bins, true);
  small_product(value, one, one, s.value_row, bins, out, frames, one, bins, true);
}

// Gradients from ``grad``, that of g: of the weights, and of ``mean`` and ``peak``, which they
// overwrite.
template <typename R>
void temporal_gate_backward(Temporal<R>& s, const TemporalWeights<R>& w,
                            const TemporalWeights<R, R*>& g, const R* grad, Scratch& scratch) {
  const int64_t frames = s.frames, bins = s.bins, one = 1;
  R *tokens = scratch.take<R>(frames * bins), *logit = scratch.take<R>(frames * bins);
  R* by_mean = scratch.take<R>(frames * bins);
  attention_backward(s, w, g, grad, tokens, scratch);
  small_product(w.mixing, one, frames, tokens, bins, logit, frames, frames, bins);
  transpose(s.importance, s.turned, frames, bins);
  small_product(tokens, bins, one, s.turned, frames, g.mixing, frames, bins, frames);
  R by_mean_weight = 0, by_peak_weight = 0;
  for (int64_t t = 0; t < frames; ++t) {
    R by_distance = 0, middle = 0, centre = 0;
    for (int64_t k = 0; k < bins; ++k) {
      const int64_t i = t * bins + k;
      logit[i] *= s.importance[i] * (1 - s.importance[i]);
      const R pooled = logit[i] * w.scale[i];
      by_mean_weight += pooled * s.mean[i];
      by_peak_weight += pooled * s.peak[i];
      g.scale[i] = logit[i] * s.pooled[i];
      g.distance_scale[i] = logit[i] * s.distance[t];
      by_distance += logit[i] * w.distance_scale[i];
      middle += s.mean[i] / bins;
    }
    const R pull = s.distance[t] != 0 ? by_distance / s.distance[t] : R(0);
    for (int64_t k = 0; k < bins; ++k) centre += pull * (s.mean[t * bins + k] - middle) / bins;
    for (int64_t k = 0; k < bins; ++k) {
      const int64_t i = t * bins + k;
      by_mean[i] = logit[i] * w.scale[i] * *w.mean_weight + pull * (s.mean[i] - middle) - centre;
    }
  }
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t k = 0; k < bins; ++k) {
      const int64_t i = t * bins + k, j = s.before(t, k);
      const R step = s.change[i] > 0 ? logit[i] : s.change[i] < 0 ? -logit[i] : R(0);
      if (j >= 0) by_mean[i] -= step, by_mean[j] += step;
      s.peak[i] = logit[i] * w.scale[i] * *w.peak_weight;
    }
  std::memcpy(s.mean, by_mean, frames * bins * sizeof(R));
  *g.mean_weight = by_mean_weight;
  *g.peak_weight = by_peak_weight;
}

}  // namespace hdf
