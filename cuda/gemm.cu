#include "cuda/gemm.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "cuda/gemm_library.h"

namespace polaron::cuda {
namespace {

constexpr int kTimedRuns = 4;      // of each; the fastest counts
constexpr float kClearly = 0.97F;  // a later one must be that much faster than an earlier one: less may be noise

class TimedEvent {
 public:
  TimedEvent() { check(cudaEventCreateWithFlags(&handle_, cudaEventDefault), "cudaEventCreateWithFlags"); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;
  ~TimedEvent() { cudaEventDestroy(handle_); }
  void record(cudaStream_t stream) { check(cudaEventRecord(handle_, stream), "cudaEventRecord"); }
  float milliseconds_since(const TimedEvent& start) {
    check(cudaEventSynchronize(handle_), "cudaEventSynchronize");
    float milliseconds = 0.0F;
    check(cudaEventElapsedTime(&milliseconds, start.handle_, handle_), "cudaEventElapsedTime");
    return milliseconds;
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

// What plans() writes: a header, then the choices. The format changes with Choice, and with what the numbers of a
// GemmKind mean.
struct Header {
  std::array<char, 7> magic{'p', 'l', 'n', 'g', 'e', 'm', 'm'};
  char format = '3';
  std::uint64_t library_version = 0;
  std::array<char, 64> device{};
  std::uint64_t count = 0;
};
struct Choice {
  GemmKind kind;
  GemmAlgorithm algorithm;
};

struct Plan {
  GemmDescription description;
  GemmAlgorithm algorithm;
};
// What a function of the library said.
struct Refusal {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  const char* function = "";
  // Of calls of the kind, and not of a device that fails or lacks memory.
  bool lasts() const {
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
           status == CUBLAS_STATUS_ARCH_MISMATCH;
  }
};

}  // namespace

class Gemm::Implementation {
 public:
  explicit Implementation(Device& device) : device_(device) {
    header_.library_version = library_.version();
    std::strncpy(header_.device.data(), device.info().name.c_str(), header_.device.size() - 1);
  }

  // Success, or why no algorithm of the library's queues the call.
  Refusal run(Stream& stream, GemmCall call) {
    call.tf32 = call.tf32 && tf32_ && call.a.dtype == DType::f32;
    require_sound(call);
    if (workspace_.data() == nullptr) workspace_ = DeviceBuffer(device_, kWorkspaceBytes);
    const GemmKind kind = kind_of(call);
    if (const auto known = refused_.find(kind); known != refused_.end()) return known->second;
    const auto found = plans_.find(kind);
    if (found == plans_.end()) return plan_and_queue(stream, call, kind);
    const Plan& plan = found->second;
    library_.set_addresses(plan.description, call);
    library_.check(queue(stream, call, plan.description, plan.algorithm, call.c), "cublasLtMatmul", &call);
    return {};
  }

  void check(const Refusal& refusal, const GemmCall& call) const {
    library_.check(refusal.status, refusal.function, &call);
  }

  std::vector<std::byte> plans() const {
    Header header = header_;
    header.count = choices_.size();
    std::vector<std::byte> bytes(sizeof(Header) + choices_.size() * sizeof(Choice));
    std::memcpy(bytes.data(), &header, sizeof(Header));
    std::size_t at = sizeof(Header);
    for (const auto& [kind, algorithm] : choices_) {
      const Choice choice{kind, algorithm};
      std::memcpy(bytes.data() + at, &choice, sizeof(Choice));
      at += sizeof(Choice);
    }
    return bytes;
  }

  bool set_plans(std::span<const std::byte> bytes) {
    Header header;
    if (bytes.size() >= sizeof(Header)) std::memcpy(&header, bytes.data(), sizeof(Header));
    const bool of_gemm = bytes.size() >= sizeof(Header) && header.magic == header_.magic;
    if (of_gemm && header.format != header_.format) return false;
    if (!of_gemm || bytes.size() - sizeof(Header) != header.count * sizeof(Choice)) {
      throw Error(Exit::data, "The stored choices of GEMM algorithms (" + std::to_string(bytes.size()) +
                                  " bytes) are damaged. Remove them: the choices are made again.");
    }
    if (header.library_version != header_.library_version || header.device != header_.device) return false;
    for (std::size_t at = sizeof(Header); at < bytes.size(); at += sizeof(Choice)) {
      Choice choice;
      std::memcpy(&choice, bytes.data() + at, sizeof(Choice));
      choices_.insert_or_assign(choice.kind, choice.algorithm);
    }
    plans_.clear();
    return true;
  }

  void set_timing(bool on) { timing_ = on; }
  void set_tf32(bool on) { tf32_ = on; }
  std::size_t kinds() const { return plans_.size(); }

 private:
  // The choice that is known; else, or where that is refused, the fastest algorithm or the library's favourite.
  Refusal plan_and_queue(Stream& stream, const GemmCall& call, const GemmKind& kind) {
    GemmDescription description = library_.describe(call);
    const auto chosen = choices_.find(kind);
    if (chosen != choices_.end() && library_.can_run(description, chosen->second)) {
      const GemmAlgorithm known = chosen->second;
      const Refusal refusal = queue_first(stream, call, kind, description, std::span(&known, 1));
      if (!refusal.lasts()) return refusal;
    }
    cublasStatus_t status{};
    std::vector<GemmAlgorithm> offered = library_.algorithms(description, call, kWorkspaceBytes, status);
    if (status == CUBLAS_STATUS_SUCCESS && offered.empty()) status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status != CUBLAS_STATUS_SUCCESS) return refuse(kind, {status, "cublasLtMatmulAlgoGetHeuristic"});
    if (timing_ && offered.size() > 1) offered = {fastest(stream, call, description, offered)};
    return refuse(kind, queue_first(stream, call, kind, description, offered));
  }

  // Queues the first that is not refused when it is to run, as some are that the library offers, and keeps it, with the
  // description, as the plan of its kind.
  Refusal queue_first(Stream& stream, const GemmCall& call, const GemmKind& kind, GemmDescription& description,
                      std::span<const GemmAlgorithm> algorithms) {
    cublasStatus_t status{};
    for (const GemmAlgorithm& algorithm : algorithms) {
      status = queue(stream, call, description, algorithm, call.c);
      if (Refusal{status}.lasts()) continue;
      if (status != CUBLAS_STATUS_SUCCESS) break;
      choices_.insert_or_assign(kind, algorithm);
      plans_.emplace(kind, Plan{std::move(description), algorithm});
      return {};
    }
    return {status, "cublasLtMatmul"};
  }

  Refusal refuse(const GemmKind& kind, const Refusal& refusal) {
    if (refusal.lasts()) refused_.emplace(kind, refusal);
    return refusal;
  }

  // The algorithm that took the least time. A result that the call adds to is left alone: its runs go to memory of
  // their own. Otherwise they leave there what the call itself overwrites.
  GemmAlgorithm fastest(Stream& stream, const GemmCall& call, const GemmDescription& description,
                        const std::vector<GemmAlgorithm>& offered) {
    DeviceBuffer own;
    void* result = call.c;
    if (reads_c(call) && call.addend == nullptr) {
      const std::int64_t elements = (call.batch - 1) * call.c_batch_stride + (call.m - 1) * call.c_stride + call.n;
      try {
        own = DeviceBuffer(device_, static_cast<std::size_t>(elements) * size_of(call.c_dtype));
      } catch (const Error&) {
        return offered.front();  // no room: the library's favourite
      }
      result = own.data();
    }
    TimedEvent start, stop;
    const GemmAlgorithm* best = nullptr;
    float least = 0.0F;
    for (const GemmAlgorithm& algorithm : offered) {
      // The first run, which loads the kernel, does not count. Some that are offered cannot run: they are left out.
      if (queue(stream, call, description, algorithm, result) != CUBLAS_STATUS_SUCCESS) continue;
      float milliseconds = 0.0F;
      for (int run = 0; run < kTimedRuns; ++run) {
        start.record(handle_of(stream));
        library_.check(queue(stream, call, description, algorithm, result), "cublasLtMatmul", &call);
        stop.record(handle_of(stream));
        const float taken = stop.milliseconds_since(start);
        milliseconds = run == 0 ? taken : std::min(milliseconds, taken);
      }
      if (best == nullptr || milliseconds < kClearly * least) {
        best = &algorithm;
        least = milliseconds;
      }
    }
    return best == nullptr ? offered.front() : *best;
  }

  cublasStatus_t queue(Stream& stream, const GemmCall& call, const GemmDescription& description,
                       const GemmAlgorithm& algorithm, void* result) {
    return library_.queue(description, call, algorithm,
                          {result, workspace_.data(), kWorkspaceBytes, handle_of(stream)});
  }

  Device& device_;
  GemmLibrary library_;
  Header header_;
  DeviceBuffer workspace_;
  bool timing_ = true;
  bool tf32_ = false;
  std::map<GemmKind, Plan> plans_;
  std::map<GemmKind, GemmAlgorithm> choices_;
  std::map<GemmKind, Refusal> refused_;
};

Gemm::Gemm(Device& device) : implementation_(std::make_unique<Implementation>(device)) {}
Gemm::~Gemm() = default;

void Gemm::operator()(Stream& stream, const GemmCall& call) {
  if (call.m <= 0 || call.n <= 0 || call.batch <= 0) return;
  implementation_->check(implementation_->run(stream, call), call);
}
bool Gemm::attempt(Stream& stream, const GemmCall& call) {
  if (call.m <= 0 || call.n <= 0 || call.batch <= 0) return true;
  const auto refusal = implementation_->run(stream, call);
  if (refusal.lasts()) return false;
  implementation_->check(refusal, call);
  return true;
}
void Gemm::set_timing(bool on) { implementation_->set_timing(on); }
void Gemm::set_tf32(bool on) { implementation_->set_tf32(on); }
std::vector<std::byte> Gemm::plans() const { return implementation_->plans(); }
bool Gemm::set_plans(std::span<const std::byte> plans) { return implementation_->set_plans(plans); }
std::size_t Gemm::kinds() const { return implementation_->kinds(); }

}  // namespace polaron::cuda
