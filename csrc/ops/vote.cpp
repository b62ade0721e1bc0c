#include "cpu/vote.h"

#include <stdexcept>

#include "ops/common/checks.h"
#include "ops/common/rule_plan.h"
#include "ops/functions.h"

#ifdef SAGE_EXT_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/vote.h"
#endif

namespace sage_ext::ops {

namespace {

constexpr int64_t kMaxVoters = int64_t{1} << 18;  // what the counters on a GPU have digits for

[[noreturn]] void fail(const char* name, const at::Tensor& tensor, const std::string& expected) {
  throw std::invalid_argument(std::string(name) + ": got " + text_of(tensor) +
                              (tensor.is_contiguous() ? "" : ", not contiguous") + "; expected " + expected);
}

// A gradient or a momentum, flat.
void check_flat(const char* name, const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  const bool stored = type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
  if (tensor.dim() != 1 || !tensor.is_contiguous() || !stored) {
    fail(name, tensor, "a contiguous tensor of one dimension, float32, bfloat16 or float16");
  }
#ifdef SAGE_EXT_WITH_CUDA
  if (!tensor.is_cpu() && !tensor.is_cuda()) fail(name, tensor, "a CPU or a CUDA device");
#else
  if (!tensor.is_cpu()) fail(name, tensor, "a CPU: this build has no other kernels");
#endif
}

// Words of votes: [voters, 2, words], or [2, words] of a single piece.
void check_words(const char* name, const at::Tensor& packed, const at::Tensor& with, bool single) {
  const int64_t dims = single ? 2 : 3;
  const bool fits = packed.dim() == dims && packed.size(dims - 2) == 2 && packed.size(dims - 1) % kVoteWords == 0 &&
                    (single || (packed.size(0) >= 1 && packed.size(0) <= kMaxVoters));
  if (!fits || !packed.is_contiguous() || packed.scalar_type() != at::kInt || packed.device() != with.device() ||
      reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 != 0) {
    fail(name, packed,
         std::string("contiguous int32 of shape ") + (single ? "[2, words]" : "[voters, 2, words]") +
             ", with words in fours, from a 16-byte boundary on, on " + with.device().str());
  }
}

void check_packed(const at::Tensor& packed, const at::Tensor& grad) {
  check_words("packed", packed, grad, false);
  const int64_t words = vote_words(grad.numel(), packed.size(0));
  if (packed.size(2) != words) {
    fail("packed", packed,
         std::to_string(words) + " words for " + std::to_string(grad.numel()) + " coordinates and " +
             std::to_string(packed.size(0)) + " voters");
  }
}

const uint32_t* read(const at::Tensor& packed) { return static_cast<const uint32_t*>(packed.const_data_ptr()); }
uint32_t* written(const at::Tensor& packed) { return static_cast<uint32_t*>(packed.mutable_data_ptr()); }

// Tells autograd, as an in-place operation does.
void bump_version(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

// Runs `on_cpu(threads)`, or `on_cuda(stream)` on the tensor's device.
template <typename OnCpu, typename OnCuda>
void dispatch(const at::Tensor& tensor, const OnCpu& on_cpu, [[maybe_unused]] const OnCuda& on_cuda) {
#ifdef SAGE_EXT_WITH_CUDA
  if (tensor.is_cuda()) {
    const c10::cuda::CUDAGuard guard(tensor.device());
    return on_cuda(c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream());
  }
#endif
  if (tensor.is_cpu()) on_cpu(num_threads());
}

}  // namespace

void PackVotes::run(const at::Tensor& grad, const std::optional<at::Tensor>& exp_avg, const at::Tensor& packed,
                    double momentum) {
  check_flat("grad", grad);
  if (exp_avg.has_value()) {
    check_flat("exp_avg", *exp_avg);
    if (exp_avg->numel() != grad.numel() || exp_avg->device() != grad.device()) {
      fail("exp_avg", *exp_avg, "the gradient's length and device");
    }
  }
  check_packed(packed, grad);
  Beta::check("momentum", momentum);
  const int64_t voters = packed.size(0), words = packed.size(2);
  const MomentumCoefficients k = momentum_coefficients(momentum);
  const auto ballot = [&]<typename Ballot>(Ballot made) {
    made.grad = grad.const_data_ptr();
    made.numel = grad.numel();
    made.grad_dtype = made.exp_avg_dtype = dtype_of(grad);
    if (exp_avg.has_value()) {
      made.exp_avg = exp_avg->mutable_data_ptr();
      made.exp_avg_dtype = dtype_of(*exp_avg);
    }
    return made;
  };
  dispatch(
      grad, [&](int threads) { cpu::pack_votes(ballot(cpu::Ballot{}), k, written(packed), voters, words, threads); },
      [&](auto stream) {
#ifdef SAGE_EXT_WITH_CUDA
        cuda::pack_votes(ballot(cuda::Ballot{}), k, written(packed), voters, words, stream);
#else
        (void)stream;
#endif
      });
  bump_version(packed);
  if (exp_avg.has_value()) bump_version(*exp_avg);
}

void CountVotes::run(const at::Tensor& received, const at::Tensor& result) {
  check_words("received", received, received, false);
  check_words("result", result, received, true);
  const int64_t voters = received.size(0), words = received.size(2);
  if (result.size(1) != words) fail("result", result, "the words of a piece, " + std::to_string(words));
  dispatch(
      received, [&](int threads) { cpu::count_votes(read(received), written(result), voters, words, threads); },
      [&](auto stream) {
#ifdef SAGE_EXT_WITH_CUDA
        cuda::count_votes(read(received), written(result), voters, words, stream);
#else
        (void)stream;
#endif
      });
  bump_version(result);
}

void UnpackVotes::run(const at::Tensor& packed, const at::Tensor& grad) {
  check_flat("grad", grad);
  check_packed(packed, grad);
  const int64_t voters = packed.size(0), words = packed.size(2);
  void* data = grad.mutable_data_ptr();
  dispatch(
      grad,
      [&](int threads) { cpu::unpack_votes(read(packed), data, dtype_of(grad), grad.numel(), voters, words, threads); },
      [&](auto stream) {
#ifdef SAGE_EXT_WITH_CUDA
        cuda::unpack_votes(read(packed), data, dtype_of(grad), grad.numel(), voters, words, stream);
#else
        (void)stream;
#endif
      });
  bump_version(grad);
}

}  // namespace sage_ext::ops
