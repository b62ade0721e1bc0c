#include "simt/traffic.h"

#include <algorithm>

namespace simt::detail {

void Traffic::begin_launch(Launch& launch, size_t warps, bool count_sectors) {
  launch_ = &launch;
  count_sectors_ = count_sectors;
  instructions_.assign(warps, {});
  uniform_.clear();
  recent_.fill(nullptr);
}

void Traffic::begin_block() {
  if (uniform_.empty()) return;
  uniform_.clear();
  recent_.fill(nullptr);
}

void Traffic::log(const void* address, unsigned bytes, unsigned warp, unsigned lane, const void* place, bool is_write) {
  std::vector<Instruction>& instructions = instructions_[warp];
  auto instruction = std::find_if(instructions.begin(), instructions.end(),
                                  [&](const Instruction& i) { return i.place == place && i.is_write == is_write; });
  if (instruction == instructions.end()) instruction = instructions.insert(instruction, {place, is_write, {}, {}});
  const size_t execution = instruction->executions[lane]++;
  if (execution == instruction->sectors.size()) instruction->sectors.emplace_back();
  std::vector<uint64_t>& sectors = instruction->sectors[execution];
  const auto first = reinterpret_cast<uintptr_t>(address);
  for (uint64_t sector = first / 32; sector <= (first + bytes - 1) / 32; ++sector) {
    // The neighbour's is the likeliest.
    if (std::find(sectors.rbegin(), sectors.rend(), sector) != sectors.rend()) continue;
    sectors.push_back(sector);
    ++(is_write ? launch_->sectors_written : launch_->sectors_read);
  }
}

void Traffic::count_anew(unsigned warp) {
  for (Instruction& instruction : instructions_[warp]) {
    const uint32_t most = *std::max_element(instruction.executions.begin(), instruction.executions.end());
    for (uint32_t i = 0; i < most; ++i) instruction.sectors[i].clear();
    instruction.executions.fill(0);
  }
}

}  // namespace simt::detail
