// Settings of a run that goes on otherwise than it began.
#pragma once

#include <string>
#include <vector>

namespace polaron {

// One sentence for each setting that changes the training and differs between two effective configs (to_json):
// "optimizer.matrices.rank was 256, is now "1/4"". Left out: what changes no number but for the order of sums (names,
// devices, threads, the cut into micro-batches), what only watches or saves, and the names of data files, for which the
// data's fingerprint speaks. Error(Exit::data) where one is not JSON.
std::vector<std::string> config_changes(const std::string& before, const std::string& now);

}  // namespace polaron
