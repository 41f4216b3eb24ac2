#include "cuda/backend.h"

#include <stdexcept>

#include "cuda/device.h"
#include "cuda/families.h"
#include "cuda/gemm.h"

namespace polaron::cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index)
      : device_(make_device(index)),
        gemm_(*device_),
        embedding_(make_embedding_ops(*device_)),
        norm_(make_norm_ops(*device_)),
        linear_(make_linear_ops(*device_, gemm_)),
        mix_(make_mix_ops(*device_)),
        attention_(make_attention_ops(*device_)),
        loss_(make_loss_ops(*device_)),
        elementwise_(make_elementwise_ops(*device_)),
        matrix_(make_matrix_ops(*device_, gemm_)) {
    gemm_.set_timing(false);
  }

  Device& device() override { return *device_; }
  EmbeddingOps& embedding() override { return *embedding_; }
  NormOps& norm() override { return *norm_; }
  LinearOps& linear() override { return *linear_; }
  MixOps& mix() override { return *mix_; }
  AttentionOps& attention() override { return *attention_; }
  LossOps& loss() override { return *loss_; }
  ElementwiseOps& elementwise() override { return *elementwise_; }
  MatrixOps& matrix() override { return *matrix_; }

  std::int64_t scratch_bytes(const Workload& workload) override {
    return static_cast<std::int64_t>(Gemm::kWorkspaceBytes) + embedding_scratch_bytes(workload) +
           norm_scratch_bytes(workload) + linear_scratch_bytes(workload) + mix_scratch_bytes(workload) +
           attention_scratch_bytes(workload) + loss_scratch_bytes(workload) + elementwise_scratch_bytes(workload) +
           matrix_scratch_bytes(workload);
  }

  std::vector<std::byte> tuned() override { return gemm_.plans(); }
  bool set_tuned(std::span<const std::byte> choices) override { return gemm_.set_plans(choices); }
  bool set_timing(bool on) override {
    gemm_.set_timing(on);
    return true;
  }
  bool set_tf32(bool on) override {
    gemm_.set_tf32(on);
    return true;
  }

 private:
  std::unique_ptr<Device> device_;  // first: the families' memory is its
  Gemm gemm_;
  std::unique_ptr<EmbeddingOps> embedding_;
  std::unique_ptr<NormOps> norm_;
  std::unique_ptr<LinearOps> linear_;
  std::unique_ptr<MixOps> mix_;
  std::unique_ptr<AttentionOps> attention_;
  std::unique_ptr<LossOps> loss_;
  std::unique_ptr<ElementwiseOps> elementwise_;
  std::unique_ptr<MatrixOps> matrix_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(int index) { return std::make_unique<CudaBackend>(index); }

}  // namespace polaron::cuda
