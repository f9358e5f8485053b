// What kernels.cpp and cells.cpp are written in: vectors, and scratch memory.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <limits>
#include <new>
#include <utility>
#include <vector>

namespace {

using Int = std::int64_t;

// Vectors of 32 bytes; compilers split them where a machine has narrower ones.

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(32)));
    typedef double Doubles __attribute__((vector_size(64)));
};
template <>
struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(32)));
    typedef double Doubles __attribute__((vector_size(32)));
};
template <typename T>
using Vector = typename Lanes<T>::Vector;
template <typename T>
constexpr Int lanes = 32 / sizeof(T);
template <typename T>
inline Int padded_to_vectors(Int channels) {
    return (channels + lanes<T> - 1) / lanes<T> * lanes<T>;
}

template <typename T>
inline Vector<T>& at(T* p) {  // of aligned scratch memory
    return *reinterpret_cast<Vector<T>*>(p);
}

template <typename T>
inline const Vector<T>& at(const T* p) {
    return *reinterpret_cast<const Vector<T>*>(p);
}

// Has the compiler read a vector once that several sums use, where it would read it from memory for each of them. Without
// it, a pass for the alphas took 9 % longer (docs/fast.md says of what; g++ 12).
#ifdef __AVX__
#define IN_REGISTER(vector) asm("" : "+x"(vector))
#else
#define IN_REGISTER(vector)
#endif

template <typename T>
struct Whole {  // reads and writes a vector of channels
    Vector<T> load(const T* p) const {
        Vector<T> v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    void store(T* p, Vector<T> v) const { std::memcpy(p, &v, sizeof v); }
};

template <typename T>
struct Part {  // reads and writes the last channels, which fill no vector
    Int count;
    Vector<T> load(const T* p) const {
        Vector<T> v{};
        std::memcpy(&v, p, count * sizeof(T));
        return v;
    }
    void store(T* p, Vector<T> v) const { std::memcpy(p, &v, count * sizeof(T)); }
};

template <typename T, typename F>
inline void for_vectors(Int channels, F f) {
    Int c = 0;
    for (; c + lanes<T> <= channels; c += lanes<T>) f(c, Whole<T>{});
    if (c < channels) f(c, Part<T>{channels - c});
}

template <typename T>
struct Buffer {  // zeros
    T* data;
    Buffer(Int count, const std::nothrow_t&) {  // null where there is no memory
        const std::size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
        data = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (data) std::memset(data, 0, bytes);
    }
    explicit Buffer(Int count) : Buffer(count, std::nothrow) {
        if (!data) throw std::bad_alloc();
    }
    Buffer(Buffer&& other) noexcept : data(other.data) { other.data = nullptr; }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
};

// Returns whether f failed for want of memory.
template <typename F>
int failed(F f) {
    try {
        f();
        return 0;
    } catch (const std::exception&) {  // std::bad_alloc, or std::length_error of a vector
        return 1;
    }
}

}  // namespace
