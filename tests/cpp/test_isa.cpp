#include "cpu/common/isa.h"

#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>

#include "cpu/common/foreach_isa_config.h"
#include "support.h"

namespace sage_ext::cpu {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512};

// Runs in a process of its own, because the choice is made once in a process: prints what a setting leads to.
[[noreturn]] void report_choice(const char* setting) {
  if (setting == nullptr) {
    unsetenv("SAGE_EXT_CPU_CAPABILITY");
  } else {
    setenv("SAGE_EXT_CPU_CAPABILITY", setting, 1);
  }
  try {
    std::exit(static_cast<int>(active_isa()));
  } catch (const std::invalid_argument& error) {
    std::cerr << error.what() << std::endl;
    std::exit(100);
  }
}

TEST(Isa, Names) {
  EXPECT_STREQ(isa_name(Isa::baseline), "default");
  EXPECT_STREQ(isa_name(Isa::avx2), "avx2");
  EXPECT_STREQ(isa_name(Isa::avx512), "avx512");
  for (const Isa isa : kAll) {
    if (SAGE_EXT_X86_ISAS || isa == Isa::baseline) {
      EXPECT_NE(std::string(built_isas()).find(isa_name(isa)), std::string::npos);
    }
  }
}

TEST(Isa, TheEnvironmentCapsTheChoice) {
  const char* setting = std::getenv("SAGE_EXT_CPU_CAPABILITY");
  if (setting == nullptr || *setting == '\0') GTEST_SKIP() << "SAGE_EXT_CPU_CAPABILITY is not set";
  Isa cap = Isa::baseline;
  for (const Isa isa : kAll) {
    if (std::string(setting) == isa_name(isa)) cap = isa;
  }
  EXPECT_LE(active_isa(), cap);
#if SAGE_EXT_X86_ISAS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cap == Isa::avx2) {
    EXPECT_EQ(active_isa(), cap);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    EXPECT_EQ(active_isa(), cap);
  }
#endif
}

TEST(IsaDeathTest, ChoiceFollowsTheEnvironment) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(report_choice("default"), ::testing::ExitedWithCode(static_cast<int>(Isa::baseline)), "");
  // Nothing set and nothing in it are the same: the best there is, which no cap exceeds.
  const auto at_least_what_runs = [](int status) {
    return WIFEXITED(status) && WEXITSTATUS(status) >= static_cast<int>(active_isa()) && WEXITSTATUS(status) < 100;
  };
  EXPECT_EXIT(report_choice(nullptr), at_least_what_runs, "");
  EXPECT_EXIT(report_choice(""), at_least_what_runs, "");
}

TEST(IsaDeathTest, AnUnknownNameIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(report_choice("sse9"), ::testing::ExitedWithCode(100),
              "SAGE_EXT_CPU_CAPABILITY is 'sse9'; it may be default, avx2 or avx512");
}

}  // namespace
}  // namespace sage_ext::cpu
