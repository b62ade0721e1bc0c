#pragma once

#include "cuda/common/elements.cuh"

namespace sage_ext::cuda {

// Where the elements of a block's chunk lie in a contiguous matrix of `cols` columns. One 64-bit division in all;
// each place is a multiplication.
class MatrixPlace {
 public:
  __device__ __forceinline__ MatrixPlace(int64_t cols, const BlockElements& range) : cols_(cols) {
    const int64_t begin = range.begin - range.head;
    row_ = begin / cols;
    shift_ = begin - row_ * cols + range.head;
    // 2^31 / cols, rounded up.
    reciprocal_ = cols < kMapChunk ? (0x7fffffffu + static_cast<uint32_t>(cols)) / static_cast<uint32_t>(cols) : 0;
  }

  __device__ __forceinline__ int64_t cols() const { return cols_; }

  // Of the chunk's first element, its head included.
  __device__ __forceinline__ int64_t first_row() const { return row_; }

  // The row, counted from first_row(), and the column of element `i` of the chunk.
  struct Place {
    int row;
    int64_t col;
  };
  __device__ __forceinline__ Place operator()(int i) const {
    const int64_t place = shift_ + i;
    if (reciprocal_ == 0) {  // a chunk then wraps at most once
      return place < cols_ ? Place{0, place} : Place{1, place - cols_};
    }
    // Exact, since place * cols < 2^31: the reciprocal is too large by less than cols / 2^31.
    const auto small = static_cast<uint32_t>(place);
    const auto row = static_cast<uint32_t>((static_cast<uint64_t>(small) * reciprocal_) >> 31);
    return {static_cast<int>(row), small - row * static_cast<uint32_t>(cols_)};
  }

 private:
  int64_t cols_;
  int64_t row_;
  int64_t shift_;        // column of the chunk's first element; in block 0, of that after the head
  uint32_t reciprocal_;  // 0 if cols is at least a chunk
};

// Read-only operands of update_elements(): an fp32 vector with one value for each column, or each row, of a matrix.
// Blocks read the same values again and again, from the caches: they are loaded when they are needed. Ahead of that
// they would only take registers, and with these room on the multiprocessor for other blocks' loads.
template <int N, int U>
struct ColumnValues {
  static constexpr bool aligned = true;  // what does not suit a vector is loaded one by one
  const float* data;                     // of column 0
  MatrixPlace place;
  int at[U];
  float values[N];

  __device__ __forceinline__ ColumnValues(const float* of_columns, int64_t cols, const BlockElements& range)
      : data(of_columns), place(cols, range) {}

  __device__ __forceinline__ void load(int u, int i) { at[u] = i; }
  __device__ __forceinline__ void unpack(int u) {
    int64_t col = place(at[u]).col;
    if (col + N <= place.cols() && is_vec_aligned(data + col)) {
      load_uniform_floats(data + col, values);
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        values[e] = load_uniform(data + col);
        col = col + 1 == place.cols() ? 0 : col + 1;
      }
    }
  }
  __device__ __forceinline__ void store(int, int) {}
  __device__ __forceinline__ void load_one(int i) { values[0] = load_uniform(data + place(i).col); }
  __device__ __forceinline__ void store_one(int) {}
};

template <int N, int U>
struct RowValues {
  static constexpr bool aligned = true;
  const float* data;  // of the row in which the chunk starts
  MatrixPlace place;
  int at[U];
  float values[N];

  __device__ __forceinline__ RowValues(const float* of_rows, int64_t cols, const BlockElements& range)
      : data(of_rows), place(cols, range) {
    data += place.first_row();
  }

  __device__ __forceinline__ void load(int u, int i) { at[u] = i; }
  __device__ __forceinline__ void unpack(int u) {
    auto [row, col] = place(at[u]);
    float value = load_uniform(data + row);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      if (col == place.cols()) {
        col = 0;
        value = load_uniform(data + ++row);
      }
      values[e] = value;
      ++col;
    }
  }
  __device__ __forceinline__ void store(int, int) {}
  __device__ __forceinline__ void load_one(int i) { values[0] = load_uniform(data + place(i).row); }
  __device__ __forceinline__ void store_one(int) {}
};

}  // namespace sage_ext::cuda
