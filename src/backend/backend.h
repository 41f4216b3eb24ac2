// A backend: a device and the op sets on it. model/, optim/ and train/ are written on this class and know no device.
#pragma once

#include <memory>
#include <string>

#include "backend/device.h"
#include "backend/model_ops.h"
#include "backend/optimizer_ops.h"

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
};

}  // namespace polaron
