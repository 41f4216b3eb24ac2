// The benchmarks that need no config: they run, and what they write can be read.
#include <set>
#include <string>
#include <tuple>

#include "support.h"

namespace polaron::test {
namespace {
using nlohmann::json;

TEST(Bench, regression_writes_the_best_of_its_rates_and_all_of_them) {
  const Workspace folder;
  const Outcome outcome = folder.run({"bench", "regression", "--rows", "6", "--columns", "9", "--steps", "10",
                                      "--repeats", "1", "--device", "cpu", "--threads", "1", "--json", "out.json"});
  expect_ended(outcome, 0);
  EXPECT_TRUE(contains(outcome.out, "low-rank MSGD, rank 3")) << outcome.out;
  const json results = json::parse(folder.read("out.json"));
  EXPECT_EQ(results.at("rows"), 6);
  EXPECT_EQ(results.at("cols"), 9);
  std::set<std::tuple<double, std::string, double>> places;
  for (const json& each : results.at("results")) {
    EXPECT_GT(each.at("last").get<double>(), 0.0);
    places.emplace(each.at("alpha"), each.at("method"), each.at("lr"));
  }
  EXPECT_EQ(results.at("results").size(), 3U * 4U * 13U) << "tails of noise, methods (ranks 3 and 1), rates";
  EXPECT_EQ(places.size(), results.at("results").size());
}

TEST(Bench, orthogonalize_tells_what_each_subspace_keeps) {
  const Workspace folder;
  const Outcome outcome = folder.run({"bench", "orthogonalize", "--size", "32", "--columns", "48", "--repeats", "1",
                                      "--device", "cpu", "--threads", "1", "--json", "out.json"});
  expect_ended(outcome, 0);
  double columns = 0, exact = 0;
  const json results = json::parse(folder.read("out.json"));
  for (const json& each : results.at("results")) {
    const double captured = each.at("captured").get<double>(), residual = each.at("residual").get<double>();
    EXPECT_GT(captured, 0.0);
    EXPECT_LT(captured, 1.1);  // Newton-Schulz overshoots
    EXPECT_GE(residual, 0.0);
    EXPECT_LE(residual, 1.0);
    if (each.at("rank") != 8 || each.at("spectrum") != "i^-1") continue;
    if (each.at("method") == "columns") columns = captured;
    if (each.at("method") == "exact") exact = captured;
  }
  EXPECT_GT(columns, 0.0);
  EXPECT_GT(exact, columns);
}

}  // namespace
}  // namespace polaron::test
