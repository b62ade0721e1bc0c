// Part of every instruction set's namespace (see foreach_isa.inl): a function that inlines a kernel's lambda has
// to be compiled for the same instruction set as the lambda.
namespace {

// As update_elements() below, of the elements [begin, end).
template <typename Body, typename G, typename... Written>
inline __attribute__((always_inline)) void update_range(int64_t begin, int64_t end, Body body, const G* __restrict grad,
                                                        Written* __restrict... written) {
  const auto update_one = [&](int64_t i) SAGE_EXT_ALWAYS_INLINE {
    [&](auto... values) SAGE_EXT_ALWAYS_INLINE {
      body(i, to_float(grad[i]), values...);
      ((written[i] = from_float<Written>(values)), ...);
    }(to_float(written[i])...);
  };
  if constexpr (is_16_bit<G> || (is_16_bit<Written> || ...)) {
    const int64_t pairs = (end - begin) / 2;
#pragma omp simd
    for (int64_t i = begin / 2; i < begin / 2 + pairs; ++i) {
      [&](auto... first) SAGE_EXT_ALWAYS_INLINE {
        body(2 * i, load_first(grad, i), first...);
        [&](auto... second) SAGE_EXT_ALWAYS_INLINE {
          body(2 * i + 1, load_second(grad, i), second...);
          (store_pair(written, i, first, second), ...);
        }(load_second(written, i)...);
      }(load_first(written, i)...);
    }
    if ((end - begin) % 2 != 0) update_one(end - 1);
  } else {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) update_one(i);
  }
}

// Long arrays are taken from several places in turn, a strip of elements each time: a core reads a few streams faster
// than one; how many suit element-wise passes over several arrays, isa.cpp says. The places are an odd number of strips
// apart, so that their addresses differ in the lower 12 bits: a core takes a load for one of what it has just stored if
// these are the same. Short strips keep all streams in flight (measured: AdamW takes 0.9 times the time with 32 that it
// takes with 64).
inline constexpr int64_t kStrip = 32;
inline constexpr int64_t kStreams = 4;         // of rows, and of what is added up, whose bits hang on the order
inline constexpr int64_t kMinStreamed = 2048;  // elements; shorter arrays are one stream

// Asks for the cache lines of the strips that these arrays' stream reaches some visits later: what a core looks ahead
// by itself ends after a few strips where much is computed (measured: 0.7 to 0.97 times the time in bf16, 0.94 to 0.98
// in fp32).
template <typename... T>
inline __attribute__((always_inline)) void prefetch_strips(const T*... strips) {
  constexpr uintptr_t kLine = 64;
  const auto ahead = static_cast<uintptr_t>(streams.ahead * kStrip);
  const auto prefetch = [=](const auto* strip) SAGE_EXT_ALWAYS_INLINE {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(strip) + ahead * sizeof(*strip);
    for (uintptr_t line = 0; line < kStrip * sizeof(*strip); line += kLine) {
      __builtin_prefetch(reinterpret_cast<const void*>(begin + line));  // may be behind the array's end
    }
  };
  (prefetch(strips), ...);
}

inline __attribute__((always_inline)) int64_t stream_distance(int64_t count, int64_t places) {
  return ((count / (places * kStrip) - 1) | 1) * kStrip;
}

// For i in [0, count): body(i, grad[i], written[i]...) with fp32 values; what the body leaves in `written` is
// rounded once and stored. The arrays do not overlap.
template <typename Body, typename G, typename... Written>
inline __attribute__((always_inline)) void update_elements(int64_t count, Body body, const G* __restrict grad,
                                                           Written* __restrict... written) {
  int64_t done = 0;
  if (count >= kMinStreamed) {
    const int64_t distance = stream_distance(count, streams.count);
    done = streams.count * distance;
    for (int64_t i = 0; i < distance; i += kStrip) {
      for (int64_t begin = i; begin < done; begin += distance) {
        prefetch_strips(grad + begin, (written + begin)...);
        update_range(begin, begin + kStrip, body, grad, written...);
      }
    }
  }
  update_range(done, count, body, grad, written...);
}

// update(row, begin, end) for all columns of the rows [row_begin, row_end): four rows, far apart, are the streams.
template <typename Update>
inline __attribute__((always_inline)) void for_strips_of_rows(int64_t row_begin, int64_t row_end, int64_t cols,
                                                              const Update& update) {
  const int64_t whole = cols - cols % kStrip;
  const int64_t distance = (row_end - row_begin) / kStreams;
  const int64_t streamed = kStreams * distance;
  for (int64_t first = row_begin; first < row_begin + distance; ++first) {
    for (int64_t j = 0; j < whole; j += kStrip) {
      for (int64_t row = first; row < row_begin + streamed; row += distance) update(row, j, j + kStrip);
    }
    for (int64_t row = first; row < row_begin + streamed; row += distance) update(row, whole, cols);
  }
  for (int64_t row = row_begin + streamed; row < row_end; ++row) update(row, 0, cols);
}

// The same for the elements [begin, end) of a matrix with rows of `width`: body(column, grad[i], written[i]...).
template <typename Body, typename G, typename... Written>
inline __attribute__((always_inline)) void update_columns_of(int64_t begin, int64_t end, int64_t width, Body body,
                                                             const G* __restrict grad, Written* __restrict... written) {
  const auto update = [&](int64_t first, int64_t count, int64_t column) SAGE_EXT_ALWAYS_INLINE {
    update_range(
        0, count,
        [=](int64_t i, float value, auto&... values) SAGE_EXT_ALWAYS_INLINE { body(column + i, value, values...); },
        grad + first, (written + first)...);
  };
  // A strip lies in one row then.
  if (end - begin >= kMinStreamed && width % kStrip == 0 && begin % kStrip == 0) {
    // Streams a whole number of rows apart share the columns' numbers in the first-level cache.
    const int64_t places = streams.count;
    const int64_t rows = (end - begin) / (places * width) * width;
    const int64_t usual = stream_distance(end - begin, places);
    const int64_t distance = 8 * rows >= 7 * usual ? rows : usual;
    int64_t column[kMaxStreams];
    for (int64_t stream = 0; stream < places; ++stream) column[stream] = (begin + stream * distance) % width;
    for (int64_t i = 0; i < distance; i += kStrip) {
      for (int64_t stream = 0; stream < places; ++stream) {
        const int64_t strip = begin + stream * distance + i;
        prefetch_strips(grad + strip, (written + strip)...);
        update(strip, kStrip, column[stream]);
        column[stream] = column[stream] + kStrip == width ? 0 : column[stream] + kStrip;
      }
    }
    begin += places * distance;
  }
  for (int64_t column = begin % width; begin < end; column = 0) {
    const int64_t count = end - begin < width - column ? end - begin : width - column;
    update(begin, count, column);
    begin += count;
  }
}

// How many rows add_rows takes.
inline constexpr int64_t kAddedRows = 8;

// acc[j] = add(acc[j], x0, x1, x2, x3) of fp32 values, for the rows 0 to 3, then 4 to 7, and j in [0, count). The rows
// are `stride` elements apart: far, as streams that a core reads from.
template <typename Add, typename X>
inline __attribute__((always_inline)) void add_rows(const X* rows, int64_t stride, int64_t count, Add add,
                                                    float* __restrict acc) {
  const auto four = [=](const X* __restrict x0, int64_t begin, int64_t end) SAGE_EXT_ALWAYS_INLINE {
    const X* __restrict x1 = x0 + stride;
    const X* __restrict x2 = x1 + stride;
    const X* __restrict x3 = x2 + stride;
    int64_t done = begin;
    if constexpr (is_16_bit<X>) {
      done = begin + (end - begin) / 2 * 2;
#pragma omp simd
      for (int64_t i = begin / 2; i < done / 2; ++i) {
        acc[2 * i] = add(acc[2 * i], load_first(x0, i), load_first(x1, i), load_first(x2, i), load_first(x3, i));
        acc[2 * i + 1] =
            add(acc[2 * i + 1], load_second(x0, i), load_second(x1, i), load_second(x2, i), load_second(x3, i));
      }
    }
#pragma omp simd
    for (int64_t j = done; j < end; ++j) {
      acc[j] = add(acc[j], to_float(x0[j]), to_float(x1[j]), to_float(x2[j]), to_float(x3[j]));
    }
  };
  const int64_t whole = count - count % kStrip;
  for (int64_t begin = 0; begin < whole; begin += kStrip) {
    for (int64_t row = 0; row < kAddedRows; ++row) prefetch_strips(rows + row * stride + begin);
    for (int64_t row = 0; row < kAddedRows; row += 4) four(rows + row * stride, begin, begin + kStrip);
  }
  for (int64_t row = 0; row < kAddedRows; row += 4) four(rows + row * stride, whole, count);
}

// sum + x^2, with one rounding where the target has it; a libm call would be slow elsewhere.
inline __attribute__((always_inline)) float add_square(float sum, float x) {
#if SAGE_EXT_ISA_FMA
  return __builtin_fmaf(x, x, sum);
#else
  return sum + x * x;
#endif
}

// sum + x0^2 + x1^2 + x2^2 + x3^2
inline __attribute__((always_inline)) float add_squares(float sum, float x0, float x1, float x2, float x3) {
  return add_square(add_square(add_square(add_square(sum, x0), x1), x2), x3);
}

// For i in [0, count): body(i, grad[i]) with the fp32 value.
template <typename Body, typename G>
inline __attribute__((always_inline)) void for_elements(int64_t count, Body body, const G* __restrict grad) {
  update_elements(count, body, grad);
}

}  // namespace
