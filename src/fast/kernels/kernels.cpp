// The kernels of src/fast/kernels/__init__.py, in float and double; build.py builds the library, __init__.py calls it.
//
// Images are channels_last. A thread takes a whole image and goes through it row by row, so that what lies between the
// input that is read and the output that is written (the rectified image, the depthwise output, its gradient) stays in
// the core's caches. Scratch images have their channels padded to a whole number of vectors and a border of zeros, so
// that the inner loops know neither edges nor remainders. Sums over the pixels of a row (in `dots`, over 32 pixels) have the
// type of the images, sums of rows and of images are double. Each image has its own sums, which are added in the order of
// the images: results do not depend on the number of threads.
//
// __init__.py checks all shapes and strides: nothing is checked here but memory. A function whose scratch memory cannot be
// allocated returns 1.

#include "vectors.h"

namespace {

// Whether a thread of a parallel region got no memory. An exception must not leave the region, and all of its threads must
// reach its loop: they then loop over no images, and `check` throws behind the region.
class Failure {
    bool failed = false;

  public:
    Int batch_if_all(std::initializer_list<const void*> buffers, Int batch) {
        if (std::find(buffers.begin(), buffers.end(), nullptr) != buffers.end()) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp barrier
        return failed ? 0 : batch;
    }
    void check() const {
        if (failed) throw std::bad_alloc();
    }
};

struct Geometry {
    Int batch, height, width, out_height, out_width, channels, out_channels, edges, kernel, stride, padding, dilation;
};

// Images (edges, batch, height, width, channels): the steps from one to the next; `edge` is 0 where edges share them.
template <typename T>
struct Images {
    T* data;
    Int edge, image, line, pixel;
    T* row(Int k, Int n, Int i) const { return data + k * edge + n * image + i * line; }
};

// Inner loops. `padded` is from one scratch pixel to the next, `count` a number of pixels.

// The taps of a depthwise kernel: rows of `width` taps each, `spacing` pixels apart, that start at `rows`.
struct Taps {
    Int width, spacing;
    std::vector<Int> rows;
};

// Those of the rows, from `first` to before `last`, that read within the image: what lies above and below it is zero.
struct TapsWithin {
    const Taps& taps;
    Int first = 0, last;

    // The first row of taps reads row `row` of the image, each further one `step` rows below.
    TapsWithin(const Taps& taps, Int row, Int step, Int height) : taps(taps) {
        const Int count = taps.rows.size();
        for (; first < count && row < 0; row += step) ++first;
        for (last = first; last < count && row < height; row += step) ++last;
    }
};

// Calls f with the width and the spacing of taps as constants, for those of the paper's operations.
template <typename F>
inline bool for_known(const Taps& taps, F f) {
    using std::integral_constant;
    if (taps.width == 3 && taps.spacing == 1) return f(integral_constant<int, 3>{}, integral_constant<int, 1>{}), true;
    if (taps.width == 3 && taps.spacing == 2) return f(integral_constant<int, 3>{}, integral_constant<int, 2>{}), true;
    if (taps.width == 5 && taps.spacing == 1) return f(integral_constant<int, 5>{}, integral_constant<int, 1>{}), true;
    if (taps.width == 5 && taps.spacing == 2) return f(integral_constant<int, 5>{}, integral_constant<int, 2>{}), true;
    return false;
}

// P pixels by rows of K taps, D pixels apart: each pixel of the input is read once for all taps of a row.
template <typename T, bool add, int P, int K, int D>
inline void taps_block(T* out, Int out_step, const T* in, const TapsWithin& within, const T* weights, Int padded) {
    Vector<T> sum[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p] = add ? at(out + p * out_step) : Vector<T>{};
    for (Int row = within.first; row < within.last; ++row) {
        Vector<T> w[K];
#pragma GCC unroll 8
        for (int t = 0; t < K; ++t, weights += padded) {
            w[t] = at(weights);
            IN_REGISTER(w[t]);
        }
        const T* x = in + within.taps.rows[row];
#pragma GCC unroll 16
        for (int i = 0; i < P + D * (K - 1); ++i, x += padded) {
            Vector<T> value = at(x);
            IN_REGISTER(value);
#pragma GCC unroll 8
            for (int t = 0; t < K; ++t)
                if (0 <= i - D * t && i - D * t < P) sum[i - D * t] += w[t] * value;
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) at(out + p * out_step) = sum[p];
}

// out[p] (+)= sum over taps of their weight times in[p * in_step + tap], each channel for itself.
template <typename T, bool add>
void taps_of_row(
    T* out, Int out_step, const T* in, Int in_step, const TapsWithin& within, const T* weights, Int count, Int padded) {
    const Taps& taps = within.taps;
    weights += within.first * taps.width * padded;
    for (Int c = 0; c < padded; c += lanes<T>) {
        Int p = 0;
        if (in_step == padded)
            for_known(taps, [&](auto width, auto spacing) {
                constexpr int K = decltype(width)::value, D = decltype(spacing)::value;
                for (; p + 8 <= count; p += 8)
                    taps_block<T, add, 8, K, D>(
                        out + p * out_step + c, out_step, in + p * padded + c, within, weights + c, padded);
                for (; p + 4 <= count; p += 4)
                    taps_block<T, add, 4, K, D>(
                        out + p * out_step + c, out_step, in + p * padded + c, within, weights + c, padded);
            });
        for (; p < count; p += 4) {
            const int left = std::min<Int>(4, count - p);
            Vector<T> sum[4];
            T* to = out + p * out_step + c;
            for (int q = 0; q < 4; ++q) sum[q] = add && q < left ? at(to + q * out_step) : Vector<T>{};
            const T* w = weights + c;
            for (Int row = within.first; row < within.last; ++row)
                for (Int t = 0; t < taps.width; ++t, w += padded) {
                    const T* x = in + p * in_step + taps.rows[row] + t * taps.spacing * padded + c;
                    if (left == 4) {
#pragma GCC unroll 4
                    for (int q = 0; q < 4; ++q) sum[q] += at(w) * at(x + q * in_step);
                    } else for (int q = 0; q < left; ++q) sum[q] += at(w) * at(x + q * in_step);
                }
            for (int q = 0; q < left; ++q) at(to + q * out_step) = sum[q];
        }
    }
}

// out[p] = in[p] times matrix (rows, out_padded); eight sums hide the latency of one.
template <typename T, int P, int V>
inline void product_block(T* out, Int out_padded, const T* in, Int padded, const T* matrix, Int rows) {
    Vector<T> sum[P][V] = {};
    for (Int r = 0; r < rows; ++r) {
        Vector<T> m[V];
        for (int v = 0; v < V; ++v) {
            m[v] = at(matrix + r * out_padded + v * lanes<T>);
            IN_REGISTER(m[v]);
        }
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < V; ++v) sum[p][v] += in[p * padded + r] * m[v];
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) at(out + p * out_padded + v * lanes<T>) = sum[p][v];
}

template <typename T, int P, int V>
void product_columns(T* out, Int out_padded, const T* in, Int padded, const T* matrix, Int rows, Int count) {
    Int p = 0;
    for (; p + P <= count; p += P)
        product_block<T, P, V>(out + p * out_padded, out_padded, in + p * padded, padded, matrix, rows);
    for (; p < count; ++p)
        product_block<T, 1, V>(out + p * out_padded, out_padded, in + p * padded, padded, matrix, rows);
}

template <typename T>
void product(T* out, Int out_padded, const T* in, Int padded, const T* matrix, Int rows, Int count) {
    Int c = 0;
    for (; c + 2 * lanes<T> <= out_padded; c += 2 * lanes<T>)
        product_columns<T, 4, 2>(out + c, out_padded, in, padded, matrix + c, rows, count);
    if (c < out_padded) product_columns<T, 8, 1>(out + c, out_padded, in, padded, matrix + c, rows, count);
}

// out (rows, padded) += sum over pixels of left[p] (rows) times right[p] (padded); rows is a multiple of 4.
template <typename T, int V>
inline void outer_block(T* out, const T* left, Int left_padded, const T* right, Int padded, Int count) {
    Vector<T> sum[4][V];
    for (int r = 0; r < 4; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = at(out + r * padded + v * lanes<T>);
    for (Int p = 0; p < count; ++p) {
        Vector<T> x[V];
        for (int v = 0; v < V; ++v) {
            x[v] = at(right + p * padded + v * lanes<T>);
            IN_REGISTER(x[v]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r)
            for (int v = 0; v < V; ++v) sum[r][v] += left[p * left_padded + r] * x[v];
    }
    for (int r = 0; r < 4; ++r)
        for (int v = 0; v < V; ++v) at(out + r * padded + v * lanes<T>) = sum[r][v];
}

template <typename T>
void outer(T* out, const T* left, Int left_padded, const T* right, Int padded, Int count) {
    for (Int r = 0; r < left_padded; r += 4) {
        Int c = 0;
        for (; c + 2 * lanes<T> <= padded; c += 2 * lanes<T>)
            outer_block<T, 2>(out + r * padded + c, left + r, left_padded, right + c, padded, count);
        if (c < padded) outer_block<T, 1>(out + r * padded + c, left + r, left_padded, right + c, padded, count);
    }
}

// Some rows of pixels of two images.
template <typename T>
struct Rows {
    const T *grad, *in;
    Int grad_next, in_next, in_step, rows, columns;
};

// R rows of K taps, D pixels apart, by four pixels at a time.
template <typename T, int R, int K, int D>
inline void tap_sums_block(T* sums, const Rows<T>& pixels, const Int* taps, Int c, Int padded) {
    Vector<T> sum[R][K];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < K; ++t) sum[r][t] = at(sums + (r * K + t) * padded);
    for (Int i = 0; i < pixels.rows; ++i)
        for (Int p = 0; p + 4 <= pixels.columns; p += 4) {
            const T* grad = pixels.grad + i * pixels.grad_next + p * padded + c;
            const T* in = pixels.in + i * pixels.in_next + p * padded + c;
            Vector<T> g[4];
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) {
                g[q] = at(grad + q * padded);
                IN_REGISTER(g[q]);
            }
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const T* x = in + taps[r];
#pragma GCC unroll 16
                for (int j = 0; j < 4 + D * (K - 1); ++j, x += padded) {
                    Vector<T> value = at(x);
                    IN_REGISTER(value);
#pragma GCC unroll 8
                    for (int t = 0; t < K; ++t)
                        if (0 <= j - D * t && j - D * t < 4) sum[r][t] += g[j - D * t] * value;
                }
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < K; ++t) at(sums + (r * K + t) * padded) = sum[r][t];
}

// Of each tap: sums += sum over pixels of grad[p] * in[p * in_step + tap].
template <typename T>
void tap_sums(T* sums, const Rows<T>& pixels, const Taps& taps, Int padded) {
    for (Int c = 0; c < padded; c += lanes<T>) {
        Int done = 0;
        if (pixels.in_step == padded)
            for_known(taps, [&](auto width, auto spacing) {
                constexpr int K = decltype(width)::value, D = decltype(spacing)::value;
                constexpr int R = 10 / K;  // nine or ten sums at a time
                done = pixels.columns / 4 * 4;
                Int r = 0;
                for (; r + R <= K; r += R)
                    tap_sums_block<T, R, K, D>(sums + r * K * padded + c, pixels, taps.rows.data() + r, c, padded);
                for (; r < K; ++r)
                    tap_sums_block<T, 1, K, D>(sums + r * K * padded + c, pixels, taps.rows.data() + r, c, padded);
            });
        if (done == pixels.columns) continue;
        T* target = sums + c;
        for (const Int row : taps.rows)
            for (Int t = 0; t < taps.width; ++t, target += padded) {
                Vector<T> sum = at(target);
                for (Int i = 0; i < pixels.rows; ++i) {
                    const T* grad = pixels.grad + i * pixels.grad_next + c;
                    const T* x = pixels.in + i * pixels.in_next + row + t * taps.spacing * padded + c;
                    for (Int p = done; p < pixels.columns; ++p)
                        sum += at(grad + p * padded) * at(x + p * pixels.in_step);
                }
                at(target) = sum;
            }
    }
}

// Calls f with the first of P pixels at a time, then of one at a time, and how many as a constant.
template <int P, typename F>
inline void for_blocks(Int count, F f) {
    Int p = 0;
    for (; p + P <= count; p += P) f(p, std::integral_constant<int, P>{});
    for (; p < count; ++p) f(p, std::integral_constant<int, 1>{});
}

// A sum that is added to in four places in turn: each addition waits for the one before it in its place.
template <typename T>
struct InTurn {
    Vector<T> sums[4] = {};
    Vector<T>& operator[](int q) { return sums[q]; }
    Vector<T> total() const { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }
};

template <typename T>
inline void add_to(double* totals, Vector<T> sum) {
    typename Lanes<T>::Doubles wide;
    std::memcpy(&wide, totals, sizeof wide);
    wide += __builtin_convertvector(sum, typename Lanes<T>::Doubles);
    std::memcpy(totals, &wide, sizeof wide);
}

// Sums that are kept for each image, and added up in the order of the images.
template <typename T>
struct Partial {
    Int count;
    Buffer<T> sums;
    Partial(Int batch, Int count) : count(count), sums(batch * count) {}
    T* of(Int n) const { return sums.data + n * count; }

    // Takes over the sums of one image: so many rows of channels, padded and `next` apart here.
    template <typename From>
    void set(Int n, const From* rows, Int rows_count, Int padded, Int channels, Int first, Int next) const {
        for (Int r = 0; r < rows_count; ++r)
            std::copy_n(rows + r * padded, channels, of(n) + first + r * next);
    }

    template <typename To>
    void add_up(Int batch, To* totals, int threads) const {
        constexpr Int some = 512;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (Int first = 0; first < count; first += some) {
            const Int last = std::min(first + some, count);
            double total[some] = {};
            for (Int n = 0; n < batch; ++n)
                for (Int i = first; i < last; ++i) total[i - first] += of(n)[i];
            std::copy_n(total, last - first, totals + first);
        }
    }
};

// Convolutions: pointwise(depthwise(max(0, scale * x + shift)))

// scale * x + shift of some channels of an edge; (2, edges, channels), or null for 1 and 0.
template <typename T>
struct Rescale {
    Vector<T> scale = Vector<T>{} + 1, shift{};
    template <typename V>
    Rescale(const T* values, Int k, Int c, const Geometry& g, V v) {
        if (!values) return;
        scale = v.load(values + k * g.channels + c);
        shift = v.load(values + (g.edges + k) * g.channels + c);
    }
    Vector<T> operator()(Vector<T> x) const { return x * scale + shift; }
};

// The rectified input with its border of zeros.
template <typename T>
struct Rectified {
    Int padded, border, rows, columns;
    Taps taps;  // from the first pixel that an output pixel sees

    explicit Rectified(const Geometry& g)
        : padded(padded_to_vectors<T>(g.channels)), border(g.padding), taps{g.kernel, g.dilation, {}} {
        const Int reach = g.dilation * (g.kernel - 1) + 1;
        rows = std::max(g.height + border, (g.out_height - 1) * g.stride + reach);
        columns = std::max(g.width + border, (g.out_width - 1) * g.stride + reach);
        for (Int i = 0; i < g.kernel; ++i) taps.rows.push_back(i * columns * g.dilation * padded);
    }

    Int size() const { return rows * columns * padded; }
    Int inside(Int i) const { return ((i + border) * columns + border) * padded; }  // row i of the input
    Int seen(Int i, const Geometry& g) const { return i * g.stride * columns * padded; }  // by output row i
    TapsWithin taps_within(Int i, const Geometry& g) const { return {taps, i * g.stride - border, g.dilation, g.height}; }

    void fill(T* y, const Images<const T>& x, const T* rescale, Int k, Int n, const Geometry& g) const {
        fill_rows(y, x, rescale, k, n, g, 0, g.height);
    }

    // Fills in the rows that output row i sees.
    void fill_seen(T* y, const Images<const T>& x, const T* rescale, Int k, Int n, Int i, const Geometry& g) const {
        const Int top = i * g.stride - border, bottom = top + g.dilation * (g.kernel - 1) + 1;
        fill_rows(y, x, rescale, k, n, g, std::max<Int>(top, 0), std::min(bottom, g.height));
    }

    void fill_rows(
        T* y, const Images<const T>& x, const T* rescale, Int k, Int n, const Geometry& g, Int first, Int last) const {
        for (Int i = first; i < last; ++i) {
            const T* from = x.row(k, n, i);
            T* to = y + inside(i);
            for_vectors<T>(g.channels, [&](Int c, auto v) {
                const Rescale<T> scaled(rescale, k, c, g, v);
                for (Int p = 0; p < g.width; ++p) {
                    const Vector<T> value = scaled(v.load(from + p * x.pixel + c));
                    at(to + p * padded + c) = value < 0 ? Vector<T>{} : value;  // nan stays nan
                }
            });
        }
    }
};

// Weights as the inner loops read them: channels last, padded.
template <typename T>
struct Weights {
    Int taps, padded, out_padded;
    Buffer<T> depthwise;  // (edges, taps, padded)
    Buffer<T> forward;    // (edges, padded, out_padded)
    Buffer<T> backward;   // (edges, out_padded, padded)

    // Of each edge: depthwise (channels, taps), all null for none, and pointwise (out_channels, channels).
    Weights(const Geometry& g, Int padded, const T* const* given, const T* const* pointwise)
        : taps(g.kernel * g.kernel),
          padded(padded),
          out_padded(padded_to_vectors<T>(g.out_channels)),
          depthwise(g.edges * taps * padded),
          forward(g.edges * padded * out_padded),
          backward(g.edges * out_padded * padded) {
        for (Int k = 0; k < g.edges; ++k)
            for (Int c = 0; c < g.channels; ++c) {
                for (Int t = 0; given[k] && t < taps; ++t)
                    depthwise.data[(k * taps + t) * padded + c] = given[k][c * taps + t];
                for (Int o = 0; o < g.out_channels; ++o) {
                    const T w = pointwise[k][o * g.channels + c];
                    forward.data[(k * padded + c) * out_padded + o] = w;
                    backward.data[(k * out_padded + o) * padded + c] = w;
                }
            }
    }
    const T* of(Int k) const { return depthwise.data + k * taps * padded; }
};

// The mean of `count` pixels of some channels, or 0 where it is not finite: a shift that is near to all pixels.
template <typename T>
inline Vector<T> finite_mean(Vector<T> sum, Int count) {
    Vector<T> mean = sum / T(count);
    for (Int i = 0; i < lanes<T>; ++i)
        if (!std::isfinite(mean[i])) mean[i] = 0;
    return mean;
}

// Turns what `moments` (3, channels) begins with, sums over pixels of values less `shift` and of their squares, into the
// mean of those, the sum of squared deviations from it, and the shift.
template <typename T>
inline void finish_moments(double* moments, const T* shift, Int channels, Int pixels) {
    for (Int c = 0; c < channels; ++c) {
        const double total = moments[c], mean = total / pixels, deviations = moments[channels + c] - total * mean;
        moments[c] = mean;
        moments[channels + c] = deviations < 0 ? 0 : deviations;  // nan stays nan
        moments[2 * channels + c] = shift[c];
    }
}

// Writes z less a shift of each channel, and `moments` (3, edges * out_channels) of that. A BatchNorm follows, which no
// shift changes; but a variance is a difference of sums of squares, and means nothing where a large mean is in both. The
// shift is the mean over the middle row of the first image.
template <typename T>
void convolve(
    const Geometry& g, Images<const T> x, const T* rescale, const T* const* depthwise, const T* const* pointwise, Images<T> z,
    double* moments, int threads) {
    const Rectified<T> rectified(g);
    const Weights<T> weights(g, rectified.padded, depthwise, pointwise);
    const Int padded = rectified.padded, out_padded = weights.out_padded;
    const Partial<double> partial(g.batch, 2 * g.edges * g.out_channels);
    const auto compute_row = [&](T* row, T* d, const T* y, Int k, Int i) {
        const T* seen = y + rectified.seen(i, g);
        if (depthwise[0])
            taps_of_row<T, false>(
                d, padded, seen, g.stride * padded, rectified.taps_within(i, g), weights.of(k), g.out_width, padded);
        product(
            row, out_padded, depthwise[0] ? d : seen, padded, weights.forward.data + k * padded * out_padded, g.channels,
            g.out_width);
    };
    const Buffer<T> shift(g.edges * g.out_channels);
    {
        Buffer<T> y(rectified.size()), d(g.out_width * padded), row(g.out_width * out_padded);
        const Int middle = g.out_height / 2;
        for (Int k = 0; k < g.edges; ++k) {
            if (k == 0 || x.edge) rectified.fill_seen(y.data, x, rescale, k, 0, middle, g);
            compute_row(row.data, d.data, y.data, k, middle);
            for_vectors<T>(g.out_channels, [&](Int c, auto v) {
                Vector<T> sum{};
                for (Int p = 0; p < g.out_width; ++p) sum += at(row.data + p * out_padded + c);
                v.store(shift.data + k * g.out_channels + c, finite_mean<T>(sum, g.out_width));
            });
        }
    }
    Failure failure;
#pragma omp parallel num_threads(threads)
    {
        Buffer<T> y(rectified.size(), std::nothrow), d(g.out_width * padded, std::nothrow);
        Buffer<T> row(g.out_width * out_padded, std::nothrow);
        Buffer<double> totals(2 * out_padded, std::nothrow);
        const Int batch = failure.batch_if_all({y.data, d.data, row.data, totals.data}, g.batch);
#pragma omp for schedule(dynamic)
        for (Int n = 0; n < batch; ++n)
            for (Int k = 0; k < g.edges; ++k) {
                if (k == 0 || x.edge) rectified.fill(y.data, x, rescale, k, n, g);
                std::fill_n(totals.data, 2 * out_padded, 0.0);
                for (Int i = 0; i < g.out_height; ++i) {
                    compute_row(row.data, d.data, y.data, k, i);
                    T* to = z.row(k, n, i);
                    for_vectors<T>(g.out_channels, [&](Int c, auto v) {
                        const Vector<T> less = v.load(shift.data + k * g.out_channels + c);
                        InTurn<T> sum, square;
                        for_blocks<4>(g.out_width, [&](Int p, auto size) {
#pragma GCC unroll 4
                            for (int q = 0; q < decltype(size)::value; ++q) {
                                const Vector<T> value = at(row.data + (p + q) * out_padded + c) - less;
                                sum[q] += value;
                                square[q] += value * value;
                                v.store(to + (p + q) * z.pixel + c, value);
                            }
                        });
                        add_to<T>(totals.data + c, sum.total());
                        add_to<T>(totals.data + out_padded + c, square.total());
                    });
                }
                partial.set(
                    n, totals.data, 2, out_padded, g.out_channels, k * g.out_channels, g.edges * g.out_channels);
            }
    }
    failure.check();
    partial.add_up(g.batch, moments, threads);
    finish_moments(moments, shift.data, g.edges * g.out_channels, g.batch * g.out_height * g.out_width);
}

// The depthwise convolution turned round. With a stride, an input pixel is reached by those taps only that its place
// within the stride allows; for each such place here are the taps, and where in the gradient's image they read.
template <typename T>
struct Transposed {
    Int border, rows, columns;
    struct Place {
        Taps taps;
        Int first, step;  // rows of the gradient, from the first tap and from tap to tap, for the first input row
        Buffer<T> weights;  // (edges, taps, padded)
        const T* of(Int k, Int padded) const { return weights.data + k * taps.width * Int(taps.rows.size()) * padded; }
    };
    std::vector<Place> places;  // (stride, stride)

    Transposed(const Geometry& g, const Weights<T>& weights) {
        std::vector<std::vector<std::pair<Int, Int>>> reach(g.stride);  // (pixel of the gradient, tap), ascending
        Int low = 0, high = 0;
        for (Int r = 0; r < g.stride; ++r)
            for (Int t = g.kernel; t-- > 0;) {
                const Int distance = r + g.padding - t * g.dilation;
                if (distance % g.stride) continue;
                reach[r].emplace_back(distance / g.stride, t);
                low = std::min(low, distance / g.stride);
                high = std::max(high, distance / g.stride);
            }
        border = -low;
        rows = border + std::max(g.out_height, (g.height - 1) / g.stride + 1 + high);
        columns = border + std::max(g.out_width, (g.width - 1) / g.stride + 1 + high);
        const Int padded = weights.padded;
        for (const auto& vertical : reach)
            for (const auto& horizontal : reach) {
                const Int width = vertical.empty() ? 0 : horizontal.size();
                Place place{{width, 1, {}}, 0, 1, Buffer<T>(g.edges * vertical.size() * width * padded)};
                if (width > 1) place.taps.spacing = horizontal[1].first - horizontal[0].first;
                if (!vertical.empty()) place.first = vertical[0].first;
                if (vertical.size() > 1) place.step = vertical[1].first - vertical[0].first;
                T* to = place.weights.data;
                for (const auto& [row, i] : vertical)
                    if (width) place.taps.rows.push_back(((border + row) * columns + border + horizontal[0].first) * padded);
                for (Int k = 0; k < g.edges; ++k)
                    for (const auto& [row, i] : vertical)
                        for (const auto& [column, j] : horizontal)
                            to = std::copy_n(weights.of(k) + (i * g.kernel + j) * padded, padded, to);
                places.push_back(std::move(place));
            }
    }
    Int row(Int i) const { return i * columns; }
};

// The gradient of z is mix[0] * grad + mix[1] * z + mix[2], each (edges, out_channels). Where all edges share x, that of
// x is written to x_grad, or added. Where each has its own, that of scale * x + shift is written there, and to sums (2, edges,
// channels) its sum and that of its product with x. weight_grads are, for each edge, that of depthwise (channels, taps)
// and that of pointwise (out_channels, channels). What is null is left out.
template <typename T>
void convolve_backward(
    const Geometry& g, Images<const T> grad, Images<const T> z, const T* mix, Images<const T> x, const T* rescale,
    const T* const* depthwise, const T* const* pointwise, Images<T> x_grad, bool add, double* sums, T* weight_grads,
    int threads) {
    const Rectified<T> rectified(g);
    const Weights<T> weights(g, rectified.padded, depthwise, pointwise);
    const Transposed<T> transposed(g, weights);
    const Int padded = rectified.padded, out_padded = weights.out_padded, taps = weights.taps;
    const Int band = std::max<Int>(1, 32 / g.out_width);  // rows at a time: sums stay in registers, pixels in cache
    const Int edge_weights = (taps + g.out_channels) * g.channels;
    const Partial<double> partial(g.batch, sums ? 2 * g.edges * g.channels : 0);
    const Partial<T> partial_grads(g.batch, weight_grads ? g.edges * edge_weights : 0);
    Failure failure;
#pragma omp parallel num_threads(threads)
    {
        Buffer<T> y(rectified.size(), std::nothrow), d(band * g.out_width * padded, std::nothrow);
        Buffer<T> z_grad(band * g.out_width * out_padded, std::nothrow);
        Buffer<T> d_grad(transposed.rows * transposed.columns * padded, std::nothrow);
        Buffer<T> y_grad(g.height * g.width * padded, std::nothrow);
        Buffer<T> tap_grads(taps * padded, std::nothrow), matrix_grad(out_padded * padded, std::nothrow);
        Buffer<double> totals(2 * padded, std::nothrow);
        const Int batch = failure.batch_if_all(
            {y.data, d.data, z_grad.data, d_grad.data, y_grad.data, tap_grads.data, matrix_grad.data, totals.data},
            g.batch);
#pragma omp for schedule(dynamic)
        for (Int n = 0; n < batch; ++n)
            for (Int k = 0; k < g.edges; ++k) {
                if (weight_grads) {
                    if (k == 0 || x.edge) rectified.fill(y.data, x, rescale, k, n, g);
                    std::fill_n(tap_grads.data, taps * padded, T(0));
                    std::fill_n(matrix_grad.data, out_padded * padded, T(0));
                }
                for (Int i = 0; i < g.out_height; i += band) {
                    const Int rows = std::min(band, g.out_height - i);
                    for_vectors<T>(g.out_channels, [&](Int c, auto v) {
                        const T* m = mix + k * g.out_channels + c;
                        const Int next = g.edges * g.out_channels;
                        const Vector<T> of_grad = v.load(m), of_z = v.load(m + next), constant = v.load(m + 2 * next);
                        for (Int r = 0; r < rows; ++r) {
                            const T *grads = grad.row(k, n, i + r) + c, *values = z.row(k, n, i + r) + c;
                            T* to = z_grad.data + r * g.out_width * out_padded + c;
                            for (Int p = 0; p < g.out_width; ++p)
                                at(to + p * out_padded) = of_grad * v.load(grads + p * grad.pixel) +
                                                          of_z * v.load(values + p * z.pixel) + constant;
                        }
                    });
                    T* d_grads = d_grad.data + (transposed.row(i + transposed.border) + transposed.border) * padded;
                    for (Int r = 0; r < rows; ++r)
                        product(
                            d_grads + transposed.row(r) * padded, padded, z_grad.data + r * g.out_width * out_padded,
                            out_padded, weights.backward.data + k * out_padded * padded, g.out_channels, g.out_width);
                    if (!weight_grads) continue;
                    const T* seen = y.data + rectified.seen(i, g);
                    if (depthwise[0]) {
                        for (Int r = 0; r < rows; ++r)
                            taps_of_row<T, false>(
                                d.data + r * g.out_width * padded, padded, seen + rectified.seen(r, g),
                                g.stride * padded, rectified.taps_within(i + r, g), weights.of(k), g.out_width, padded);
                        tap_sums(
                            tap_grads.data,
                            {d_grads, seen, transposed.row(1) * padded, rectified.seen(1, g), g.stride * padded, rows,
                             g.out_width},
                            rectified.taps, padded);
                    }
                    outer(
                        matrix_grad.data, z_grad.data, out_padded, depthwise[0] ? d.data : seen, padded,
                        rows * g.out_width);
                }
                if (weight_grads) {
                    T* to = partial_grads.of(n) + k * edge_weights;
                    for (Int c = 0; c < g.channels; ++c)
                        for (Int t = 0; t < taps; ++t) *to++ = tap_grads.data[t * padded + c];
                    for (Int o = 0; o < g.out_channels; ++o)
                        to = std::copy_n(matrix_grad.data + o * padded, g.channels, to);
                }
                if (!x_grad.data) continue;
                const bool first = k == 0 || sums, last = k + 1 == g.edges || sums;
                const T* y_grads = depthwise[0] || !(first && last) ? y_grad.data : d_grad.data;
                if (!depthwise[0] && y_grads == y_grad.data)  // edges add up; d_grad has no border then
                    for (Int p = 0; p < g.height * g.width * padded; ++p)
                        y_grad.data[p] = first ? d_grad.data[p] : y_grad.data[p] + d_grad.data[p];
                for (Int i = 0; depthwise[0] && i < g.height; ++i)
                    for (Int j = 0; j < std::min(g.stride, g.width); ++j) {
                        const auto& place = transposed.places[i % g.stride * g.stride + j];
                        const Int count = (g.width - j + g.stride - 1) / g.stride;
                        (first ? taps_of_row<T, false> : taps_of_row<T, true>)(
                            y_grad.data + (i * g.width + j) * padded, g.stride * padded,
                            d_grad.data + transposed.row(i / g.stride) * padded, padded,
                            {place.taps, i / g.stride + place.first, place.step, g.out_height}, place.of(k, padded),
                            count, padded);
                    }
                if (!last) continue;
                std::fill_n(totals.data, 2 * padded, 0.0);
                for (Int i = 0; i < g.height; ++i) {
                    const T* x_row = x.row(k, n, i);
                    T* to = x_grad.row(k, n, i);
                    for_vectors<T>(g.channels, [&](Int c, auto v) {
                        const T* from = y_grads + i * g.width * padded + c;
                        const Rescale<T> scaled(rescale, k, c, g, v);
                        InTurn<T> sum, product;
                        for_blocks<4>(g.width, [&](Int p, auto size) {
#pragma GCC unroll 4
                            for (int q = 0; q < decltype(size)::value; ++q) {
                                const Vector<T> here = v.load(x_row + (p + q) * x.pixel + c);
                                Vector<T> value = scaled(here) > 0 ? at(from + (p + q) * padded) : Vector<T>{};
                                if (sums) {
                                    sum[q] += value;
                                    product[q] += value * here;
                                } else if (add) {
                                    value += v.load(to + (p + q) * x_grad.pixel + c);
                                }
                                v.store(to + (p + q) * x_grad.pixel + c, value);
                            }
                        });
                        add_to<T>(totals.data + c, sum.total());
                        add_to<T>(totals.data + padded + c, product.total());
                    });
                }
                if (sums)
                    partial.set(n, totals.data, 2, padded, g.channels, k * g.channels, g.edges * g.channels);
            }
    }
    failure.check();
    if (sums) partial.add_up(g.batch, sums, threads);
    if (weight_grads) partial_grads.add_up(g.batch, weight_grads, threads);
}

// Pools

// The input of a pool with its border.
template <typename T>
struct Window {
    Int padded, rows, columns;

    explicit Window(const Geometry& g)
        : padded(padded_to_vectors<T>(g.channels)),
          rows(std::max(g.height + g.padding, (g.out_height - 1) * g.stride + g.kernel)),
          columns(std::max(g.width + g.padding, (g.out_width - 1) * g.stride + g.kernel)) {}

    Int size() const { return rows * columns * padded; }
    Int inside(Int i, const Geometry& g) const { return ((i + g.padding) * columns + g.padding) * padded; }
    Int seen(Int i, Int j, const Geometry& g) const { return (i * columns + j) * g.stride * padded; }

    void fill(T* to, const Images<const T>& x, Int n, const Geometry& g) const {
        for (Int i = 0; i < g.height; ++i)
            for_vectors<T>(g.channels, [&](Int c, auto v) {
                const T* from = x.row(0, n, i) + c;
                for (Int j = 0; j < g.width; ++j) at(to + inside(i, g) + j * padded + c) = v.load(from + j * x.pixel);
            });
    }
};

// Calls f(tap, its place in the window) for all taps; those of a 3x3 window are unrolled.
template <typename T, typename F>
inline void for_taps(const Window<T>& window, Int kernel, F f) {
    if (kernel == 3) {
#pragma GCC unroll 9
        for (int t = 0; t < 9; ++t) f(t, (t / 3 * window.columns + t % 3) * window.padded);
    } else {
        for (Int t = 0; t < kernel * kernel; ++t)
            f(t, (t / kernel * window.columns + t % kernel) * window.padded);
    }
}

template <typename T>
inline auto exceeds(Vector<T> value, Vector<T> best) {  // nan exceeds everything, as in torch
    return (value > best) | (value != value);
}

// How many pixels of the image the window of output pixel (i, j) has.
inline Int pixels_within(const Geometry& g, Int i, Int j) {
    const Int top = i * g.stride - g.padding, left = j * g.stride - g.padding;
    return (std::min(top + g.kernel, g.height) - std::max<Int>(top, 0)) *
           (std::min(left + g.kernel, g.width) - std::max<Int>(left, 0));
}

// Writes what is pooled; where `moments` (3, channels) are asked for, less a shift of each channel, as in `convolve`.
template <typename T>
void pool(const Geometry& g, bool largest, Images<const T> x, Images<T> y, double* moments, int threads) {
    const Window<T> window(g);
    const Vector<T> lowest = Vector<T>{} - std::numeric_limits<T>::infinity();
    const auto pooled = [&](const T* image, Int i, Int j, Int c) {
        const T* seen = image + window.seen(i, j, g) + c;
        Vector<T> result = largest ? lowest : Vector<T>{};
        if (largest)
            for_taps(window, g.kernel, [&](Int, Int place) {
                const Vector<T> value = at(seen + place);
                result = exceeds<T>(value, result) ? value : result;
            });
        else
            for_taps(window, g.kernel, [&](Int, Int place) { result += at(seen + place); });
        return largest ? result : result / T(pixels_within(g, i, j));
    };
    const Buffer<T> shift(g.channels);
    const Int padded = window.padded;
    const Partial<double> partial(g.batch, moments ? 2 * g.channels : 0);
    if (moments) {
        Buffer<T> image(window.size());
        if (largest) std::fill_n(image.data, window.size(), lowest[0]);
        window.fill(image.data, x, 0, g);
        for_vectors<T>(g.channels, [&](Int c, auto v) {
            Vector<T> sum{};
            for (Int j = 0; j < g.out_width; ++j) sum += pooled(image.data, g.out_height / 2, j, c);
            v.store(shift.data + c, finite_mean<T>(sum, g.out_width));
        });
    }
    Failure failure;
#pragma omp parallel num_threads(threads)
    {
        Buffer<T> image(window.size(), std::nothrow);
        Buffer<double> totals(2 * padded, std::nothrow);
        const Int batch = failure.batch_if_all({image.data, totals.data}, g.batch);
        if (largest && batch) std::fill_n(image.data, window.size(), lowest[0]);
#pragma omp for schedule(dynamic)
        for (Int n = 0; n < batch; ++n) {
            window.fill(image.data, x, n, g);
            std::fill_n(totals.data, 2 * padded, 0.0);
            for (Int i = 0; i < g.out_height; ++i)
                for_vectors<T>(g.channels, [&](Int c, auto v) {
                    const Vector<T> less = v.load(shift.data + c);
                    T* to = y.row(0, n, i) + c;
                    Vector<T> sum{}, square{};
                    for (Int j = 0; j < g.out_width; ++j) {
                        const Vector<T> value = pooled(image.data, i, j, c) - less;
                        sum += value;
                        square += value * value;
                        v.store(to + j * y.pixel, value);
                    }
                    if (!moments) return;
                    add_to<T>(totals.data + c, sum);
                    add_to<T>(totals.data + padded + c, square);
                });
            if (moments) partial.set(n, totals.data, 2, padded, g.channels, 0, g.channels);
        }
    }
    failure.check();
    if (!moments) return;
    partial.add_up(g.batch, moments, threads);
    finish_moments(moments, shift.data, g.channels, g.batch * g.out_height * g.out_width);
}

// Writes the gradient of the pool to x_grad, or adds it; that of a maximum goes to the first pixel that has it.
template <typename T>
void pool_backward(
    const Geometry& g, bool largest, Images<const T> grad, Images<const T> x, Images<T> x_grad, bool add,
    int threads) {
    const Window<T> window(g);
    Failure failure;
#pragma omp parallel num_threads(threads)
    {
        Buffer<T> image(window.size(), std::nothrow), sums(window.size(), std::nothrow);
        const Int batch = failure.batch_if_all({image.data, sums.data}, g.batch);
        if (largest && batch) std::fill_n(image.data, window.size(), -std::numeric_limits<T>::infinity());
#pragma omp for schedule(dynamic)
        for (Int n = 0; n < batch; ++n) {
            if (largest) window.fill(image.data, x, n, g);
            std::fill_n(sums.data, window.size(), T(0));
            for (Int i = 0; i < g.out_height; ++i)
                for_vectors<T>(g.channels, [&](Int c, auto v) {
                    const T* given = grad.row(0, n, i) + c;
                    for (Int j = 0; j < g.out_width; ++j) {
                        const Int at_window = window.seen(i, j, g) + c;
                        const T* seen = image.data + at_window;
                        T* to = sums.data + at_window;
                        Vector<T> value = v.load(given + j * grad.pixel);
                        if (!largest) {
                            value /= T(pixels_within(g, i, j));
                            for_taps(window, g.kernel, [&](Int, Int place) { at(to + place) += value; });
                            continue;
                        }
                        Vector<T> best = at(seen);
                        for_taps(window, g.kernel, [&](Int, Int place) {
                            best = exceeds<T>(at(seen + place), best) ? at(seen + place) : best;
                        });
                        for_taps(window, g.kernel, [&](Int, Int place) {
                            const auto here = at(seen + place) == best;
                            at(to + place) += here ? value : Vector<T>{};
                            value = here ? Vector<T>{} : value;
                        });
                    }
                });
            for (Int i = 0; i < g.height; ++i)
                for_vectors<T>(g.channels, [&](Int c, auto v) {
                    T* to = x_grad.row(0, n, i) + c;
                    const T* from = sums.data + window.inside(i, g) + c;
                    for (Int j = 0; j < g.width; ++j) {
                        const Vector<T> before = add ? v.load(to + j * x_grad.pixel) : Vector<T>{};
                        v.store(to + j * x_grad.pixel, before + at(from + j * window.padded));
                    }
                });
        }
    }
    failure.check();
}

// Sums of images, and sums over them

// Images whose lines follow each other without a gap are gone through as one long line.
template <typename T>
inline bool one_line(const Images<T>& images, Int width) {
    return images.line == width * images.pixel;
}

template <typename T>
struct Lines {
    Int count, width;
    template <typename Image>
    Lines(const Geometry& g, const Image& image, Int terms_count, const Images<const T>* terms)
        : count(g.height), width(g.width) {
        bool whole = one_line(image, width);
        for (Int t = 0; t < terms_count; ++t) whole &= one_line(terms[t], width);
        if (whole) width *= count, count = 1;
    }
};

// out (+)= constant + sum over terms of coefficients[term] * terms[term]; coefficients (terms, edges, channels).
template <typename T>
void combine(
    const Geometry& g, bool add, Images<T> out, Int count, const Images<const T>* terms, const T* coefficients,
    const T* constant, int threads) {
    const Lines<T> lines(g, out, count, terms);
    Failure failure;
#pragma omp parallel num_threads(threads)
    {
        Buffer<const T*> from_rows(count, std::nothrow);
        const T** from = from_rows.data;
        const Int batch = failure.batch_if_all({from}, g.batch);
#pragma omp for schedule(dynamic) collapse(2)
        for (Int n = 0; n < batch; ++n)
            for (Int k = 0; k < g.edges; ++k)
                for (Int i = 0; i < lines.count; ++i) {
                    T* to = out.row(k, n, i);
                    for (Int t = 0; t < count; ++t) from[t] = terms[t].row(k, n, i);
                    // Some pixels at a time, so that all their channels are read while they are in the cache.
                    for (Int start = 0; start < lines.width; start += 32)
                        for_vectors<T>(g.channels, [&](Int c, auto v) {
                            const Int first = k * g.channels + c, next = g.edges * g.channels;
                            const Vector<T> shift = v.load(constant + first);
                            for_blocks<8>(std::min<Int>(32, lines.width - start), [&](Int p, auto size) {
                                constexpr int P = decltype(size)::value;
                                T* here = to + (start + p) * out.pixel + c;
                                Vector<T> sum[P];
#pragma GCC unroll 8
                                for (int q = 0; q < P; ++q) sum[q] = add ? shift + v.load(here + q * out.pixel) : shift;
                                for (Int t = 0; t < count; ++t) {
                                    const Vector<T> factor = v.load(coefficients + t * next + first);
                                    const Int step = terms[t].pixel;
                                    const T* term = from[t] + (start + p) * step + c;
#pragma GCC unroll 8
                                    for (int q = 0; q < P; ++q) sum[q] += factor * v.load(term + q * step);
                                }
#pragma GCC unroll 8
                                for (int q = 0; q < P; ++q) v.store(here + q * out.pixel, sum[q]);
                            });
                        });
                }
    }
    failure.check();
}

// sums (1 + terms, edges, channels): over pixels, of `images` and of its product with each term; of both less `shifts` (1 +
// terms, edges, channels) if `shifted`.
template <typename T, bool shifted>
void dots(
    const Geometry& g, Images<const T> images, Int count, const Images<const T>* terms, const T* shifts, double* sums,
    int threads) {
    const Partial<double> partial(g.batch, (1 + count) * g.edges * g.channels);
    const Int padded = padded_to_vectors<T>(g.channels);
    const Lines<T> lines(g, images, count, terms);
    Failure failure;
#pragma omp parallel num_threads(threads)
    {
        Buffer<double> totals((1 + count) * padded, std::nothrow);
        const Int batch = failure.batch_if_all({totals.data}, g.batch);
#pragma omp for schedule(dynamic) collapse(2)
        for (Int n = 0; n < batch; ++n)
            for (Int k = 0; k < g.edges; ++k) {
                std::fill_n(totals.data, (1 + count) * padded, 0.0);
                for (Int i = 0; i < lines.count; ++i)
                    for (Int start = 0; start < lines.width; start += 32)
                        for_vectors<T>(g.channels, [&](Int c, auto v) {
                            const Int pixels = std::min<Int>(32, lines.width - start);
                            const T* row = images.row(k, n, i) + start * images.pixel + c;
                            const auto shift = [&](Int t) {
                                return shifted ? v.load(shifts + (t * g.edges + k) * g.channels + c) : Vector<T>{};
                            };
                            const auto read = [&](const T* from, Vector<T> less) {
                                return shifted ? v.load(from) - less : v.load(from);
                            };
                            const Vector<T> less = shift(0);
                            InTurn<T> sum;
                            for_blocks<4>(pixels, [&](Int p, auto size) {
#pragma GCC unroll 4
                                for (int q = 0; q < decltype(size)::value; ++q)
                                    sum[q] += read(row + (p + q) * images.pixel, less);
                            });
                            add_to<T>(totals.data + c, sum.total());
                            for (Int t = 0; t < count; ++t) {
                                const Int step = terms[t].pixel;
                                const T* other = terms[t].row(k, n, i) + start * step + c;
                                const Vector<T> other_less = shift(1 + t);
                                InTurn<T> product;
                                for_blocks<4>(pixels, [&](Int p, auto size) {
#pragma GCC unroll 4
                                    for (int q = 0; q < decltype(size)::value; ++q)
                                        product[q] += read(row + (p + q) * images.pixel, less) *
                                                      read(other + (p + q) * step, other_less);
                                });
                                add_to<T>(totals.data + (1 + t) * padded + c, product.total());
                            }
                        });
                partial.set(n, totals.data, 1 + count, padded, g.channels, k * g.channels, g.edges * g.channels);
            }
    }
    failure.check();
    partial.add_up(g.batch, sums, threads);
}

}  // namespace

#define KERNELS(T, suffix)                                                                                             \
    extern "C" int convolve_##suffix(                                                                                  \
        const Geometry* g, const Images<const T>* x, const T* rescale, const T* const* depthwise,                      \
        const T* const* pointwise, const Images<T>* z, double* moments, int threads) {                                 \
        return failed([&] { convolve<T>(*g, *x, rescale, depthwise, pointwise, *z, moments, threads); });              \
    }                                                                                                                  \
    extern "C" int convolve_backward_##suffix(                                                                         \
        const Geometry* g, const Images<const T>* grad, const Images<const T>* z, const T* mix,                        \
        const Images<const T>* x, const T* rescale, const T* const* depthwise, const T* const* pointwise,              \
        const Images<T>* x_grad, int add, double* sums, T* weight_grads, int threads) {                                \
        return failed([&] {                                                                                            \
            convolve_backward<T>(                                                                                      \
                *g, *grad, *z, mix, *x, rescale, depthwise, pointwise, *x_grad, add, sums, weight_grads, threads);     \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" int pool_##suffix(                                                                                      \
        const Geometry* g, int largest, const Images<const T>* x, const Images<T>* y, double* moments, int threads) {  \
        return failed([&] { pool<T>(*g, largest, *x, *y, moments, threads); });                                        \
    }                                                                                                                  \
    extern "C" int pool_backward_##suffix(                                                                             \
        const Geometry* g, int largest, const Images<const T>* grad, const Images<const T>* x,                         \
        const Images<T>* x_grad, int add, int threads) {                                                               \
        return failed([&] { pool_backward<T>(*g, largest, *grad, *x, *x_grad, add, threads); });                       \
    }                                                                                                                  \
    extern "C" int combine_##suffix(                                                                                   \
        const Geometry* g, int add, const Images<T>* out, Int count, const Images<const T>* terms,                     \
        const T* coefficients, const T* constant, int threads) {                                                       \
        return failed([&] { combine<T>(*g, add, *out, count, terms, coefficients, constant, threads); });              \
    }                                                                                                                  \
    extern "C" int dots_##suffix(                                                                                      \
        const Geometry* g, const Images<const T>* images, Int count, const Images<const T>* terms, const T* shifts,    \
        double* sums, int threads) {                                                                                   \
        return failed([&] {                                                                                            \
            (shifts ? dots<T, true> : dots<T, false>)(*g, *images, count, terms, shifts, sums, threads);               \
        });                                                                                                            \
    }

KERNELS(float, float32)
KERNELS(double, float64)
