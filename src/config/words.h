// Words for messages and the reference: the nearest of some names to one that a person mistyped, lists, limits.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "config/fields.h"

namespace polaron {

// Letters to insert, delete, change or swap with their neighbour to get from one to the other (optimal string
// alignment).
std::size_t edit_distance(std::string_view a, std::string_view b);

// The candidate with the smallest distance, the first among equals; empty when there is none or none is near.
std::string_view nearest_name(std::string_view name, std::span<const std::string> candidates);

// "a", "b" and "c".
std::string quoted_list(std::span<const std::string> names);

// " of at least 1", " above 0", " from 0 to 1", " of at least 0 and below 1"; nothing where there are no limits. To be
// put behind "a number".
std::string limits_text(const Info& info);

}  // namespace polaron
