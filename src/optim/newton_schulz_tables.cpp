#include "optim/newton_schulz_tables.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

#include "base/error.h"

namespace polaron {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"polar_express", "jordan", "you", "classic", "torch"};

NewtonSchulzSpec table(std::string_view name) {
  const NewtonSchulzRow jordan{3.4445F, -4.7750F, 2.0315F};
  if (name == "polar_express") {
    return {.table = {{8.156554524902461F, -22.48329292557795F, 15.878769915207462F},
                      {4.042929935166739F, -2.808917465908714F, 0.5000178451051316F},
                      {3.8916678022926607F, -2.772484153217685F, 0.5060648178503393F},
                      {3.285753657755655F, -2.3681294933425376F, 0.46449024233003106F},
                      {2.3465413258596377F, -1.7097828382687081F, 0.42323551169305323F}},
            .steps = 5,
            .norm_factor = 1.02F,
            .norm_eps = 1e-6F};
  }
  if (name == "jordan") return {.table = {jordan}, .steps = 5};
  if (name == "you") {
    return {.table = {{4.0848F, -6.8946F, 2.9270F},
                      {3.9505F, -6.3029F, 2.6377F},
                      {3.7418F, -5.5913F, 2.3037F},
                      {2.8769F, -3.1427F, 1.2046F},
                      {2.8366F, -3.0525F, 1.2012F}},
            .steps = 5};
  }
  if (name == "classic") return {.table = {{2.0F, -1.5F, 0.5F}}, .steps = 12};
  if (name == "torch") return {.table = {jordan}, .steps = 5, .clamp_norm = true};
  throw Error(Exit::usage,
              fmt::format("There is no Newton-Schulz table \"{}\"; there are: {}.", name, fmt::join(kNames, ", ")));
}

}  // namespace

std::span<const std::string_view> newton_schulz_names() { return kNames; }

NewtonSchulzSpec newton_schulz_spec(std::string_view name, int steps) {
  NewtonSchulzSpec spec = table(name);
  if (steps < 0) throw Error(Exit::usage, fmt::format("Newton-Schulz cannot take {} steps.", steps));
  if (steps > 0) spec.steps = steps;
  return spec;
}

}  // namespace polaron
