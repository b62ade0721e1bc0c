#pragma once

#include <string>
#include <vector>

#include "simt/simt.h"
#include "support.h"

namespace sage_ext::testing {

// What `run` launches.
template <typename Run>
std::vector<simt::Launch> launches_of(Run&& run, bool count_sectors = false) {
  simt::Session session({.count_sectors = count_sectors});
  run();
  return session.launches();
}

inline std::vector<std::string> names_of(const std::vector<simt::Launch>& launches) {
  std::vector<std::string> names;
  for (const simt::Launch& launch : launches) names.push_back(launch.kernel);
  return names;
}

inline void append(std::vector<std::byte>& bytes, const Buffer& buffer) {
  const std::vector<std::byte> more = buffer.bytes();
  bytes.insert(bytes.end(), more.begin(), more.end());
}

}  // namespace sage_ext::testing
