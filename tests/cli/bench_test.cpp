// The benchmarks that need no config: they run, and what they write can be read.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "support.h"

namespace polaron::test {
namespace {
using nlohmann::json;

TEST(Bench, regression_writes_the_best_of_its_rates_and_all_of_them) {
  const Workspace folder;
  const Outcome outcome =
      folder.run({"bench", "regression", "--rows", "6", "--columns", "9", "--steps", "60", "--repeats", "1",
                  "--tolerances", "0.9,0.5", "--device", "cpu", "--threads", "1", "--json", "out.json"});
  expect_ended(outcome, 0);
  EXPECT_TRUE(contains(outcome.out, "low-rank MSGD, rank 3")) << outcome.out;
  const json results = json::parse(folder.read("out.json"));
  EXPECT_EQ(results.at("rows"), 6);
  EXPECT_EQ(results.at("cols"), 9);
  EXPECT_EQ(results.at("tolerances"), json({0.9, 0.5}));
  // Of each tail and method the fewest steps to each tolerance, and the lowest end with its rate.
  struct Best {
    std::vector<int> steps;
    double last = 1e300, rate = 0;
  };
  std::map<std::pair<double, std::string>, Best> best;
  std::set<std::tuple<double, std::string, double>> places;
  for (const json& each : results.at("results")) {
    const double last = each.at("last").get<double>();
    EXPECT_GT(last, 0.0);
    places.emplace(each.at("alpha"), each.at("method"), each.at("lr"));
    const auto steps = each.at("steps").get<std::vector<int>>();
    ASSERT_EQ(steps.size(), 2U);
    EXPECT_LE(steps[0], steps[1]) << "a smaller norm was reached first: " << each;
    Best& found = best[{each.at("alpha"), each.at("method")}];
    if (found.steps.empty()) found.steps = steps;
    for (std::size_t i = 0; i < 2; ++i) found.steps[i] = std::min(found.steps[i], steps[i]);
    if (last < found.last) found.last = last, found.rate = each.at("lr");
  }
  EXPECT_EQ(results.at("results").size(), 3U * 4U * 13U) << "tails of noise, methods (ranks 3 and 1), rates";
  EXPECT_EQ(places.size(), results.at("results").size());
  EXPECT_LE((best[{2.0, "MSGD"}].steps[0]), 60) << "nothing is ever reached";
  const std::string title = "noise of tail index ";
  double alpha = 0;
  std::istringstream lines(outcome.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(title)) alpha = std::stod(line.substr(title.size()));
    const std::string method = line.substr(0, line.find("  "));
    const auto row = best.find({alpha, method});
    if (row == best.end()) continue;
    std::string steps[2];
    double last = 0, rate = 0;
    std::istringstream(line.substr(method.size())) >> steps[0] >> steps[1] >> last >> rate;
    for (std::size_t i = 0; i < 2; ++i) {
      const int fewest = row->second.steps[i];
      EXPECT_EQ(steps[i], fewest > 60 ? "never" : std::to_string(fewest)) << line;
    }
    EXPECT_NEAR(last, row->second.last, 5.001e-4) << line;
    EXPECT_NEAR(rate, row->second.rate, 1e-5 * rate) << line;
    best.erase(row);
  }
  EXPECT_TRUE(best.empty()) << "not all are in the tables";
}

TEST(Bench, orthogonalize_tells_what_each_subspace_keeps) {
  const Workspace folder;
  const Outcome outcome = folder.run({"bench", "orthogonalize", "--size", "32", "--columns", "48", "--repeats", "1",
                                      "--device", "cpu", "--threads", "1", "--json", "out.json"});
  expect_ended(outcome, 0);
  const json results = json::parse(folder.read("out.json")).at("results");
  ASSERT_EQ(results.size(), 4U * (2U + 4U * 5U)) << "spectra, both in full and ranks 2 to 16, subspaces";
  std::map<std::pair<std::string, int>, json> exact;
  for (const json& each : results) {
    if (each.at("method") == "exact") exact[{each.at("spectrum"), each.at("rank")}] = each;
  }
  for (const json& each : results) {
    const double captured = each.at("captured").get<double>(), residual = each.at("residual").get<double>();
    EXPECT_GT(captured, 0.0) << each;
    if (each.at("rank") == 32) {
      EXPECT_NEAR(captured, 1.0, each.at("method") == "SVD, full" ? 1e-5 : 0.15) << each;
      EXPECT_EQ(residual, 0.0) << each;
      continue;
    }
    const json& most = exact.at({each.at("spectrum"), each.at("rank")});  // no subspace of the rank keeps more
    EXPECT_LE(captured, most.at("captured").get<double>() + 1e-5) << each;
    EXPECT_GE(residual, most.at("residual").get<double>() - 1e-5) << each;
    EXPECT_LT(residual, 1.0) << each;
    if (each.at("method") == "columns") {
      EXPECT_LT(captured, most.at("captured").get<double>()) << each;
    }
  }
}

}  // namespace
}  // namespace polaron::test
