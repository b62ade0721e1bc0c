// Prints the plans that csrc makes of the matrices on its standard input, for test_plan_memory.py: a line for each, of
// rows, columns, itemsize and the elements of all matrices.
#include "core/launch_plan.h"

#include <iostream>

using namespace sage_ext;

int main() {
  int64_t rows, cols, itemsize, total;
  while (std::cin >> rows >> cols >> itemsize >> total) {
    const int64_t vec = 16 / itemsize;
    const bool aligned = cols % vec == 0;
    const ColumnTiling tiling = tile_columns(rows, cols);
    const ColumnBlocks columns = plan_column_blocks(rows, cols, vec);
    const int32_t threads = sinkhorn_threads(cols, vec, aligned);
    const SinkhornPlan sinkhorn = plan_sinkhorn(rows, cols, vec, aligned, threads, total);
    std::cout << tiling.row_blocks << ' ' << tiling.width << ' ' << plan_row_blocks(rows, cols).blocks << ' '
              << columns.slots << ' ' << columns.average_cols << ' ' << threads << ' ' << sinkhorn.row_blocks << '\n';
  }
}
