// spectra.jsonl of a run on one process: what its numbers say of each other.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support.h"

namespace polaron::test {
namespace {
using nlohmann::json;

json measuring(const json& matrices) {
  return {{"optimizer", {{"matrices", matrices}}},
          {"diagnostics", {{"spectra", {{"every", 10}, {"ranks", {4, 8, 31}}}}}}};
}

double sum_of(const std::vector<double>& values, std::size_t count) {
  return std::accumulate(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count), 0.0);
}

TEST(Spectra, ranks_and_shares_are_those_of_the_singular_values) {
  const Workspace folder;
  folder.write_data();
  folder.train("a", measuring({{"type", "low_rank_muon"}, {"rank", 8}}));
  const std::vector<json> spectra = folder.spectra("a");
  ASSERT_FALSE(spectra.empty());
  for (const json& line : spectra) {
    const std::string what = line.dump();
    const auto s = line.at("singular_values").get<std::vector<double>>();
    ASSERT_EQ(s.size(), std::min(line.at("rows").get<std::size_t>(), line.at("cols").get<std::size_t>()));
    EXPECT_TRUE(std::is_sorted(s.rbegin(), s.rend())) << what;
    const double nuclear = sum_of(s, s.size());
    const double squares = std::inner_product(s.begin(), s.end(), s.begin(), 0.0);
    EXPECT_NEAR(line.at("stable_rank").get<double>(), squares / (s[0] * s[0]), 1e-9) << what;
    const auto rank_90 = line.at("rank_90").get<std::size_t>();
    ASSERT_GE(rank_90, 1U);
    ASSERT_LE(rank_90, s.size());
    EXPECT_GE(sum_of(s, rank_90), 0.9 * nuclear * (1 - 1e-12)) << what;
    EXPECT_LT(sum_of(s, rank_90 - 1), 0.9 * nuclear) << what;
    double before = 0;
    for (const std::size_t rank : {4U, 8U, 31U}) {  // columns of the larger sketch begin with those of the smaller
      if (rank >= s.size()) {
        EXPECT_FALSE(line.at("captured").contains(std::to_string(rank))) << what;
        continue;
      }
      const double captured = line.at("captured").at(std::to_string(rank)).get<double>();
      EXPECT_GT(captured, before) << what;
      EXPECT_LE(captured, sum_of(s, rank) / nuclear + 1e-6) << "more than the best subspace of rank " << rank << what;
      before = captured;
    }
  }
}

// The exact orthogonalizer makes ones of all singular values but of those that are rounding errors, which stay zero.
double error_of_exact(const json& line, std::size_t rank) {
  const auto s = line.at("singular_values").get<std::vector<double>>();
  const double least = static_cast<double>(s.size()) * std::numeric_limits<float>::epsilon() * s[0];
  const auto zeros =
      rank < s.size() ? 0 : std::count_if(s.begin(), s.end(), [&](double value) { return value < least; });
  return std::sqrt(static_cast<double>(zeros) / static_cast<double>(std::min(rank, s.size())));
}

TEST(Spectra, tell_the_error_of_the_orthogonalizer_for_momenta_only) {
  const Workspace folder;
  folder.write_data();
  const auto momenta = [&](const std::string& name, const json& matrices) {
    folder.train(name, measuring(matrices));
    std::vector<json> result;
    for (const json& line : folder.spectra(name)) {
      EXPECT_EQ(line.contains("orthogonality_error"), line.at("of") == "momentum") << line;
      if (line.at("of") == "momentum") result.push_back(line);
    }
    EXPECT_EQ(result.size(), 6U * 2U) << "matrices, steps";
    return result;
  };
  for (const std::size_t rank : {8U, 32U}) {
    json matrices = {{"type", rank < 32 ? "low_rank_muon" : "muon"}, {"rank", nullptr}};
    if (rank < 32) matrices["rank"] = rank;
    for (const json& line : momenta("newton-schulz-" + std::to_string(rank), matrices)) {
      EXPECT_GT(line.at("orthogonality_error").get<double>(), 0.05) << line;  // its values lie between 0.7 and 1.2
    }
    matrices["orthogonalizer"] = "exact";
    for (const json& line : momenta("exact-" + std::to_string(rank), matrices)) {
      EXPECT_NEAR(line.at("orthogonality_error").get<double>(), error_of_exact(line, rank), 5e-6) << line;
    }
  }
}

}  // namespace
}  // namespace polaron::test
