// Whether the data that a run is validated on goes with what it trains on.
#pragma once

#include <string>

#include "data/vocabulary.h"

namespace polaron {

// Throws Error(Exit::usage), naming the files, where the two patterns share one (by its canonical path), for that
// validation would be of what was learned by heart; and where the shards to validate on have a vocabulary beside them
// whose ids mean something else than in `vocabulary`, training's (null: not known). Error(Exit::data) as
// expand_pattern() and Vocabulary::find_beside().
void check_splits(const std::string& training, const std::string& validation, const Vocabulary* vocabulary);

}  // namespace polaron
