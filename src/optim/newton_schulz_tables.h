// The Newton-Schulz coefficient tables that a config can name.
#pragma once

#include <span>
#include <string_view>

#include "backend/optimizer_ops.h"

namespace polaron {

// "polar_express" (the default), "jordan", "you", "classic", "torch".
std::span<const std::string_view> newton_schulz_names();

// The table of that name; `steps` 0 is the table's own number. Beyond its rows the last one repeats. An unknown name or
// a negative number throws Error(Exit::usage).
//   polar_express  5 steps of Amsel et al., "The Polar Express" (arXiv 2505.16932), as modded-nanogpt computed them
//                  (safety 2e-2, cushion 2); divides by 1.02 norm + 1e-6. Singular values from 1e-3 of that divisor
//                  up end in [0.859, 1.141].
//   jordan         Keller Jordan's quintic, 5 steps of one row; from 1e-2 up in [0.682, 1.134].
//   you            YouJiacheng's 5 rows; from 1e-2 up in [0.978, 1.032], smaller ones left behind.
//   classic        (2, -1.5, 0.5), 12 steps: converges to 1.
//   torch          jordan as torch.optim.Muon has it: divides by max(norm, 1e-7) instead of norm + 1e-7.
NewtonSchulzSpec newton_schulz_spec(std::string_view name, int steps = 0);

}  // namespace polaron
