#include "cpu/cpu_backend.h"

#include "cpu/families.h"

namespace polaron {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads)
      : device_(cpu::make_device(threads)),
        embedding_(cpu::make_embedding_ops()),
        norm_(cpu::make_norm_ops()),
        linear_(cpu::make_linear_ops()),
        mix_(cpu::make_mix_ops()),
        attention_(cpu::make_attention_ops()),
        loss_(cpu::make_loss_ops()),
        elementwise_(cpu::make_elementwise_ops()),
        matrix_(cpu::make_matrix_ops()) {}

  Device& device() override { return *device_; }
  EmbeddingOps& embedding() override { return *embedding_; }
  NormOps& norm() override { return *norm_; }
  LinearOps& linear() override { return *linear_; }
  MixOps& mix() override { return *mix_; }
  AttentionOps& attention() override { return *attention_; }
  LossOps& loss() override { return *loss_; }
  ElementwiseOps& elementwise() override { return *elementwise_; }
  MatrixOps& matrix() override { return *matrix_; }

 private:
  std::unique_ptr<Device> device_;
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

std::unique_ptr<Backend> make_cpu_backend(int threads) { return std::make_unique<CpuBackend>(threads); }

}  // namespace polaron
