// A device, matrix ops and a backend that hand everything on to others: what tests derive from to watch or to change
// one thing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace polaron::test {

class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(Device& inner) : inner_(inner) {}  // `inner` must outlive this
  DeviceInfo info() const override { return inner_.info(); }
  void* allocate(std::size_t bytes) override { return inner_.allocate(bytes); }
  void release(void* data, std::size_t bytes) noexcept override { inner_.release(data, bytes); }
  std::unique_ptr<Stream> make_stream() override { return inner_.make_stream(); }
  std::unique_ptr<Event> make_event() override { return inner_.make_event(); }
  void* allocate_host(std::size_t bytes) override { return inner_.allocate_host(bytes); }
  void release_host(void* data) noexcept override { inner_.release_host(data); }
  void upload(Stream& stream, void* device, const void* host, std::size_t bytes) override {
    inner_.upload(stream, device, host, bytes);
  }
  void download(Stream& stream, void* host, const void* device, std::size_t bytes) override {
    inner_.download(stream, host, device, bytes);
  }
  void copy(Stream& stream, void* to, const void* from, std::size_t bytes) override {
    inner_.copy(stream, to, from, bytes);
  }
  void zero(Stream& stream, void* device, std::size_t bytes) override { inner_.zero(stream, device, bytes); }

 private:
  Device& inner_;
};

class ForwardingMatrixOps : public MatrixOps {
 public:
  explicit ForwardingMatrixOps(MatrixOps& inner) : inner_(inner) {}  // `inner` must outlive this
  std::int64_t preferred_group(std::int64_t rows, std::int64_t cols) const override {
    return inner_.preferred_group(rows, cols);
  }
  void momentum_to_stack(Stream& stream, const MomentumRule& rule, const StepGate& gate,
                         std::span<const MatrixView> gradients, std::span<float* const> momentum,
                         float* stack) override {
    inner_.momentum_to_stack(stream, rule, gate, gradients, momentum, stack);
  }
  void newton_schulz(Stream& stream, const StackShape& shape, const NewtonSchulzSpec& spec, float* stack,
                     float* scratch) override {
    inner_.newton_schulz(stream, shape, spec, stack, scratch);
  }
  std::int64_t newton_schulz_scratch(const StackShape& shape, DType dtype) const override {
    return inner_.newton_schulz_scratch(shape, dtype);
  }
  void exact_polar(Stream& stream, const StackShape& shape, float* stack) override {
    inner_.exact_polar(stream, shape, stack);
  }
  void sketch(Stream& stream, const StackShape& shape, std::int64_t rank, Sketch kind, int power,
              std::span<const PhiloxKey> keys, const float* stack, float* sketch) override {
    inner_.sketch(stream, shape, rank, kind, power, keys, stack, sketch);
  }
  void orthonormal_basis(Stream& stream, std::int64_t count, std::int64_t rows, std::int64_t rank, BasisMethod method,
                         float* sketch) override {
    inner_.orthonormal_basis(stream, count, rows, rank, method, sketch);
  }
  void project(Stream& stream, const StackShape& shape, std::int64_t rank, const float* basis, const float* stack,
               float* projected) override {
    inner_.project(stream, shape, rank, basis, stack, projected);
  }
  void update_dense(Stream& stream, const UpdateRule& rule, const StepGate& gate, const float* stack,
                    std::span<const float> scales, std::span<const MatrixView> parameters) override {
    inner_.update_dense(stream, rule, gate, stack, scales, parameters);
  }
  void update_factors(Stream& stream, const UpdateRule& rule, const StepGate& gate, std::int64_t rank,
                      const float* basis, const float* factor, std::span<const float> scales,
                      std::span<const MatrixView> parameters) override {
    inner_.update_factors(stream, rule, gate, rank, basis, factor, scales, parameters);
  }

 private:
  MatrixOps& inner_;
};

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  Device& device() override { return inner_->device(); }
  EmbeddingOps& embedding() override { return inner_->embedding(); }
  NormOps& norm() override { return inner_->norm(); }
  LinearOps& linear() override { return inner_->linear(); }
  MixOps& mix() override { return inner_->mix(); }
  AttentionOps& attention() override { return inner_->attention(); }
  LossOps& loss() override { return inner_->loss(); }
  ElementwiseOps& elementwise() override { return inner_->elementwise(); }
  MatrixOps& matrix() override { return inner_->matrix(); }
  std::int64_t scratch_bytes(const Workload& workload) override { return inner_->scratch_bytes(workload); }
  std::vector<std::byte> tuned() override { return inner_->tuned(); }
  bool set_tuned(std::span<const std::byte> choices) override { return inner_->set_tuned(choices); }
  bool set_timing(bool on) override { return inner_->set_timing(on); }
  bool set_tf32(bool on) override { return inner_->set_tf32(on); }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace polaron::test
