// GPT-2's own vocabulary files, turned into polaron's by a way of its own beside data/prepare_text.py.
#pragma once

#include <string>
#include <string_view>

#include "data/vocabulary.h"

namespace polaron::testing_data {

// Base64 (RFC 4648, section 4, with padding).
std::string base64_of(std::string_view bytes);

// From the two files that GPT-2's authors and Hugging Face publish: encoder.json or vocab.json, and vocab.bpe or
// merges.txt. Throws Error(Exit::data).
Vocabulary gpt2_vocabulary(const std::string& vocabulary_path, const std::string& merges_path);

}  // namespace polaron::testing_data
