// How the CUDA backend is put together: one maker a family of ops. The families know nothing of each other. An object
// serves one stream at a time (it keeps scratch memory between calls).
#pragma once

#include <memory>

#include "backend/backend.h"
#include "cuda/gemm.h"

namespace polaron::cuda {

std::unique_ptr<EmbeddingOps> make_embedding_ops(Device& device);
std::unique_ptr<NormOps> make_norm_ops(Device& device);
// gemm outlives the ops. chunk_bytes: scratch for gradients of activations that are found in place, a part that fits
// into the device's cache.
std::unique_ptr<LinearOps> make_linear_ops(Device& device, Gemm& gemm,
                                           std::int64_t chunk_bytes = std::int64_t{32} << 20U);
std::unique_ptr<MixOps> make_mix_ops(Device& device);
std::unique_ptr<AttentionOps> make_attention_ops(Device& device);
std::unique_ptr<LossOps> make_loss_ops(Device& device);
std::unique_ptr<ElementwiseOps> make_elementwise_ops(Device& device);
std::unique_ptr<MatrixOps> make_matrix_ops(Device& device, Gemm& gemm);

}  // namespace polaron::cuda
