#pragma once

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "core/launch_plan.h"
#include "core/math/sage.h"
#include "core/math/sinkgd.h"
#include "sage_problem.h"
#include "scale_problem.h"
#include "sinkgd_problem.h"

// Tensors in pieces, as they lie on several processes, and the sums that these add up between the stages of a step.
namespace sage_ext::testing {

// Process r * columns + c has rows r and columns c of every tensor.
struct Mesh {
  int64_t rows, columns;

  size_t size() const { return static_cast<size_t>(rows * columns); }
  int64_t row_of(size_t process) const { return static_cast<int64_t>(process) / columns; }
  int64_t column_of(size_t process) const { return static_cast<int64_t>(process) % columns; }
};

inline constexpr Mesh kMeshes[] = {{1, 1}, {3, 1}, {1, 3}, {2, 2}};

inline std::string describe(const Mesh& mesh) {
  return std::to_string(mesh.rows) + " x " + std::to_string(mesh.columns) + " processes";
}

struct Size {
  int64_t rows, cols, matrices = 1;
};

// A tensor for SinkGD: a stack of matrices.
struct SinkGDStack {
  int64_t matrices, rows, cols;
  Buffer param, grad;

  SinkGDStack(const Mix& mix, const Size& size, int64_t offset)
      : matrices(size.matrices),
        rows(size.rows),
        cols(size.cols),
        param(mix.param, matrices * rows * cols, offset),
        grad(mix.grad, matrices * rows * cols, 3 * offset) {}

  // The matrices differ in size.
  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    if (cols > 0) fill_gradient(grad, cols, random);
    for (int64_t i = 0; i < grad.numel(); ++i) grad.set(i, grad[i] * static_cast<double>(1 + i / (rows * cols)));
  }

  SinkGDProblem matrix(int64_t index) const {
    SinkGDProblem p({param.dtype(), grad.dtype(), {}}, {rows, cols});
    for (int64_t i = 0; i < rows * cols; ++i) {
      p.param.set(i, param[index * rows * cols + i]);
      p.grad.set(i, grad[index * rows * cols + i]);
    }
    return p;
  }
};

template <typename Problem>
Problem make_problem(const Mix& mix, const Size& size, int64_t offset) {
  if constexpr (std::is_same_v<Problem, ScaleProblem>) {
    return ScaleProblem(mix, {size.rows, size.cols}, {offset, 3 * offset, 5 * offset}, size.matrices);
  } else if constexpr (std::is_same_v<Problem, SageProblem>) {
    return SageProblem(mix, {size.rows, size.cols}, offset);
  } else {
    return SinkGDStack(mix, size, offset);
  }
}

template <typename Problem>
std::vector<Problem> make_problems(const Mix& mix, const std::vector<Size>& sizes, uint64_t seed) {
  Random random(seed);
  std::vector<Problem> problems;
  for (const Size& size : sizes) {
    problems.push_back(make_problem<Problem>(mix, size, 0));
    problems.back().fill(random);
  }
  return problems;
}

inline int64_t matrices_of(const SageProblem&) { return 1; }
template <typename Problem>
int64_t matrices_of(const Problem& p) {
  return p.matrices;
}

template <typename Problem>
Mix mix_of(const Problem& p) {
  if constexpr (std::is_same_v<Problem, SinkGDStack>) {
    return {p.param.dtype(), p.grad.dtype(), DType::float32};
  } else {
    return {p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype()};
  }
}

template <typename Problem>
std::vector<Buffer*> matrix_buffers(Problem& p) {
  if constexpr (std::is_same_v<Problem, SinkGDStack>) {
    return {&p.param, &p.grad};
  } else {
    return {&p.param, &p.grad, &p.exp_avg};
  }
}

// What a step writes.
inline std::vector<const Buffer*> results(const SageProblem& p) { return {&p.param, &p.exp_avg, &p.s_range}; }
inline std::vector<const Buffer*> results(const ScaleProblem& p) { return {&p.param, &p.exp_avg}; }
inline std::vector<const Buffer*> results(const SinkGDStack& p) { return {&p.param}; }

template <typename Problem>
std::vector<std::byte> result_bytes(const std::vector<Problem>& problems) {
  std::vector<std::byte> bytes;
  for (const Problem& p : problems) {
    for (const Buffer* buffer : results(p)) {
      const std::vector<std::byte> more = buffer->bytes();
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
  }
  return bytes;
}

// Where `size` is cut into parts of different sizes, some of them empty.
inline std::vector<int64_t> cut_bounds(int64_t size, int64_t parts, bool with_empty, Random& random) {
  std::vector<int64_t> bounds = {0, size};
  for (int64_t i = 1; i < parts; ++i) {
    bounds.push_back(static_cast<int64_t>(random.uniform() * static_cast<double>(size + 1)));
  }
  std::sort(bounds.begin(), bounds.end());
  if (with_empty && parts > 1) bounds[1] = parts > 2 ? bounds[2] : 0;
  return bounds;
}

// Tensors cut for a mesh: every process has a piece of each, which may be empty, at addresses of its own.
template <typename Problem>
class Pieces {
 public:
  const Mesh mesh;
  std::vector<std::vector<Problem>> processes;  // [process][tensor]

  // `seed` says where.
  Pieces(std::vector<Problem>& wholes, const Mesh& on, uint64_t seed) : mesh(on), wholes_(wholes) {
    Random random(seed);
    for (size_t i = 0; i < wholes.size(); ++i) {
      const bool with_empty = i % 3 == 2;
      rows_.push_back(cut_bounds(wholes[i].rows, mesh.rows, with_empty, random));
      cols_.push_back(cut_bounds(wholes[i].cols, mesh.columns, with_empty, random));
    }
    for (size_t process = 0; process < mesh.size(); ++process) {
      std::vector<Problem>& pieces = processes.emplace_back();
      for (size_t i = 0; i < wholes.size(); ++i) {
        const Place place = place_of(process, i);
        const Size size{place.rows, place.cols, matrices_of(wholes[i])};
        // The first process has aligned addresses.
        pieces.push_back(make_problem<Problem>(mix_of(wholes[i]), size, static_cast<int64_t>(process % 3)));
        for_each_part(process, i, [&](Buffer& whole, const Shape& shape, const Place& part, Buffer& piece) {
          copy_part(whole, shape, part, piece, /*back=*/false);
        });
        if constexpr (std::is_same_v<Problem, SageProblem>) pieces.back().step = wholes[i].step;
      }
    }
  }

  size_t num_tensors() const { return wholes_.size(); }
  WholeSize whole(size_t tensor) const { return {wholes_[tensor].rows, wholes_[tensor].cols}; }

  // Puts the pieces together again. What several processes have has to be the same on all of them.
  void gather() {
    for (size_t process = 0; process < mesh.size(); ++process) {
      for (size_t i = 0; i < wholes_.size(); ++i) {
        for_each_part(process, i, [&](Buffer& whole, const Shape& shape, const Place& part, Buffer& piece) {
          if (is_replicated(i, whole) && mesh.row_of(process) > 0) {
            Buffer other(piece.dtype(), part.cols);
            copy_part(whole, shape, part, other, /*back=*/false);
            EXPECT_EQ(piece.bytes(), other.bytes()) << "process " << process << ", tensor " << i;
          }
          copy_part(whole, shape, part, piece, /*back=*/true);
        });
      }
    }
  }

 private:
  struct Place {
    int64_t row, rows, col, cols;
  };

  Place place_of(size_t process, size_t tensor) const {
    const auto at = [](const std::vector<int64_t>& bounds, int64_t i) { return bounds[static_cast<size_t>(i)]; };
    const int64_t r = mesh.row_of(process), c = mesh.column_of(process);
    return {at(rows_[tensor], r), at(rows_[tensor], r + 1) - at(rows_[tensor], r), at(cols_[tensor], c),
            at(cols_[tensor], c + 1) - at(cols_[tensor], c)};
  }

  bool is_replicated(size_t tensor, const Buffer& whole) const {
    if constexpr (std::is_same_v<Problem, SageProblem>) return &whole == &wholes_[tensor].s_range;
    return false;
  }

  // body(whole array, shape of its matrices, what of them a process has, and where) for every array of a tensor.
  template <typename Body>
  void for_each_part(size_t process, size_t tensor, const Body& body) {
    Problem& whole = wholes_[tensor];
    Problem& piece = processes[process][tensor];
    const Place place = place_of(process, tensor);
    const std::vector<Buffer*> all = matrix_buffers(whole), parts = matrix_buffers(piece);
    for (size_t i = 0; i < all.size(); ++i) body(*all[i], Shape{whole.rows, whole.cols}, place, *parts[i]);
    if constexpr (std::is_same_v<Problem, SageProblem>) {
      body(whole.s_range, Shape{1, whole.cols}, Place{0, 1, place.col, place.cols}, piece.s_range);
    }
  }

  static void copy_part(Buffer& whole, const Shape& shape, const Place& part, Buffer& piece, bool back) {
    const int64_t item = itemsize(whole.dtype());
    const int64_t matrices = whole.numel() / (shape.rows * shape.cols);
    for (int64_t row = 0; part.cols > 0 && row < matrices * part.rows; ++row) {
      const int64_t at = row / part.rows * shape.rows + part.row + row % part.rows;
      char* const of_whole = static_cast<char*>(whole.data()) + (at * shape.cols + part.col) * item;
      char* const of_piece = static_cast<char*>(piece.data()) + row * part.cols * item;
      const auto bytes = static_cast<size_t>(part.cols * item);
      back ? std::memcpy(of_whole, of_piece, bytes) : std::memcpy(of_piece, of_whole, bytes);
    }
  }

  std::vector<Problem>& wholes_;
  std::vector<std::vector<int64_t>> rows_, cols_;  // [tensor]: bounds
};

enum class Over { rows, columns };

// Numbers beside every piece, which the processes add up.
template <typename T>
class Sums {
 public:
  // `size_of` a piece. They are NaN, but for pieces without elements if these need zeros.
  template <typename Problem, typename SizeOf>
  Sums(const Pieces<Problem>& pieces, bool empty_are_zero, const SizeOf& size_of)
      : mesh_(pieces.mesh), empty_are_zero_(empty_are_zero) {
    for (const std::vector<Problem>& process : pieces.processes) {
      std::vector<Part>& parts = parts_.emplace_back();
      for (const Problem& p : process) {
        const int64_t size = size_of(p);
        parts.push_back({Buffer(DType::float32, size * static_cast<int64_t>(sizeof(T) / sizeof(float))), size,
                         p.param.numel() == 0});
        std::fill_n(data(parts.back()), size, static_cast<T>(kNaN));
      }
    }
    clear_empty();
  }

  T* of(size_t process, size_t tensor) { return data(parts_[process][tensor]); }

  // Adds up what the processes have that differ in their rows, or in their columns.
  void add_up(Over over) {
    clear_empty();
    const int64_t lines = over == Over::rows ? mesh_.columns : mesh_.rows;
    const int64_t length = over == Over::rows ? mesh_.rows : mesh_.columns;
    for (int64_t line = 0; line < lines; ++line) {
      const auto process = [&](int64_t i) {
        return static_cast<size_t>(over == Over::rows ? i * mesh_.columns + line : line * mesh_.columns + i);
      };
      for (size_t tensor = 0; tensor < parts_[0].size(); ++tensor) {
        const int64_t size = parts_[process(0)][tensor].size;
        T* const total = of(process(0), tensor);
        for (int64_t i = 1; i < length; ++i) {
          ASSERT_EQ(parts_[process(i)][tensor].size, size);
          for (int64_t k = 0; k < size; ++k) total[k] += of(process(i), tensor)[k];
        }
        for (int64_t i = 1; i < length; ++i) std::copy_n(total, size, of(process(i), tensor));
      }
    }
  }

 private:
  struct Part {
    Buffer buffer;
    int64_t size;
    bool is_empty;
  };

  static T* data(Part& part) { return static_cast<T*>(part.buffer.data()); }

  // A process that has nothing of a tensor adds nothing, also where it has the total of the last time.
  void clear_empty() {
    if (!empty_are_zero_) return;
    for (std::vector<Part>& parts : parts_) {
      for (Part& part : parts) {
        if (part.is_empty) std::fill_n(data(part), part.size, T{0});
      }
    }
  }

  Mesh mesh_;
  bool empty_are_zero_;
  std::vector<std::vector<Part>> parts_;  // [process][tensor]
};

struct SageBuffers {
  Sums<float> columns;
  Sums<double> squares;

  SageBuffers(const Pieces<SageProblem>& pieces, bool empty_are_zero)
      : columns(pieces, empty_are_zero, [](const SageProblem& p) { return p.cols; }),
        squares(pieces, /*empty_are_zero=*/false, [](const SageProblem&) { return 2; }) {}

  std::vector<SageSums> of(size_t process, size_t tensors) {
    std::vector<SageSums> sums;
    for (size_t i = 0; i < tensors; ++i) sums.push_back({columns.of(process, i), squares.of(process, i)});
    return sums;
  }
};

struct SinkGDBuffers {
  Sums<double> rows;
  Sums<double> first_columns;
  Sums<float> columns;

  SinkGDBuffers(const Pieces<SinkGDStack>& pieces, bool empty_are_zero)
      : rows(pieces, empty_are_zero, [](const SinkGDStack& p) { return p.matrices * p.rows; }),
        first_columns(pieces, empty_are_zero, [](const SinkGDStack& p) { return p.matrices * p.cols; }),
        columns(pieces, empty_are_zero, [](const SinkGDStack& p) { return p.matrices * p.cols; }) {}

  SinkGDSums of(size_t process, size_t tensor) {
    return {rows.of(process, tensor), first_columns.of(process, tensor), columns.of(process, tensor)};
  }
  void add_up_columns(int iteration) {
    if (iteration == 0) {
      first_columns.add_up(Over::rows);
    } else {
      columns.add_up(Over::rows);
    }
  }
};

inline Sums<double> scale_sums(const Pieces<ScaleProblem>& pieces, bool columns, bool empty_are_zero) {
  return {pieces, empty_are_zero, [=](const ScaleProblem& p) { return p.matrices * (columns ? p.cols : p.rows); }};
}

// What a step should make of the whole tensors.
inline SageExpected expected_of(const SageProblem& p, const cpu::SageOptions& o) { return {p, o}; }
inline ScaleExpected expected_of(const ScaleProblem& p, const cpu::ScaleOptions& o) { return {p, o}; }
inline Expected expected_of(const SinkGDStack& p, const cpu::SinkGDOptions& o) {
  Expected all(0);
  for (int64_t i = 0; i < p.matrices; ++i) {
    const Expected one = sinkgd_expected(p.matrix(i), o);
    all.value.insert(all.value.end(), one.value.begin(), one.value.end());
    all.slack.insert(all.slack.end(), one.slack.begin(), one.slack.end());
  }
  return all;
}

inline void expect_matches(const std::vector<SinkGDStack>& stacks, const std::vector<Expected>& expected) {
  for (size_t i = 0; i < stacks.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i) + ", " + describe(Shape{stacks[i].rows, stacks[i].cols}));
    ASSERT_TRUE(matches(stacks[i].param, expected[i]));
  }
}

// Counts the step, where the rule does.
template <typename Problem>
void count_step(std::vector<Problem>& problems) {
  if constexpr (std::is_same_v<Problem, SageProblem>) {
    for (SageProblem& p : problems) ++p.step;
  }
}

// Takes one step in pieces: Device::run(pieces, options) runs the stages on all processes.
template <typename Device, typename Problem, typename Options>
void step_in_pieces(std::vector<Problem>& wholes, const Options& options, const Mesh& mesh, uint64_t seed) {
  count_step(wholes);
  Pieces<Problem> pieces(wholes, mesh, seed);
  Device::run(pieces, options);
  pieces.gather();
}

// The same, and compares all that it wrote with fp64.
template <typename Device, typename Problem, typename Options>
void step_in_pieces_and_check(std::vector<Problem>& wholes, const Options& options, const Mesh& mesh, uint64_t seed) {
  SCOPED_TRACE(describe(mesh));
  count_step(wholes);
  std::vector<decltype(expected_of(wholes[0], options))> expected;
  std::vector<std::vector<std::byte>> grads;
  for (const Problem& p : wholes) {
    expected.push_back(expected_of(p, options));
    grads.push_back(p.grad.bytes());
  }
  Pieces<Problem> pieces(wholes, mesh, seed);
  Device::run(pieces, options);
  pieces.gather();
  ASSERT_NO_FATAL_FAILURE(expect_matches(wholes, expected));
  for (size_t i = 0; i < wholes.size(); ++i) EXPECT_EQ(wholes[i].grad.bytes(), grads[i]) << "the gradient is only read";
}

}  // namespace sage_ext::testing
