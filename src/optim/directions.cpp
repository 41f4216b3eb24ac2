#include "optim/directions.h"

#include <string>
#include <string_view>

#include "optim/newton_schulz_tables.h"

namespace polaron {
namespace {

Sketch sketch_kind(SketchKind kind, bool tall) {
  switch (kind) {
    case SketchKind::columns:
      return Sketch::columns;
    case SketchKind::columns_authors:
      return tall ? Sketch::leading_columns : Sketch::columns;
    case SketchKind::gaussian:
    case SketchKind::power:
      break;
  }
  return Sketch::gaussian;
}

BasisMethod basis_method(BasisKind kind) {
  switch (kind) {
    case BasisKind::householder:
      return BasisMethod::householder;
    case BasisKind::cholesky_qr:
      return BasisMethod::cholesky_qr;
    case BasisKind::automatic:
      break;
  }
  return BasisMethod::automatic;
}

}  // namespace

SketchRule sketch_rule(const OptimizerSettings& settings, bool tall) {
  const bool power = settings.sketch == SketchKind::power;
  return {sketch_kind(settings.sketch, tall), power ? static_cast<int>(settings.power_iterations) : 0,
          basis_method(settings.basis)};
}

NewtonSchulzSpec newton_schulz_spec(const OptimizerSettings& settings) {
  NewtonSchulzSpec spec = newton_schulz_spec(settings.coefficients, static_cast<int>(settings.newton_schulz_steps));
  // Not `automatic`: assign_optimizers() has settled it.
  if (settings.newton_schulz_precision == NewtonSchulzPrecision::bf16) spec.dtype = DType::bf16;
  return spec;
}

PhiloxKey sketch_key(std::uint64_t seed, std::int64_t step, const ParameterTable& table, std::size_t parameter,
                     std::size_t block, bool shared_columns) {
  constexpr std::string_view attention = ".attention.";
  const std::string& name = table[parameter].name;
  const std::size_t at = shared_columns ? name.find(attention) : std::string::npos;
  if (at != std::string::npos) {  // q's
    parameter = table.index(name.substr(0, at + attention.size()) + "qkv.weight");
    block = 0;
  }
  return make_key(seed, RandomPurpose::sketch, static_cast<std::uint64_t>(step),
                  static_cast<std::uint32_t>(parameter * 8 + block));
}

}  // namespace polaron
