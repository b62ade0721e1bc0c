#pragma once

#include <cstdint>
#include <vector>

#include "support.h"

namespace sage_ext::testing {

struct LlamaSize {
  int64_t hidden, ffn, layers, vocabulary;
};

inline constexpr LlamaSize kLlama7B{4096, 11008, 32, 32000};
inline constexpr LlamaSize kSmallLlama{512, 1376, 2, 1000};

// The parameters of a Llama with a head of its own, as matrices; norms, if wanted, are one row.
inline std::vector<Shape> llama_shapes(const LlamaSize& size, bool norms) {
  std::vector<Shape> shapes{{size.vocabulary, size.hidden}};
  for (int64_t layer = 0; layer < size.layers; ++layer) {
    if (norms) shapes.push_back({1, size.hidden});
    shapes.insert(shapes.end(), 4, {size.hidden, size.hidden});
    if (norms) shapes.push_back({1, size.hidden});
    shapes.insert(shapes.end(), 2, {size.ffn, size.hidden});
    shapes.push_back({size.hidden, size.ffn});
  }
  if (norms) shapes.push_back({1, size.hidden});
  shapes.push_back({size.vocabulary, size.hidden});
  return shapes;
}

inline int64_t count_elements(const std::vector<Shape>& shapes) {
  int64_t count = 0;
  for (const Shape& shape : shapes) count += shape.rows * shape.cols;
  return count;
}

}  // namespace sage_ext::testing
