// Whole cells: the pass through a cell in one call, and its gradients in another. cells.py describes a cell and calls.
//
// A cell is a graph: states, and sources, of which each reads one state and adds to K others what its branches make of it, one
// for each of K edges. Images are packed: a vector holds one pixel of one channel of as many images as it has lanes, and a
// block of images is (channels, height, width) of such vectors. So no vector is ever filled in part, whatever the channels
// and sides, and a weight is one number that multiplies a vector. The lanes that the last block has too many are left out
// of every sum.
//
// A branch gives terms t and the BatchNorm that follows is a factor and a constant of each channel (src/fast/fused.py has
// the idea), computed here too. Sums over at most a row of pixels, or 32, and over an image in a weight's gradient, have the
// type of the images; what adds them up is double. Blocks have sums of their own, added in the order of the blocks: results
// do not depend on the number of threads.

#include <omp.h>

#include <numeric>

#include "vectors.h"

namespace {

template <typename T>
using Wide = typename Lanes<T>::Doubles;

template <typename T>
inline Wide<T> widened(Vector<T> v) {
    return __builtin_convertvector(v, Wide<T>);
}

template <typename V>
inline double sum_of_lanes(const V& v) {
    double sum = 0;
    for (std::size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) sum += v[i];
    return sum;
}

// The sums of the lanes of as many vectors as each has lanes.
inline Vector<float> sums_of_lanes(const Vector<float>* v) {
    const auto pairs = [](Vector<float> a, Vector<float> b) {
        return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
               __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
    };
    const Vector<float> a = pairs(pairs(v[0], v[1]), pairs(v[2], v[3])), b = pairs(pairs(v[4], v[5]), pairs(v[6], v[7]));
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}

inline Vector<double> sums_of_lanes(const Vector<double>* v) {
    const auto pairs = [](Vector<double> a, Vector<double> b) {
        return __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
    };
    const Vector<double> a = pairs(v[0], v[1]), b = pairs(v[2], v[3]);
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

template <typename T>
inline Vector<T> rectified(Vector<T> v) {
    return v < 0 ? Vector<T>{} : v;  // nan stays nan
}

// What cells.py tells of a cell

enum Kind : Int { SAME, MAX_POOL, AVERAGE_POOL, CONVOLUTION, SEPARABLE, POINTWISE, REDUCE };

struct Norm {
    Int present, training, affine;
    double eps, momentum;
};

struct Branch {
    Int kind, column, kernel, stride, padding, dilation;  // column: of the mixing weights
    Norm middle, norm;
};

struct State {
    Int channels, height, width;
    Int plane() const { return height * width; }
    Int size() const { return channels * plane(); }
};

struct Source {
    Int state, first, edges, row, branches_begin, branches_end;  // first: of the states it adds to; row -1: weights of 1
};

struct Graph {
    Int batch, inputs, states_count, outputs, sources_count, columns;  // the last `outputs` states are the output
    const State* states;
    const Source* sources;
    const Branch* branches;
};

template <typename T>
struct Strided {  // images (batch, channels, height, width) anywhere in memory
    T* data;
    Int image, channel, line, pixel;
};

// What follows from it

// A convolution of one edge: depthwise or, without, the pixels at `offset`; then pointwise, to some channels of the term.
struct Layer {
    bool depthwise;
    Int kernel, stride, padding, dilation, offset, begin;
    Int ins, outs, height, width, out_height, out_width;
    Int depthwise_at, pointwise_at;        // among the weights, of edge 0
    Int depthwise_grad_at, pointwise_grad_at;  // among their gradients, of edge 0
    Int taps() const { return kernel * kernel; }
    Int border() const { return depthwise ? padding : offset; }
};

struct Group {  // the BatchNorms of a term, one an edge
    Norm norm{};
    Int edges = 0, term_edges = 0, channels = 0, at = 0, affine_at = 0, affine_grad_at = 0, running_at = 0;
    double *mean = nullptr, *scale, *share, *weight, *bias;  // (edges, channels) each
    Int count() const { return edges * channels; }
};

struct Place {  // in what is kept: an array, and vectors from its beginning
    Int array = -1, at = 0;
    bool exists() const { return array >= 0; }
};

template <typename T>
struct Plan {  // of a branch
    const Branch* branch;
    std::vector<Layer> first, second;
    State out;
    Int term_edges;
    Place term_at, middle_at;
    Group norm, middle;
    bool is_pool() const { return branch->kind == MAX_POOL || branch->kind == AVERAGE_POOL; }
};

template <typename T>
struct Cell {
    using V = Vector<T>;
    const Graph& g;
    Int blocks;
    std::vector<std::vector<Plan<T>>> plans;  // of each source, of each branch
    std::vector<Int> grads_begin;
    std::vector<Place> state_at;
    std::vector<Int> arrays;  // what is kept: vectors of each
    Int numbers = 0, weights = 0, grads = 0, running = 0;

    explicit Cell(const Graph& g) : g(g), blocks((g.batch + lanes<T> - 1) / lanes<T>), state_at(g.states_count) {
        for (Int s = g.inputs; s < g.states_count - g.outputs; ++s) state_at[s] = keep(blocks * g.states[s].size());
        for (Int s = 0; s < g.sources_count; ++s) {
            const Source& source = g.sources[s];
            const State &in = g.states[source.state], &out = g.states[source.first];
            grads_begin.push_back(grads);
            plans.emplace_back();
            for (Int b = source.branches_begin; b < source.branches_end; ++b)
                plans.back().push_back(plan(g.branches[b], source.edges, in, out));
        }
        grads_begin.push_back(grads);
    }

    // Arrays stay small enough for the C library to reuse their memory: what it gets from the system anew for each pass,
    // the system fills with zeros first, which takes as long as half of a forward pass.
    Place keep(Int vectors) {
        constexpr Int limit = 1 << 18;
        if (arrays.empty() || arrays.back() + vectors > limit) arrays.push_back(0);
        const Place place{Int(arrays.size()) - 1, arrays.back()};
        arrays.back() += vectors;
        return place;
    }

    Plan<T> plan(const Branch& b, Int edges, const State& in, const State& out) {
        Plan<T> p{};
        p.branch = &b;
        p.out = out;
        const bool shared = b.kind <= AVERAGE_POOL;
        p.term_edges = shared ? 1 : edges;
        if (b.kind == CONVOLUTION || b.kind == SEPARABLE)
            p.first.push_back(layer(edges, true, b.kernel, b.stride, b.padding, b.dilation, 0, 0, in, out, out.channels));
        if (b.kind == SEPARABLE)
            p.second.push_back(layer(edges, true, b.kernel, 1, b.padding, b.dilation, 0, 0, out, out, out.channels));
        if (b.kind == POINTWISE) p.first.push_back(layer(edges, false, 1, 1, 0, 1, 0, 0, in, out, out.channels));
        if (b.kind == REDUCE) {
            const Int half = out.channels / 2;
            p.first.push_back(layer(edges, false, 1, 2, 0, 1, 0, 0, in, out, half));
            p.first.push_back(layer(edges, false, 1, 2, 0, 1, 1, half, in, out, out.channels - half));
        }
        if (b.kind != SAME || b.norm.present) p.term_at = keep(p.term_edges * blocks * out.size());
        if (b.kind == SEPARABLE) p.middle_at = keep(edges * blocks * out.size());
        p.middle = group(b.middle, edges, edges, out.channels);
        p.norm = group(b.norm, edges, p.term_edges, out.channels);
        return p;
    }

    Layer layer(
        Int edges, bool depthwise, Int kernel, Int stride, Int padding, Int dilation, Int offset, Int begin, const State& in,
        const State& out, Int outs) {
        Layer l{depthwise, kernel, stride, padding, dilation, offset, begin, in.channels, outs, in.height, in.width,
                out.height, out.width, 0, 0, 0, 0};
        if (depthwise) {
            l.depthwise_at = weights;
            l.depthwise_grad_at = grads;
            weights += edges;
            grads += edges * l.ins * l.taps();
        }
        l.pointwise_at = weights;
        l.pointwise_grad_at = grads;
        weights += edges;
        grads += edges * l.ins * outs;
        return l;
    }

    Group group(const Norm& norm, Int edges, Int term_edges, Int channels) {
        Group group;
        group.norm = norm;
        group.edges = edges;
        group.term_edges = term_edges;
        group.channels = channels;
        group.at = numbers;
        numbers += 5 * group.count();
        if (norm.present) {
            group.running_at = running;
            running += 3 * edges;
            if (norm.affine) {
                group.affine_at = weights;
                group.affine_grad_at = grads;
                weights += 2 * edges;
                grads += 2 * group.count();
            }
        }
        return group;
    }

    void place(double* values) {
        for (auto& source : plans)
            for (auto& p : source)
                for (Group* group : {&p.middle, &p.norm}) {
                    double* at = values + group->at;
                    for (double** target : {&group->mean, &group->scale, &group->share, &group->weight, &group->bias})
                        *target = at, at += group->count();
                }
    }

    // 1 in the lanes that hold an image, 0 in others.
    V mask(Int block) const {
        V v{};
        for (Int i = 0; i < lanes<T>; ++i) v[i] = block * lanes<T> + i < g.batch;
        return v;
    }
};

// Inner loops, over vectors

struct TapRange {  // rows of taps: steps between them in the input and among the weights
    Int rows, row_step, taps, tap_step, weight_row, weight_tap;
};

// out[p * out_step] (+)= sum over taps of weight * in[p * S + tap]
template <typename T, bool add, int P, int S>
inline void taps_block(Vector<T>* out, Int out_step, const Vector<T>* in, const TapRange& range, const T* weights) {
    constexpr int turns = P <= 4 ? 2 : 1;  // an addition waits for the one before it in its place
    Vector<T> sum[turns][P] = {};
    if (add)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sum[0][p] = out[p * out_step];
    for (Int r = 0; r < range.rows; ++r) {
        const Vector<T>* x = in + r * range.row_step;
        const T* w = weights + r * range.weight_row;
        Int t = 0;
        for (; t + turns <= range.taps; t += turns)
#pragma GCC unroll 2
            for (int q = 0; q < turns; ++q) {
                const T weight = w[(t + q) * range.weight_tap];
                const Vector<T>* here = x + (t + q) * range.tap_step;
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) sum[q][p] += weight * here[p * S];
            }
        for (; t < range.taps; ++t) {
            const T weight = w[t * range.weight_tap];
            const Vector<T>* here = x + t * range.tap_step;
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sum[0][p] += weight * here[p * S];
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) out[p * out_step] = turns == 2 ? sum[0][p] + sum[turns - 1][p] : sum[0][p];
}

template <typename T, bool add, int S>
inline void taps_with_step(
    Vector<T>* out, Int out_step, const Vector<T>* in, const TapRange& range, const T* weights, Int count) {
    Int p = 0;
    for (; p + 8 <= count; p += 8) taps_block<T, add, 8, S>(out + p * out_step, out_step, in + p * S, range, weights);
    if (p + 4 <= count) taps_block<T, add, 4, S>(out + p * out_step, out_step, in + p * S, range, weights), p += 4;
    if (p + 2 <= count) taps_block<T, add, 2, S>(out + p * out_step, out_step, in + p * S, range, weights), p += 2;
    if (p < count) taps_block<T, add, 1, S>(out + p * out_step, out_step, in + p * S, range, weights);
}

template <typename T, bool add>
inline void taps_of_row(
    Vector<T>* out, Int out_step, const Vector<T>* in, Int in_step, const TapRange& range, const T* weights, Int count) {
    if (in_step == 1) return taps_with_step<T, add, 1>(out, out_step, in, range, weights, count);
    if (in_step == 2) return taps_with_step<T, add, 2>(out, out_step, in, range, weights, count);
    for (Int p = 0; p < count; ++p)
        taps_block<T, add, 1, 1>(out + p * out_step, out_step, in + p * in_step, range, weights);
}

// out[o][p] = - less[o] + sum over c of matrix[o * out_step + c * in_step] * in[c][p], for O outputs and P pixels
template <typename T, int O, int P>
inline void product_block(
    Vector<T>* out, Int out_next, const T* less, const Vector<T>* in, Int in_next, Int ins, const T* matrix, Int out_step,
    Int in_step) {
    Vector<T> sum[O][P];
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) sum[o][p] = Vector<T>{} - (less ? less[o] : T(0));
    for (Int c = 0; c < ins; ++c) {
        Vector<T> x[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            x[p] = in[c * in_next + p];
            IN_REGISTER(x[p]);
        }
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) {
            const T weight = matrix[o * out_step + c * in_step];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) sum[o][p] += weight * x[p];
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) out[o * out_next + p] = sum[o][p];
}

template <typename T, int O>
inline void product_rows(
    Vector<T>* out, Int out_next, const T* less, const Vector<T>* in, Int in_next, Int ins, const T* matrix, Int out_step,
    Int in_step, Int count) {
    Int p = 0;
    for (; p + 3 <= count; p += 3)
        product_block<T, O, 3>(out + p, out_next, less, in + p, in_next, ins, matrix, out_step, in_step);
    if (p + 2 <= count)
        product_block<T, O, 2>(out + p, out_next, less, in + p, in_next, ins, matrix, out_step, in_step), p += 2;
    if (p < count) product_block<T, O, 1>(out + p, out_next, less, in + p, in_next, ins, matrix, out_step, in_step);
}

template <typename T>
void product(
    Vector<T>* out, Int out_next, Int outs, const T* less, const Vector<T>* in, Int in_next, Int ins, const T* matrix,
    Int out_step, Int in_step, Int count) {
    Int o = 0;
    for (; o + 4 <= outs; o += 4)
        product_rows<T, 4>(
            out + o * out_next, out_next, less ? less + o : less, in, in_next, ins, matrix + o * out_step, out_step,
            in_step, count);
    for (; o < outs; ++o)
        product_rows<T, 1>(
            out + o * out_next, out_next, less ? less + o : less, in, in_next, ins, matrix + o * out_step, out_step,
            in_step, count);
}

// sums[o][c] += sum over pixels of left[o][p] * right[c][p], for O times C
template <typename T, int O, int C>
inline void outer_block(
    Vector<T>* sums, Int next, const Vector<T>* left, Int left_next, const Vector<T>* right, Int right_next, Int count) {
    Vector<T> sum[O][C];
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[o][c] = sums[o * next + c];
    for (Int p = 0; p < count; ++p) {
        Vector<T> x[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            x[c] = right[c * right_next + p];
            IN_REGISTER(x[c]);
        }
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) {
            Vector<T> y = left[o * left_next + p];
            IN_REGISTER(y);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sum[o][c] += y * x[c];
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sums[o * next + c] = sum[o][c];
}

template <typename T>
void outer(
    Vector<T>* sums, const Vector<T>* left, Int left_next, Int outs, const Vector<T>* right, Int right_next, Int ins, Int count) {
    Int o = 0;
    for (; o + 4 <= outs; o += 4) {
        Int c = 0;
        for (; c + 2 <= ins; c += 2)
            outer_block<T, 4, 2>(
                sums + o * ins + c, ins, left + o * left_next, left_next, right + c * right_next, right_next, count);
        if (c < ins)
            outer_block<T, 4, 1>(
                sums + o * ins + c, ins, left + o * left_next, left_next, right + c * right_next, right_next, count);
    }
    for (; o < outs; ++o)
        for (Int c = 0; c < ins; ++c)
            outer_block<T, 1, 1>(
                sums + o * ins + c, ins, left + o * left_next, left_next, right + c * right_next, right_next, count);
}

// sums[t] += sum over pixels of grad[p] * in[p * step + t * spacing], for K taps of a row
template <typename T, int K>
inline void tap_sums_block(Vector<T>* sums, const Vector<T>* grad, const Vector<T>* in, Int step, Int spacing, Int count) {
    constexpr int turns = K > 4 ? 1 : 2;
    Vector<T> sum[turns][K] = {};
#pragma GCC unroll 8
    for (int t = 0; t < K; ++t) sum[0][t] = sums[t];
    Int p = 0;
    for (; p + turns <= count; p += turns)
#pragma GCC unroll 2
        for (int q = 0; q < turns; ++q) {
            Vector<T> g = grad[p + q];
            IN_REGISTER(g);
            const Vector<T>* x = in + (p + q) * step;
#pragma GCC unroll 8
            for (int t = 0; t < K; ++t) sum[q][t] += g * x[t * spacing];
        }
    for (; p < count; ++p)
#pragma GCC unroll 8
        for (int t = 0; t < K; ++t) sum[0][t] += grad[p] * in[p * step + t * spacing];
#pragma GCC unroll 8
    for (int t = 0; t < K; ++t) sums[t] = turns == 2 ? sum[0][t] + sum[turns - 1][t] : sum[0][t];
}

template <typename T>
inline void tap_sums(
    Vector<T>* sums, const Vector<T>* grad, const Vector<T>* in, Int step, Int spacing, Int taps, Int count) {
    Int t = 0;
    if (taps == 5) return tap_sums_block<T, 5>(sums, grad, in, step, spacing, count);
    for (; t + 3 <= taps; t += 3) tap_sums_block<T, 3>(sums + t, grad, in + t * spacing, step, spacing, count);
    if (t + 2 <= taps) tap_sums_block<T, 2>(sums + t, grad, in + t * spacing, step, spacing, count), t += 2;
    if (t < taps) tap_sums_block<T, 1>(sums + t, grad, in + t * spacing, step, spacing, count);
}

// A sum in four places in turn.
template <typename T>
struct InTurn {
    Vector<T> sums[4] = {};
    Vector<T> total() const { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }
};

constexpr Int chunk = 32;  // pixels whose sum has the type of the images

// Sums over pixels of a[p], if `alone`, and of a[p] * b[p].
template <typename T, bool alone>
inline void dot(const Vector<T>* a, const Vector<T>* b, Int count, Wide<T>& total, Wide<T>& products) {
    for (Int start = 0; start < count; start += chunk) {
        const Int size = std::min(chunk, count - start);
        InTurn<T> sum, product;
        Int p = 0;
        for (; p + 4 <= size; p += 4)
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) {
                const Vector<T> x = a[start + p + q];
                if (alone) sum.sums[q] += x;
                product.sums[q] += x * b[start + p + q];
            }
        for (; p < size; ++p) {
            const Vector<T> x = a[start + p];
            if (alone) sum.sums[0] += x;
            product.sums[0] += x * b[start + p];
        }
        if (alone) total += widened<T>(sum.total());
        products += widened<T>(product.total());
    }
}

// The taps of one direction that read within the input, for outputs from `place` in steps of `stride`.
struct Within {
    Int first, count;
};

inline Within taps_within(Int place, Int last_place, Int dilation, Int kernel, Int size) {
    Int first = 0, last = kernel;
    while (first < last && last_place + first * dilation < 0) ++first;
    while (last > first && place + (last - 1) * dilation >= size) --last;
    return {first, last - first};
}

// The taps by which an input pixel is reached: the first, their number, the step from tap to tap, and the output pixels that
// they belong to, from the first in steps of -spacing. `count` further input pixels follow, one stride apart.
struct Reach {
    Int first, count, step, place, spacing;
    Reach(Int pixel, Int count_pixels, const Layer& l, Int out_size) {
        step = l.stride / std::gcd(l.stride, l.dilation);
        spacing = step * l.dilation / l.stride;
        first = 0;
        while (first < step && (pixel + l.padding - first * l.dilation) % l.stride) ++first;
        count = first < step && first < l.kernel ? (l.kernel - first + step - 1) / step : 0;
        if (!count) return;
        place = (pixel + l.padding - first * l.dilation) / l.stride;  // exact, so that its sign does not matter
        while (count && place >= out_size) first += step, place -= spacing, --count;
        while (count && place - (count - 1) * spacing + count_pixels - 1 < 0) --count;
    }
};

// A layer on one edge and one block

template <typename T>
struct LayerPass {
    using V = Vector<T>;
    const Layer& l;
    const T *depthwise, *pointwise;  // of the edge
    const V* y;                      // the rectified input, planes with a border of zeros to the left and right
    Int y_width, y_border;
    Int band;  // rows at a time

    LayerPass(const Layer& l, const T* const* weights, Int k, const V* y, Int y_border)
        : l(l),
          depthwise(l.depthwise ? weights[l.depthwise_at + k] : nullptr),
          pointwise(weights[l.pointwise_at + k]),
          y(y),
          y_width(l.width + 2 * y_border),
          y_border(y_border),
          band(band_of(l)) {}

    static Int band_of(const Layer& l) { return std::min(l.out_height, std::max<Int>(1, chunk / l.out_width)); }
    static Int size_of_band(const Layer& l, Int channels) { return channels * band_of(l) * l.out_width; }
    Int next() const { return band * l.out_width; }  // from channel to channel of a band

    // d[c][r][p], `next` from channel to channel: what the pointwise convolution sees, of some rows
    void seen(V* d, Int next, Int i, Int rows) const {
        for (Int r = 0; r < rows; ++r) seen_row(d + r * l.out_width, next, i + r);
    }

    void seen_row(V* d, Int next, Int i) const {
        const Int plane = l.height * y_width;
        if (!l.depthwise) {
            const Int row = i * l.stride + l.offset;
            const V* from = y + y_border + row * y_width + l.offset;
            for (Int c = 0; c < l.ins; ++c)
                for (Int p = 0; p < l.out_width; ++p)
                    d[c * next + p] = row < l.height ? from[c * plane + p * l.stride] : V{};
            return;
        }
        const TapsOfRow taps(*this, i);
        const V* from = y + taps.from;
        const T* w = depthwise + taps.rows.first * l.kernel + taps.columns.first;
        const TapRange range{taps.rows.count, l.dilation * y_width, taps.columns.count, l.dilation, l.kernel, 1};
        for (Int c = 0; c < l.ins; ++c)
            taps_of_row<T, false>(d + c * next, 1, from + c * plane, l.stride, range, w + c * l.taps(), l.out_width);
    }

    // The taps that output row i sees something with, and where in a plane of y the first of them begins to read.
    struct TapsOfRow {
        Within rows, columns;
        Int from;
        TapsOfRow(const LayerPass& pass, Int i) {
            const Layer& l = pass.l;
            const Int top = i * l.stride - l.padding, left = -l.padding;
            rows = taps_within(top, top, l.dilation, l.kernel, l.height);
            columns = taps_within(left, left + (l.out_width - 1) * l.stride, l.dilation, l.kernel, l.width);
            from = (top + rows.first * l.dilation) * pass.y_width + pass.y_border + left + columns.first * l.dilation;
        }
    };

    // The mean of a row of the first block, a shift near to all pixels; 0 where it is not finite.
    void shift(T* shifts, V* d, V* z, V mask) const {
        const Int count = l.out_width;
        seen_row(d, count, l.out_height / 2);
        product<T>(z, count, l.outs, nullptr, d, count, l.ins, pointwise, l.ins, 1, count);
        for (Int o = 0; o < l.outs; ++o) {
            V sum{};
            for (Int p = 0; p < count; ++p) sum += z[o * count + p];
            const double mean = sum_of_lanes(widened<T>(sum * mask)) / (count * sum_of_lanes(mask));
            shifts[o] = std::isfinite(T(mean)) ? T(mean) : T(0);
        }
    }

    // Writes z less the shift, and the sums of that and of its squares, (2, outs) with `next_sums` between the two.
    void forward(V* z, const T* less, V* d, Wide<T>* wide, double* sums, Int next_sums, V mask, bool full) const {
        const Int plane = l.out_height * l.out_width;
        std::fill_n(wide, 2 * l.outs, Wide<T>{});
        for (Int i = 0; i < l.out_height; i += band) {
            const Int rows = std::min(band, l.out_height - i), count = rows * l.out_width;
            seen(d, next(), i, rows);
            V* to = z + i * l.out_width;
            product<T>(to, plane, l.outs, less, d, next(), l.ins, pointwise, l.ins, 1, count);
            for (Int o = 0; o < l.outs; ++o) moments(to + o * plane, count, wide[o], wide[l.outs + o], mask, full);
        }
        for (Int o = 0; o < l.outs; ++o) {
            sums[o] = sum_of_lanes(wide[o]);
            sums[next_sums + o] = sum_of_lanes(wide[l.outs + o]);
        }
    }

    static void moments(const V* z, Int count, Wide<T>& total, Wide<T>& squares, V mask, bool full) {
        Wide<T> sum{}, square{};
        dot<T, true>(z, z, count, sum, square);
        total += full ? sum : sum * widened<T>(mask);
        squares += full ? square : square * widened<T>(mask);
    }

    static Int grad_border(const Layer& l) {
        if (!l.depthwise) return 0;
        const Int left = (l.dilation * (l.kernel - 1) - l.padding) / l.stride + 1;
        const Int right = (l.width - 1 + l.padding) / l.stride - (l.out_width - 1);
        return std::max<Int>({left, right, 0});
    }

    // From zg(to, next, i, rows), which writes the gradient of z of some rows, (outs) with `next` between them: adds to
    // y_grad, planes without a border, and to taps_grad (ins, taps) and matrix_grad (outs, ins); what is null is left out.
    template <typename ZGrad>
    void backward(ZGrad zg, V* z_grad, V* d, V* d_grad, V* y_grad, V* taps_grad, V* matrix_grad) const {
        const Int border = grad_border(l), width = l.out_width + 2 * border, plane = l.out_height * width;
        Int emitted = 0;
        for (Int i = 0; i < l.out_height; i += band) {
            const Int rows = std::min(band, l.out_height - i), count = rows * l.out_width;
            zg(z_grad, next(), i, rows);
            if (matrix_grad) {
                seen(d, next(), i, rows);
                outer<T>(matrix_grad, z_grad, next(), l.outs, d, next(), l.ins, count);
            }
            if (!l.depthwise) {
                if (y_grad) picked_grad(z_grad, d, y_grad, i, rows);
                continue;
            }
            for (Int r = 0; r < rows; ++r) {
                V* to = d_grad + (i + r) * width;
                for (Int c = 0; c < l.ins; ++c) {
                    std::fill_n(to + c * plane, border, V{});
                    std::fill_n(to + c * plane + border + l.out_width, border, V{});
                }
                product<T>(
                    to + border, plane, l.ins, nullptr, z_grad + r * l.out_width, next(), l.outs, pointwise, 1, l.ins,
                    l.out_width);
            }
            if (taps_grad)
                for (Int r = 0; r < rows; ++r)
                    add_tap_sums(taps_grad, d_grad + (i + r) * width + border, plane, i + r);
            if (!y_grad) continue;
            const Int done = i + rows;  // rows of the output
            Int until = emitted;
            while (until < l.height && (done == l.out_height || (until + l.padding) / l.stride < done)) ++until;
            for (; emitted < until; ++emitted)
                reached_row(y_grad + emitted * l.width, d_grad + border, width, plane, emitted);
        }
    }

    void picked_grad(const V* z_grad, V* d, V* y_grad, Int i, Int rows) const {
        product<T>(d, next(), l.ins, nullptr, z_grad, next(), l.outs, pointwise, 1, l.ins, rows * l.out_width);
        for (Int c = 0; c < l.ins; ++c)
            for (Int r = 0; r < rows; ++r) {
                const Int row = (i + r) * l.stride + l.offset;
                if (row >= l.height) continue;
                V* to = y_grad + (c * l.height + row) * l.width + l.offset;
                const V* from = d + c * next() + r * l.out_width;
                const Int count = std::min(l.out_width, (l.width - l.offset + l.stride - 1) / l.stride);
                for (Int p = 0; p < count; ++p) to[p * l.stride] += from[p];
            }
    }

    void add_tap_sums(V* sums, const V* grad, Int grad_plane, Int i) const {
        const TapsOfRow taps(*this, i);
        for (Int c = 0; c < l.ins; ++c) {
            V* to = sums + c * l.taps() + taps.rows.first * l.kernel + taps.columns.first;
            const V* from = y + c * l.height * y_width + taps.from;
            for (Int r = 0; r < taps.rows.count; ++r)
                tap_sums<T>(
                    to + r * l.kernel, grad + c * grad_plane, from + r * l.dilation * y_width, l.stride, l.dilation,
                    taps.columns.count, l.out_width);
        }
    }

    // Adds the gradient of row `row` of the input, planes without a border, from planes whose width is that of `grad`.
    void reached_row(V* to, const V* grad, Int width, Int grad_plane, Int row) const {
        const Reach vertical(row, 1, l, l.out_height);
        if (!vertical.count) return;
        for (Int j = 0; j < std::min(l.stride, l.width); ++j) {
            const Int count = (l.width - j + l.stride - 1) / l.stride;
            const Reach horizontal(j, count, l, l.out_width);
            if (!horizontal.count) continue;
            const TapRange range{vertical.count, -vertical.spacing * width, horizontal.count, -horizontal.spacing,
                                 vertical.step * l.kernel, horizontal.step};
            const V* from = grad + vertical.place * width + horizontal.place;
            const T* w = depthwise + vertical.first * l.kernel + horizontal.first;
            for (Int c = 0; c < l.ins; ++c)
                taps_of_row<T, true>(
                    to + c * l.height * l.width + j, l.stride, from + c * grad_plane, 1, range, w + c * l.taps(), count);
        }
    }
};

// Pools of one plane

// Calls f(place in the plane) for the pixels of the window of output pixel (i, j), and returns their number.
template <typename F>
inline Int for_window(const Branch& b, const State& in, Int i, Int j, F f) {
    const Int top = i * b.stride - b.padding, left = j * b.stride - b.padding;
    const Int first_row = std::max<Int>(top, 0), last_row = std::min(top + b.kernel, in.height);
    const Int first = std::max<Int>(left, 0), last = std::min(left + b.kernel, in.width);
    for (Int r = first_row; r < last_row; ++r)
        for (Int c = first; c < last; ++c) f(r * in.width + c);
    return (last_row - first_row) * (last - first);
}

template <typename T>
inline auto exceeds(Vector<T> value, Vector<T> best) {  // nan exceeds everything, as in torch
    return (value > best) | (value != value);
}

template <typename T>
inline Vector<T> pooled(const Branch& b, const State& in, const Vector<T>* x, Int i, Int j) {
    if (b.kind == MAX_POOL) {
        Vector<T> best = Vector<T>{} - std::numeric_limits<T>::infinity();
        for_window(b, in, i, j, [&](Int at) { best = exceeds<T>(x[at], best) ? x[at] : best; });
        return best;
    }
    Vector<T> sum{};
    const Int count = for_window(b, in, i, j, [&](Int at) { sum += x[at]; });
    return sum / T(count);
}

// Adds the gradient of a pool; that of a maximum goes to the first pixel that has it.
template <typename T>
inline void add_pool_grad(
    const Branch& b, const State& in, const State& out, const Vector<T>* x, const Vector<T>* grad, Vector<T>* to) {
    for (Int i = 0; i < out.height; ++i)
        for (Int j = 0; j < out.width; ++j) {
            Vector<T> value = grad[i * out.width + j];
            if (b.kind == AVERAGE_POOL) {
                value /= T(for_window(b, in, i, j, [](Int) {}));
                for_window(b, in, i, j, [&](Int at) { to[at] += value; });
                continue;
            }
            const Vector<T> best = pooled<T>(b, in, x, i, j);
            for_window(b, in, i, j, [&](Int at) {
                const auto here = (x[at] == best) | ((x[at] != x[at]) & (best != best));
                to[at] += here ? value : Vector<T>{};
                value = here ? Vector<T>{} : value;
            });
        }
}

// Images to and from their packed form

template <typename T>
void pack(const Strided<const T>& from, Vector<T>* to, const State& s, Int batch, Int block) {
    const Int count = std::min(lanes<T>, batch - block * lanes<T>), plane = s.plane();
    for (Int i = 0; i < s.height; ++i)
        for (Int j = 0; j < s.width; ++j) {
            const T* pixel = from.data + block * lanes<T> * from.image + i * from.line + j * from.pixel;
            for (Int c = 0; c < s.channels; ++c, pixel += from.channel) {
                Vector<T> v{};
                if (count == lanes<T>)
                    for (Int n = 0; n < lanes<T>; ++n) v[n] = pixel[n * from.image];
                else
                    for (Int n = 0; n < count; ++n) v[n] = pixel[n * from.image];
                to[c * plane + i * s.width + j] = v;
            }
        }
}

template <typename T>
void unpack(const Strided<T>& to, const Vector<T>* from, const State& s, Int batch, Int block) {
    const Int count = std::min(lanes<T>, batch - block * lanes<T>), plane = s.plane();
    for (Int i = 0; i < s.height; ++i)
        for (Int j = 0; j < s.width; ++j) {
            T* pixel = to.data + block * lanes<T> * to.image + i * to.line + j * to.pixel;
            for (Int c = 0; c < s.channels; ++c, pixel += to.channel) {
                const Vector<T> v = from[c * plane + i * s.width + j];
                for (Int n = 0; n < count; ++n) pixel[n * to.image] = v[n];
            }
        }
}

// The passes

template <typename T>
struct Images {  // what a pass works on
    using V = Vector<T>;
    const Cell<T>& cell;
    T* const* kept;  // null: no state is kept
    std::vector<Buffer<T>> buffers;
    std::vector<V*> states;

    // Inputs and outputs are in scratch memory, the states between them in what is kept.
    Images(const Cell<T>& cell, T* const* kept) : cell(cell), kept(kept) {
        for (Int s = 0; s < cell.g.states_count; ++s) {
            if (kept && cell.state_at[s].exists()) {
                states.push_back(at(cell.state_at[s]));
                continue;
            }
            buffers.emplace_back(cell.blocks * cell.g.states[s].size() * lanes<T>);
            states.push_back(reinterpret_cast<V*>(buffers.back().data));
        }
    }

    V* at(const Place& place) const { return reinterpret_cast<V*>(kept[place.array]) + place.at; }

    V* state(Int s, Int block) const { return states[s] + block * cell.g.states[s].size(); }

    void pack_inputs(const Strided<const T>* inputs, int threads) const {
#pragma omp parallel for num_threads(threads) collapse(2)
        for (Int s = 0; s < cell.g.inputs; ++s)
            for (Int n = 0; n < cell.blocks; ++n) pack<T>(inputs[s], state(s, n), cell.g.states[s], cell.g.batch, n);
    }

    V* term(const Plan<T>& p, const Source& source, Int k, Int n) const {
        if (!p.term_at.exists()) return state(source.state, n);
        return at(p.term_at) + ((p.term_edges == 1 ? 0 : k) * cell.blocks + n) * p.out.size();
    }
    V* middle(const Plan<T>& p, Int k, Int n) const { return at(p.middle_at) + (k * cell.blocks + n) * p.out.size(); }
};

// Images of `output`, whose channels are those of several states one after the other.
template <typename Strided>
Strided of_output(Strided output, const Graph& g, Int index) {
    for (Int s = 0; s < index; ++s) output.data += g.states[g.states_count - g.outputs + s].channels * output.channel;
    return output;
}

template <typename T>
struct Scratch {  // an array for each thread
    Int count;
    Buffer<T> data;
    Scratch(int threads, Int count) : count((count * sizeof(T) + 63) / 64 * 64 / sizeof(T)), data(threads * this->count) {}
    T* mine() const { return data.data + omp_get_thread_num() * count; }
};

template <typename T>
struct VectorScratch {
    Scratch<T> scratch;
    VectorScratch(int threads, Int count) : scratch(threads, count * lanes<T>) {}
    Vector<T>* mine() const { return reinterpret_cast<Vector<T>*>(scratch.mine()); }
};

// Scratch memory for any of some layers.
template <typename T>
struct LayerScratch {
    VectorScratch<T> z, d, d_grad, taps_grad, matrix_grad;
    Scratch<double> wide;

    LayerScratch(int threads, const std::vector<const Layer*>& layers, bool backward)
        : z(threads, largest(layers, [](const Layer& l) { return LayerPass<T>::size_of_band(l, l.outs); })),
          d(threads, largest(layers, [](const Layer& l) { return LayerPass<T>::size_of_band(l, l.ins); })),
          d_grad(threads, !backward ? 0 : largest(layers, [](const Layer& l) {
              return l.ins * l.out_height * (l.out_width + 2 * LayerPass<T>::grad_border(l));
          })),
          taps_grad(threads, !backward ? 0 : largest(layers, [](const Layer& l) { return l.ins * l.taps(); })),
          matrix_grad(threads, !backward ? 0 : largest(layers, [](const Layer& l) { return l.ins * l.outs; })),
          wide(threads, largest(layers, [](const Layer& l) { return 2 * l.outs * lanes<T>; })) {}

    template <typename F>
    static Int largest(const std::vector<const Layer*>& layers, F f) {
        Int size = 0;
        for (const Layer* l : layers) size = std::max(size, f(*l));
        return size;
    }
    Wide<T>* mine_wide() const { return reinterpret_cast<Wide<T>*>(wide.mine()); }
};

// Sums of each block, added up in the order of the blocks.
template <typename T>
struct BlockSums {
    Int blocks, count;
    Buffer<T> sums;
    BlockSums(Int blocks, Int count) : blocks(blocks), count(count), sums(blocks * count) {}
    T* of(Int n) const { return sums.data + n * count; }
    std::vector<double> total() const {
        std::vector<double> total(count);
        for (Int n = 0; n < blocks; ++n)
            for (Int i = 0; i < count; ++i) total[i] += of(n)[i];
        return total;
    }
};

// The mean, the scale and so on of BatchNorms, from the sums (2, term_edges, channels) of a term that is less some shifts.
// In training, the running statistics move.
template <typename T>
void normalise(const Group& group, const double* sums, const T* shifts, Int pixels, const T* const* weights, void* const* running) {
    const Norm& norm = group.norm;
    for (Int k = 0; k < group.edges; ++k) {
        T *running_mean = nullptr, *running_variance = nullptr;
        if (norm.present) {
            void* const* here = running + group.running_at + k;
            running_mean = static_cast<T*>(here[0]);
            running_variance = static_cast<T*>(here[group.edges]);
            if (norm.training) ++*static_cast<std::int64_t*>(here[2 * group.edges]);
        }
        for (Int c = 0; c < group.channels; ++c) {
            const Int at = k * group.channels + c;
            group.mean[at] = group.share[at] = group.bias[at] = 0;
            group.scale[at] = group.weight[at] = 1;
            if (!norm.present) continue;
            const Int of_term = (group.term_edges == 1 ? 0 : k) * group.channels + c;
            double mean, variance;
            if (norm.training) {
                const double total = sums[of_term];
                mean = total / pixels;
                double squares = sums[group.term_edges * group.channels + of_term] - total * mean;
                squares = squares < 0 ? 0 : squares;  // nan stays nan
                variance = squares / pixels;
                group.share[at] = 1.0 / pixels;
                running_mean[c] += T(norm.momentum) * (T(mean + shifts[of_term]) - running_mean[c]);
                running_variance[c] += T(norm.momentum) * (T(squares / (pixels - 1)) - running_variance[c]);
            } else {
                mean = double(running_mean[c]) - shifts[of_term];
                variance = running_variance[c];
            }
            group.mean[at] = mean;
            group.scale[at] = 1 / std::sqrt(variance + norm.eps);
            if (norm.affine) {
                group.weight[at] = weights[group.affine_at + k][c];
                group.bias[at] = weights[group.affine_at + group.edges + k][c];
            }
        }
    }
}

// Scale and shift of each channel, (2, edges, channels): scale * t + shift is the normalised t.
template <typename T>
std::vector<T> rescale_of(const Group& group) {
    std::vector<T> values(2 * group.count());
    for (Int i = 0; i < group.count(); ++i) {
        const double factor = group.weight[i] * group.scale[i];
        values[i] = factor;
        values[group.count() + i] = group.bias[i] - factor * group.mean[i];
    }
    return values;
}

// The factors of g and t, and the constant, whose sum is the gradient of t, (3, edges, channels). g is the gradient of alpha *
// normalised t, `total` its sum over pixels and `centred` that of g * (t - mean); alpha is one for each edge.
template <typename T, typename Alpha>
std::vector<T> mix_of(const Group& group, Alpha alpha, const double* total, const double* centred) {
    const Int count = group.count();
    std::vector<T> values(3 * count);
    for (Int i = 0; i < count; ++i) {
        const double of_grad = alpha(i / group.channels) * group.weight[i] * group.scale[i];
        const double of_term = -of_grad * group.scale[i] * group.scale[i] * group.share[i] * centred[i];
        values[i] = of_grad;
        values[count + i] = of_term;
        values[2 * count + i] = -of_grad * group.share[i] * total[i] - of_term * group.mean[i];
    }
    return values;
}

// Planes (channels, height, width + 2 * border) of max(0, x), or of max(0, scale * x + shift); the border is zero already.
template <typename T>
void rectify(Vector<T>* y, const Vector<T>* x, const State& s, Int border, const T* scale, const T* shift) {
    for (Int c = 0; c < s.channels; ++c)
        for (Int i = 0; i < s.height; ++i) {
            Vector<T>* to = y + (c * s.height + i) * (s.width + 2 * border) + border;
            const Vector<T>* from = x + (c * s.height + i) * s.width;
            if (scale)
                for (Int j = 0; j < s.width; ++j) to[j] = rectified<T>(scale[c] * from[j] + shift[c]);
            else
                for (Int j = 0; j < s.width; ++j) to[j] = rectified<T>(from[j]);
        }
}

struct Layers {  // those of a source, first or second of its branches, with the index of the branch
    std::vector<const Layer*> layers;
    std::vector<Int> branches;
    Int border = 0;
    template <typename Plans>
    Layers(const Plans& plans, bool second) {
        for (std::size_t b = 0; b < plans.size(); ++b)
            for (const Layer& l : second ? plans[b].second : plans[b].first) {
                layers.push_back(&l);
                branches.push_back(b);
                border = std::max(border, l.border());
            }
    }
    Int count() const { return layers.size(); }
};

template <typename T>
struct Pass {
    using V = Vector<T>;
    const Cell<T>& cell;
    const Images<T>& images;
    const T* const* weights;
    const T* rows;
    int threads;

    Int pixels(const State& s) const { return cell.g.batch * s.plane(); }
    bool full(Int n) const { return (n + 1) * lanes<T> <= cell.g.batch; }
    T alpha(const Source& source, const Plan<T>& p, Int k) const {
        return source.row < 0 ? T(1) : rows[(source.row + k) * cell.g.columns + p.branch->column];
    }

    // max(0, x) of a state, for layers that read it.
    Buffer<T> rectified_state(Int s, const Layers& layers) const {
        const State& in = cell.g.states[s];
        const Int size = in.channels * in.height * (in.width + 2 * layers.border);
        Buffer<T> y(layers.count() ? cell.blocks * size * lanes<T> : 0);
#pragma omp parallel for num_threads(threads)
        for (Int n = 0; n < (layers.count() ? cell.blocks : 0); ++n)
            rectify<T>(reinterpret_cast<V*>(y.data) + n * size, images.state(s, n), in, layers.border, nullptr, nullptr);
        return y;
    }
};

template <typename T>
struct ForwardPass : Pass<T> {
    using V = Vector<T>;
    using Pass<T>::cell, Pass<T>::images, Pass<T>::weights, Pass<T>::threads;
    void* const* running;

    // Computes the terms of all layers, and the BatchNorms that follow.
    void convolve(const Source& source, const std::vector<Plan<T>>& plans, bool second) const {
        const Layers layers(plans, second);
        if (!layers.count()) return;
        const Int edges = source.edges;
        const State& in = second ? plans[layers.branches[0]].out : cell.g.states[source.state];
        const Int border = layers.border, size = in.channels * in.height * (in.width + 2 * border);
        const Buffer<T> shared = second ? Buffer<T>(0) : this->rectified_state(source.state, layers);
        const VectorScratch<T> own(threads, second ? size : 0);
        const LayerScratch<T> scratch(threads, layers.layers, false);
        std::vector<std::vector<T>> rescales, shifts;
        std::vector<Int> sums_at;
        Int sums_count = 0;
        for (const Plan<T>& p : plans) {
            rescales.push_back(second && p.middle_at.exists() ? rescale_of<T>(p.middle) : std::vector<T>());
            shifts.emplace_back(edges * p.out.channels);
            sums_at.push_back(sums_count);
            sums_count += 2 * edges * p.out.channels;
        }
        const BlockSums<double> sums(cell.blocks, sums_count);
        const auto on = [&](Int n, Int index, Int k, bool only_shift) {
            const Int b = layers.branches[index];
            const Layer& l = *layers.layers[index];
            const Plan<T>& p = plans[b];
            const Int channels = p.out.channels;
            V* y = second ? own.mine() : reinterpret_cast<V*>(shared.data) + n * size;
            if (second) {
                const T* scale = rescales[b].data() + k * channels;
                rectify<T>(y, images.middle(p, k, n), p.out, border, scale, scale + edges * channels);
            }
            const LayerPass<T> pass(l, weights, k, y, border);
            T* less = shifts[b].data() + k * channels + l.begin;
            if (only_shift) return pass.shift(less, scratch.d.mine(), scratch.z.mine(), cell.mask(n));
            V* z = p.branch->kind == SEPARABLE && !second ? images.middle(p, k, n) : images.term(p, source, k, n);
            pass.forward(
                z + l.begin * p.out.plane(), less, scratch.d.mine(), scratch.mine_wide(),
                sums.of(n) + sums_at[b] + k * channels + l.begin, edges * channels, cell.mask(n), this->full(n));
        };
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
        for (Int index = 0; index < layers.count(); ++index)
            for (Int k = 0; k < edges; ++k) on(0, index, k, true);
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(3)
        for (Int n = 0; n < cell.blocks; ++n)
            for (Int index = 0; index < layers.count(); ++index)
                for (Int k = 0; k < edges; ++k) on(n, index, k, false);
        const std::vector<double> totals = sums.total();
        for (std::size_t b = 0; b < plans.size(); ++b) {
            const Plan<T>& p = plans[b];
            if (second ? p.second.empty() : p.first.empty()) continue;
            const Group& group = p.branch->kind == SEPARABLE && !second ? p.middle : p.norm;
            normalise<T>(group, totals.data() + sums_at[b], shifts[b].data(), this->pixels(p.out), weights, running);
        }
    }

    // Pools, and the state itself: computed once for all edges.
    void shared_term(const Source& source, const Plan<T>& p) const {
        const Branch& b = *p.branch;
        const State &in = cell.g.states[source.state], &out = p.out;
        std::vector<T> shifts(out.channels);
        const bool centre = b.norm.present;
        const auto value = [&](const V* x, Int i, Int j) {
            return b.kind == SAME ? x[i * in.width + j] : pooled<T>(b, in, x, i, j);
        };
        for (Int c = 0; centre && c < out.channels; ++c) {
            V sum{};
            for (Int j = 0; j < out.width; ++j) sum += value(images.state(source.state, 0) + c * in.plane(), out.height / 2, j);
            const V mask = cell.mask(0);
            const double mean = sum_of_lanes(widened<T>(sum * mask)) / (out.width * sum_of_lanes(mask));
            shifts[c] = std::isfinite(T(mean)) ? T(mean) : T(0);
        }
        const BlockSums<double> sums(cell.blocks, 2 * out.channels);
#pragma omp parallel for num_threads(threads)
        for (Int n = 0; n < (!p.term_at.exists() ? 0 : cell.blocks); ++n)
            for (Int c = 0; c < out.channels; ++c) {
                const V* x = images.state(source.state, n) + c * in.plane();
                V* to = images.term(p, source, 0, n) + c * out.plane();
                for (Int i = 0; i < out.height; ++i)
                    for (Int j = 0; j < out.width; ++j) to[i * out.width + j] = value(x, i, j) - shifts[c];
                if (!centre) continue;
                Wide<T> total{}, squares{};
                LayerPass<T>::moments(to, out.plane(), total, squares, cell.mask(n), this->full(n));
                sums.of(n)[c] = sum_of_lanes(total);
                sums.of(n)[out.channels + c] = sum_of_lanes(squares);
            }
        normalise<T>(p.norm, sums.total().data(), shifts.data(), this->pixels(out), weights, running);
    }

    void source(const Source& source, const std::vector<Plan<T>>& plans, std::vector<char>& written) const {
        for (const Plan<T>& p : plans)
            if (p.branch->kind <= AVERAGE_POOL) shared_term(source, p);
        convolve(source, plans, false);
        convolve(source, plans, true);
        const State& out = cell.g.states[source.first];
        const Int channels = out.channels, terms = plans.size();
        std::vector<T> factors(terms * source.edges * channels), constants(source.edges * channels);
        for (Int k = 0; k < source.edges; ++k)
            for (Int c = 0; c < channels; ++c) {
                double constant = 0;
                for (Int b = 0; b < terms; ++b) {
                    const Group& group = plans[b].norm;
                    const Int at = k * channels + c;
                    const double factor = this->alpha(source, plans[b], k) * group.weight[at] * group.scale[at];
                    factors[b * source.edges * channels + at] = factor;
                    constant += this->alpha(source, plans[b], k) * group.bias[at] - factor * group.mean[at];
                }
                constants[k * channels + c] = constant;
            }
#pragma omp parallel for num_threads(threads) collapse(2)
        for (Int n = 0; n < cell.blocks; ++n)
            for (Int k = 0; k < source.edges; ++k) {
                const bool add = written[source.first + k];
                for (Int c = 0; c < channels; ++c) {
                    V* to = images.state(source.first + k, n) + c * out.plane();
                    const T *factor = factors.data() + k * channels + c, constant = constants[k * channels + c];
                    for (Int start = 0; start < out.plane(); start += 8) {
                        const Int size = std::min<Int>(8, out.plane() - start);
                        V sum[8];
                        for (Int q = 0; q < size; ++q) sum[q] = add ? to[start + q] + constant : V{} + constant;
                        for (Int b = 0; b < terms; ++b) {
                            const V* term = images.term(plans[b], source, k, n) + c * out.plane() + start;
                            const T by = factor[b * source.edges * channels];
                            if (size == 8)
#pragma GCC unroll 8
                                for (int q = 0; q < 8; ++q) sum[q] += by * term[q];
                            else
                                for (Int q = 0; q < size; ++q) sum[q] += by * term[q];
                        }
                        for (Int q = 0; q < size; ++q) to[start + q] = sum[q];
                    }
                }
            }
        for (Int k = 0; k < source.edges; ++k) written[source.first + k] = 1;
    }
};

template <typename T>
void forward(
    const Graph& g, const Strided<const T>* inputs, Strided<T> output, T* const* kept, double* numbers, const T* const* weights,
    void* const* running, const T* rows, int threads) {
    Cell<T> cell(g);
    cell.place(numbers);
    const Images<T> images(cell, kept);
    images.pack_inputs(inputs, threads);
    const ForwardPass<T> pass{{cell, images, weights, rows, threads}, running};
    std::vector<char> written(g.states_count);
    for (Int s = 0; s < g.sources_count; ++s) pass.source(g.sources[s], cell.plans[s], written);
#pragma omp parallel for num_threads(threads) collapse(2)
    for (Int s = 0; s < g.outputs; ++s)
        for (Int n = 0; n < cell.blocks; ++n) {
            const Int state = g.states_count - g.outputs + s;
            unpack<T>(of_output(output, g, s), images.state(state, n), g.states[state], g.batch, n);
        }
}

template <typename T>
struct BackwardPass : Pass<T> {
    using V = Vector<T>;
    using Pass<T>::cell, Pass<T>::images, Pass<T>::weights, Pass<T>::threads;
    const Images<T>& grads;  // of the states

    // `needs_state`: whether the gradient of the state is computed; `weight_grads`: null if those of the weights are not.
    void source(
        const Source& source, const std::vector<Plan<T>>& plans, Int grads_begin, Int grads_count, bool needs_state,
        T* weight_grads, double* row_grads) const {
        const Int edges = source.edges, terms = plans.size(), channels = cell.g.states[source.first].channels;
        const Int count = edges * channels;
        const std::vector<double> sums = products(source, plans);
        std::vector<std::vector<T>> mixes, middle_mixes(terms);
        for (Int b = 0; b < terms; ++b) {
            const Plan<T>& p = plans[b];
            const Group& group = p.norm;
            std::vector<double> centred(count);
            for (Int i = 0; i < count; ++i) centred[i] = sums[(1 + b) * count + i] - group.mean[i] * sums[i];
            for (Int k = 0; k < edges; ++k) {
                double grad = 0;
                for (Int c = 0; c < channels; ++c) {
                    const Int i = k * channels + c;
                    const double of_weight = group.scale[i] * centred[i], of_bias = sums[i];
                    grad += group.weight[i] * of_weight + group.bias[i] * of_bias;
                    if (!weight_grads || !group.norm.present || !group.norm.affine) continue;
                    const double by = this->alpha(source, p, k);
                    weight_grads[group.affine_grad_at + i] = by * of_weight;
                    weight_grads[group.affine_grad_at + count + i] = by * of_bias;
                }
                if (source.row >= 0) row_grads[(source.row + k) * cell.g.columns + p.branch->column] = grad;
            }
            mixes.push_back(
                mix_of<T>(group, [&](Int k) { return this->alpha(source, p, k); }, sums.data(), centred.data()));
        }
        if (!needs_state && !weight_grads) return;
        const BlockSums<T> block_grads(cell.blocks, weight_grads ? grads_count : 0);
        std::vector<Int> middle_at;
        Int middle_size = 0;
        for (const Plan<T>& p : plans) {
            middle_at.push_back(middle_size);
            if (p.middle_at.exists()) middle_size += edges * cell.blocks * p.out.size();
        }
        const Buffer<T> middle_buffer(middle_size * lanes<T>);
        V* middle_grads = reinterpret_cast<V*>(middle_buffer.data);
        second_layers(source, plans, mixes, middle_mixes, middle_grads, middle_at, block_grads, grads_begin, weight_grads);
        first_layers(
            source, plans, mixes, middle_mixes, middle_grads, middle_at, block_grads, grads_begin, needs_state,
            weight_grads != nullptr);
        if (!weight_grads) return;
        const std::vector<double> totals = block_grads.total();
        const auto take = [&](Int at, Int size) {
            std::copy_n(totals.data() + at - grads_begin, size, weight_grads + at);
        };
        for (const Plan<T>& p : plans)
            for (const auto* layers : {&p.first, &p.second})
                for (const Layer& l : *layers) {
                    if (l.depthwise) take(l.depthwise_grad_at, edges * l.ins * l.taps());
                    take(l.pointwise_grad_at, edges * l.ins * l.outs);
                }
    }

    // The sums over pixels of the nodes' gradients, and of their products with each term, (1 + terms, edges, channels).
    std::vector<double> products(const Source& source, const std::vector<Plan<T>>& plans) const {
        const Int edges = source.edges, terms = plans.size();
        const State& out = cell.g.states[source.first];
        const Int count = edges * out.channels;
        const BlockSums<double> sums(cell.blocks, (1 + terms) * count);
#pragma omp parallel for num_threads(threads) collapse(2)
        for (Int n = 0; n < cell.blocks; ++n)
            for (Int k = 0; k < edges; ++k)
                for (Int c = 0; c < out.channels; ++c) {
                    const V* grad = grads.state(source.first + k, n) + c * out.plane();
                    double* to = sums.of(n) + k * out.channels + c;
                    for (Int b = 0; b < terms; ++b) {
                        const V* term = images.term(plans[b], source, k, n) + c * out.plane();
                        Wide<T> total{}, product{};
                        if (b == 0) {
                            dot<T, true>(grad, term, out.plane(), total, product);
                            to[0] = sum_of_lanes(total);
                        } else {
                            dot<T, false>(grad, term, out.plane(), total, product);
                        }
                        to[(1 + b) * count] = sum_of_lanes(product);
                    }
                }
        return sums.total();
    }

    // Returns a function that writes the gradient of a term of some rows of pixels: mix[0] * grad + mix[1] * t + mix[2].
    auto mixed(const V* grad, const V* term, const T* mix, Int next_mix, const Layer& l, Int n) const {
        const V mask = cell.mask(n);
        const bool full = this->full(n);
        return [=, &l](V* to, Int next, Int i, Int rows) {
            const Int plane = l.out_height * l.out_width, count = rows * l.out_width;
            for (Int o = 0; o < l.outs; ++o) {
                const V *g = grad + o * plane + i * l.out_width, *t = term + o * plane + i * l.out_width;
                const T of_grad = mix[o], of_term = mix[next_mix + o], constant = mix[2 * next_mix + o];
                for (Int p = 0; p < count; ++p) {
                    V value = of_grad * g[p] + (of_term * t[p] + constant);
                    if (!full) value *= mask;
                    to[o * next + p] = value;
                }
            }
        };
    }

    template <typename ZGrad>
    void layer(
        const LayerPass<T>& pass, ZGrad zg, const LayerScratch<T>& scratch, V* y_grad, Int k, T* block_grads, Int grads_begin) const {
        const Layer& l = pass.l;
        V *taps = block_grads ? scratch.taps_grad.mine() : nullptr, *matrix = block_grads ? scratch.matrix_grad.mine() : nullptr;
        if (block_grads) {
            std::fill_n(taps, l.ins * l.taps(), V{});
            std::fill_n(matrix, l.ins * l.outs, V{});
        }
        pass.backward(
            zg, scratch.z.mine(), scratch.d.mine(), scratch.d_grad.mine(), y_grad, l.depthwise ? taps : nullptr, matrix);
        if (!block_grads) return;
        const auto store = [&](const V* from, Int at, Int size) {
            T* to = block_grads + at - grads_begin + k * size;
            Int i = 0;
            for (; i + lanes<T> <= size; i += lanes<T>) Whole<T>{}.store(to + i, sums_of_lanes(from + i));
            for (; i < size; ++i) to[i] = sum_of_lanes(from[i]);
        };
        if (l.depthwise) store(taps, l.depthwise_grad_at, l.ins * l.taps());
        store(matrix, l.pointwise_grad_at, l.ins * l.outs);
    }

    void second_layers(
        const Source& source, const std::vector<Plan<T>>& plans, const std::vector<std::vector<T>>& mixes,
        std::vector<std::vector<T>>& middle_mixes, V* middle_grads, const std::vector<Int>& middle_at,
        const BlockSums<T>& block_grads, Int grads_begin, T* weight_grads) const {
        const Layers layers(plans, true);
        if (!layers.count()) return;
        const State& out = cell.g.states[source.first];
        const Int edges = source.edges, channels = out.channels, count = edges * channels, border = layers.border;
        const LayerScratch<T> scratch(threads, layers.layers, true);
        const VectorScratch<T> own(threads, channels * out.height * (out.width + 2 * border)), y_grads(threads, out.size());
        std::vector<std::vector<T>> rescales;
        for (Int index : layers.branches) rescales.push_back(rescale_of<T>(plans[index].middle));
        const BlockSums<double> sums(cell.blocks, layers.count() * 2 * count);
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(3)
        for (Int n = 0; n < cell.blocks; ++n)
            for (Int index = 0; index < layers.count(); ++index)
                for (Int k = 0; k < edges; ++k) {
                    const Int b = layers.branches[index];
                    const Plan<T>& p = plans[b];
                    V *y = own.mine(), *y_grad = y_grads.mine();
                    const V* middle = images.middle(p, k, n);
                    const T *scale = rescales[index].data() + k * channels, *shift = scale + count;
                    if (weight_grads) rectify<T>(y, middle, out, border, scale, shift);
                    std::fill_n(y_grad, out.size(), V{});
                    const LayerPass<T> pass(*layers.layers[index], weights, k, y, border);
                    layer(
                        pass,
                        mixed(
                            grads.state(source.first + k, n), images.term(p, source, k, n), mixes[b].data() + k * channels,
                            count, pass.l, n),
                        scratch, y_grad, k, weight_grads ? block_grads.of(n) : nullptr, grads_begin);
                    V* to = middle_grads + middle_at[b] + (k * cell.blocks + n) * out.size();
                    double* here = sums.of(n) + index * 2 * count + k * channels;
                    for (Int c = 0; c < channels; ++c) {
                        const Int at = c * out.plane();
                        for (Int i = 0; i < out.plane(); ++i)
                            to[at + i] = scale[c] * middle[at + i] + shift[c] > 0 ? y_grad[at + i] : V{};
                        Wide<T> total{}, product{};
                        dot<T, true>(to + at, middle + at, out.plane(), total, product);
                        here[c] = sum_of_lanes(total);
                        here[count + c] = sum_of_lanes(product);
                    }
                }
        const std::vector<double> totals = sums.total();
        for (Int index = 0; index < layers.count(); ++index) {
            const Group& group = plans[layers.branches[index]].middle;
            const double* total = totals.data() + index * 2 * count;
            std::vector<double> centred(count);
            for (Int i = 0; i < count; ++i) {
                centred[i] = total[count + i] - group.mean[i] * total[i];
                if (!weight_grads || !group.norm.affine) continue;
                weight_grads[group.affine_grad_at + i] = group.scale[i] * centred[i];
                weight_grads[group.affine_grad_at + count + i] = total[i];
            }
            middle_mixes[layers.branches[index]] =
                mix_of<T>(group, [](Int) { return 1.0; }, total, centred.data());
        }
    }

    void first_layers(
        const Source& source, const std::vector<Plan<T>>& plans, const std::vector<std::vector<T>>& mixes,
        const std::vector<std::vector<T>>& middle_mixes, const V* middle_grads, const std::vector<Int>& middle_at,
        const BlockSums<T>& block_grads, Int grads_begin, bool needs_state, bool needs_weights) const {
        const Layers layers(plans, false);
        const State &in = cell.g.states[source.state], &out = cell.g.states[source.first];
        const Int edges = source.edges, channels = out.channels, count = edges * channels, border = layers.border;
        const Int size = in.channels * in.height * (in.width + 2 * border);
        const LayerScratch<T> scratch(threads, layers.layers, true);
        const VectorScratch<T> ys(threads, needs_weights && layers.count() ? size : 0);
        const VectorScratch<T> y_grads(threads, needs_state ? in.size() : 0), pool_grads(threads, out.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (Int n = 0; n < cell.blocks; ++n) {
            const V* x = images.state(source.state, n);
            V *y = ys.mine(), *y_grad = needs_state ? y_grads.mine() : nullptr;
            if (needs_weights && layers.count()) rectify<T>(y, x, in, border, nullptr, nullptr);
            if (y_grad) std::fill_n(y_grad, in.size(), V{});
            for (Int index = 0; index < layers.count(); ++index)
                for (Int k = 0; k < edges; ++k) {
                    const Int b = layers.branches[index];
                    const Plan<T>& p = plans[b];
                    const LayerPass<T> pass(*layers.layers[index], weights, k, y, border);
                    const Int begin = pass.l.begin * out.plane();
                    const bool middle = p.middle_at.exists();
                    const V* grad = middle ? middle_grads + middle_at[b] + (k * cell.blocks + n) * out.size()
                                           : grads.state(source.first + k, n);
                    const V* term = middle ? images.middle(p, k, n) : images.term(p, source, k, n);
                    const T* mix = (middle ? middle_mixes : mixes)[b].data() + k * channels + pass.l.begin;
                    layer(
                        pass, mixed(grad + begin, term + begin, mix, count, pass.l, n), scratch, y_grad, k,
                        needs_weights ? block_grads.of(n) : nullptr, grads_begin);
                }
            if (!needs_state) continue;
            V* to = grads.state(source.state, n);
            for (Int i = 0; layers.count() && i < in.size(); ++i) to[i] += x[i] > 0 ? y_grad[i] : V{};
            for (Int b = 0; b < Int(plans.size()); ++b)
                if (plans[b].branch->kind <= AVERAGE_POOL) shared_term(source, plans[b], mixes[b], n, pool_grads.mine());
        }
    }

    // Adds the gradient of a state through a term that the edges share.
    void shared_term(const Source& source, const Plan<T>& p, const std::vector<T>& mix, Int n, V* term_grad) const {
        const State &in = cell.g.states[source.state], &out = p.out;
        const Int count = source.edges * out.channels;
        const V mask = cell.mask(n);
        for (Int c = 0; c < out.channels; ++c) {
            const V* term = images.term(p, source, 0, n) + c * out.plane();
            double of_term = 0, constant = 0;
            for (Int k = 0; k < source.edges; ++k) {
                of_term += mix[count + k * out.channels + c];
                constant += mix[2 * count + k * out.channels + c];
            }
            for (Int i = 0; i < out.plane(); ++i)
                term_grad[i] = p.norm.norm.present ? mask * (T(of_term) * term[i] + T(constant)) : V{};
            for (Int k = 0; k < source.edges; ++k) {
                const V* grad = grads.state(source.first + k, n) + c * out.plane();
                const T by = mix[k * out.channels + c];
                for (Int i = 0; i < out.plane(); ++i) term_grad[i] += by * grad[i];
            }
            V* to = grads.state(source.state, n) + c * in.plane();
            const V* x = images.state(source.state, n) + c * in.plane();
            if (p.branch->kind != SAME) {
                add_pool_grad<T>(*p.branch, in, out, x, term_grad, to);
                continue;
            }
            for (Int i = 0; i < out.plane(); ++i) to[i] += term_grad[i];
        }
    }
};

// What is null in input_grads, and the weights' gradients of sources that need none, are not computed.
template <typename T>
void backward(
    const Graph& g, const Strided<const T>* inputs, Strided<const T> output, Strided<const T> grad, T* const* kept,
    const double* numbers, const T* const* weights, const T* rows, const Strided<T>* input_grads,
    const std::int64_t* needs_weights, T* weight_grads, double* row_grads, int threads) {
    Cell<T> cell(g);
    cell.place(const_cast<double*>(numbers));
    const Images<T> images(cell, kept);
    images.pack_inputs(inputs, threads);
    const Images<T> grads(cell, nullptr);
#pragma omp parallel for num_threads(threads) collapse(2)
    for (Int s = 0; s < g.outputs; ++s)
        for (Int n = 0; n < cell.blocks; ++n) {
            const Int state = g.states_count - g.outputs + s;
            pack<T>(of_output(output, g, s), images.state(state, n), g.states[state], g.batch, n);
            pack<T>(of_output(grad, g, s), grads.state(state, n), g.states[state], g.batch, n);
        }
    std::vector<char> needed(g.states_count, 1);
    for (Int s = 0; s < g.inputs; ++s) needed[s] = input_grads[s].data != nullptr;
    for (Int s = g.inputs; s < g.states_count - g.outputs; ++s) needed[s] = 0;
    for (Int s = 0; s < g.sources_count; ++s)
        for (Int k = 0; k < g.sources[s].edges; ++k)
            needed[g.sources[s].first + k] |= needed[g.sources[s].state] || needs_weights[s];
    const BackwardPass<T> pass{{cell, images, weights, rows, threads}, grads};
    for (Int s = g.sources_count; s-- > 0;)
        pass.source(
            g.sources[s], cell.plans[s], cell.grads_begin[s], cell.grads_begin[s + 1] - cell.grads_begin[s],
            needed[g.sources[s].state], needs_weights[s] ? weight_grads : nullptr, row_grads);
#pragma omp parallel for num_threads(threads) collapse(2)
    for (Int s = 0; s < g.inputs; ++s)
        for (Int n = 0; n < cell.blocks; ++n)
            if (input_grads[s].data) unpack<T>(input_grads[s], grads.state(s, n), g.states[s], g.batch, n);
}

}  // namespace

#define CELLS(T, suffix)                                                                                               \
    extern "C" void cell_sizes_##suffix(const Graph* g, std::int64_t* sizes, std::int64_t* arrays) {                   \
        const Cell<T> cell(*g);                                                                                        \
        sizes[0] = cell.numbers;                                                                                       \
        sizes[1] = cell.weights;                                                                                       \
        sizes[2] = cell.grads;                                                                                         \
        sizes[3] = cell.running;                                                                                       \
        sizes[4] = cell.arrays.size();                                                                                 \
        for (std::size_t i = 0; arrays && i < cell.arrays.size(); ++i) arrays[i] = cell.arrays[i] * lanes<T>;          \
    }                                                                                                                  \
    extern "C" int cell_forward_##suffix(                                                                              \
        const Graph* g, const Strided<const T>* inputs, const Strided<T>* output, T* const* kept, double* numbers,     \
        const T* const* weights, void* const* running, const T* rows, int threads) {                                   \
        return failed([&] { forward<T>(*g, inputs, *output, kept, numbers, weights, running, rows, threads); });      \
    }                                                                                                                  \
    extern "C" int cell_backward_##suffix(                                                                             \
        const Graph* g, const Strided<const T>* inputs, const Strided<const T>* output, const Strided<const T>* grad,  \
        T* const* kept, const double* numbers, const T* const* weights, const T* rows, const Strided<T>* input_grads,  \
        const std::int64_t* needs_weights, T* weight_grads, double* row_grads, int threads) {                          \
        return failed([&] {                                                                                            \
            backward<T>(                                                                                               \
                *g, inputs, *output, *grad, kept, numbers, weights, rows, input_grads, needs_weights, weight_grads,   \
                row_grads, threads);                                                                                   \
        });                                                                                                            \
    }

CELLS(float, float32)
CELLS(double, float64)
