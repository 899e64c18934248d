// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace dalle {

/// "12,292,840,960"
std::string grouped_digits(int64_t number);

/// Three significant digits with an SI prefix: scaled(1.95e9, "B") is "1.95 GB", scaled(97, "FLOP") is "97 FLOP".
std::string scaled(double value, const std::string& unit);

}  // namespace dalle
