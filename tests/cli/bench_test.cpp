// The benchmarks that need no config: they run, and what they write can be read.
#include <algorithm>
#include <cmath>
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

// What the five steps of the Polar Express (arXiv 2505.16932) make of a singular value.
double polar_express(double sigma) {
  constexpr double kSteps[][3] = {{8.156554524902461, -22.48329292557795, 15.878769915207462},
                                  {4.042929935166739, -2.808917465908714, 0.5000178451051316},
                                  {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
                                  {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
                                  {2.3465413258596377, -1.7097828382687081, 0.42323551169305323}};
  for (const auto& [a, b, c] : kSteps) sigma *= a + sigma * sigma * (b + c * sigma * sigma);
  return sigma;
}

TEST(Bench, orthogonalize_reads_what_was_put_out) {
  const Workspace folder;
  expect_ended(folder.run({"bench", "orthogonalize", "--size", "32", "--columns", "48", "--repeats", "2", "--device",
                           "cpu", "--threads", "1", "--json", "out.json"}),
               0);
  double squares = 0, sum = 0, put_out = 0;
  for (int j = 1; j <= 32; ++j) squares += 1.0 / j;
  for (int j = 1; j <= 32; ++j) {
    const double sigma = 1 / std::sqrt(j);
    sum += sigma;
    put_out += sigma * polar_express(sigma / (1.02 * std::sqrt(squares)));
  }
  const json results = json::parse(folder.read("out.json")).at("results");
  int low = 0;
  for (const json& each : results) {
    EXPECT_EQ(each.contains("captured_by_output"), each.at("method") != "exact") << each;
    if (each.at("spectrum") != "i^-0.5" || each.at("method") == "exact") continue;
    const double captured = each.at("captured").get<double>();
    const double measured = each.at("captured_by_output").get<double>();
    if (each.at("method") == "Newton-Schulz, full") {
      EXPECT_NEAR(measured, put_out / sum, 1e-4) << "of these singular values it is known";
    } else if (each.at("method") == "SVD, full") {
      EXPECT_NEAR(measured, 1.0, 1e-5);
    } else {
      // The steps end between 0.859 and 1.141, so much below and above the exact polar factor; of several singular
      // values the mean is closer.
      const double tolerance = each.at("rank") < 8 ? 0.142 : 0.08;
      EXPECT_NEAR(measured / captured, 1.0, tolerance) << each;
      ++low;
    }
  }
  EXPECT_EQ(low, 4 * 4) << "ranks and sketches";
}

}  // namespace
}  // namespace polaron::test
