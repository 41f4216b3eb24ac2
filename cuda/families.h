// How the CUDA backend is put together: one maker a family of ops. The families know nothing of each other. An object
// serves one stream at a time (it keeps scratch memory between calls).
#pragma once

#include <memory>

#include "backend/backend.h"
#include "cuda/gemm.h"

namespace polaron::cuda {

inline constexpr std::int64_t kLinearChunkBytes = std::int64_t{32} << 20U;

std::unique_ptr<EmbeddingOps> make_embedding_ops(Device& device);
std::unique_ptr<NormOps> make_norm_ops(Device& device);
// gemm outlives the ops. chunk_bytes: scratch for gradients of activations that are found in place, a part that fits
// into the device's cache.
std::unique_ptr<LinearOps> make_linear_ops(Device& device, Gemm& gemm, std::int64_t chunk_bytes = kLinearChunkBytes);
std::unique_ptr<MixOps> make_mix_ops(Device& device);
std::unique_ptr<AttentionOps> make_attention_ops(Device& device);
std::unique_ptr<LossOps> make_loss_ops(Device& device);
std::unique_ptr<ElementwiseOps> make_elementwise_ops(Device& device);
std::unique_ptr<MatrixOps> make_matrix_ops(Device& device, Gemm& gemm);

// What a family keeps on the device between the calls of such a run, at most, in bytes (Backend::scratch_bytes).
std::int64_t embedding_scratch_bytes(const Workload& workload);
std::int64_t norm_scratch_bytes(const Workload& workload);
std::int64_t linear_scratch_bytes(const Workload& workload, std::int64_t chunk_bytes = kLinearChunkBytes);
std::int64_t mix_scratch_bytes(const Workload& workload);
std::int64_t attention_scratch_bytes(const Workload& workload);
std::int64_t loss_scratch_bytes(const Workload& workload);
std::int64_t elementwise_scratch_bytes(const Workload& workload);
// Opens cuSOLVER where the workload needs it. Throws Error(Exit::device) where that cannot be.
std::int64_t matrix_scratch_bytes(const Workload& workload);

}  // namespace polaron::cuda
