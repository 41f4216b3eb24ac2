// The field table as data: one entry a key, for the reference, the schema and suggestions. Internal to src/config.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/fields.h"

namespace polaron {

enum class FieldType : std::uint8_t { boolean, integer, number, string, choice, rank, integers, skips };

struct FieldEntry {
  std::string name;
  FieldType type;
  std::string default_value;    // JSON; of the settings that the catalogue was made from
  std::vector<Choice> choices;  // of a choice
  Info info;
};

struct GroupEntry {
  std::string path;  // "", "training", "optimizer.matrices"
  GroupInfo info;
  std::vector<FieldEntry> fields;
};

// Every group with its fields, in the table's order; "" is the root. "optimizer.overrides" has no fields of its own.
std::vector<GroupEntry> catalogue();

// The fields of one struct, with the values it has as defaults.
std::vector<FieldEntry> entries_of(TransformerConfig values);
std::vector<FieldEntry> entries_of(OptimizerSettings values);

}  // namespace polaron
