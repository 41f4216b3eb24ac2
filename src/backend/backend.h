// A backend: a device and the op sets on it. model/, optim/ and train/ are written on this class and know no device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/device.h"
#include "backend/model_ops.h"
#include "backend/optimizer_ops.h"
#include "backend/workload.h"

namespace polaron {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device& device() = 0;
  virtual EmbeddingOps& embedding() = 0;
  virtual NormOps& norm() = 0;
  virtual LinearOps& linear() = 0;
  virtual MixOps& mix() = 0;
  virtual AttentionOps& attention() = 0;
  virtual LossOps& loss() = 0;
  virtual ElementwiseOps& elementwise() = 0;
  virtual MatrixOps& matrix() = 0;

  // Device memory that the ops keep between calls in a run of this workload, beside what they are given: bytes, an
  // upper bound close to what is then allocated. 0 where ops keep none on the device.
  virtual std::int64_t scratch_bytes(const Workload& /*workload*/) { return 0; }

  // Choices that results may depend on in their last bits and that the backend makes when an op first runs (of GEMM
  // algorithms, say), for set_tuned() in other processes and in runs that resume this one. Empty where there are none.
  virtual std::vector<std::byte> tuned() { return {}; }
  // Takes choices over from a tuned(). False, and nothing is changed, where they were made for another device or
  // library version or are in another version's format; Error(Exit::data) for bytes that no tuned() gave.
  virtual bool set_tuned(std::span<const std::byte> choices) { return choices.empty(); }
  // From now on new choices are made by timing, so that another run may choose otherwise, or by a rule that gives the
  // same each time (initially). Returns whether this backend makes any.
  virtual bool set_timing(bool /*on*/) { return false; }
  // From now on matrix products of fp32 may round what they multiply to TF32, 10 bits after the point, wherever the op
  // says no more than fp32 of itself: the linear layers', and of the optimizers' those with a sketch or a basis.
  // Initially they may not. Returns whether this backend has such products.
  virtual bool set_tf32(bool /*on*/) { return false; }
};

}  // namespace polaron
