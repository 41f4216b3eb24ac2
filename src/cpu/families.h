// How the CPU backend is put together: one maker a family of ops. The families know nothing of each other.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace polaron::cpu {

// Threads are OpenMP's (set by make_device, for the whole process); every op is deterministic for a given number of
// threads, and where its contract says so for any number.
std::unique_ptr<Device> make_device(int threads);  // 0: one a core this process may run on

std::unique_ptr<EmbeddingOps> make_embedding_ops();
std::unique_ptr<NormOps> make_norm_ops();
std::unique_ptr<LinearOps> make_linear_ops();
std::unique_ptr<MixOps> make_mix_ops();
std::unique_ptr<AttentionOps> make_attention_ops();
std::unique_ptr<LossOps> make_loss_ops();
std::unique_ptr<ElementwiseOps> make_elementwise_ops();
std::unique_ptr<MatrixOps> make_matrix_ops();

}  // namespace polaron::cpu
