// str(a, b, ...): the concatenation of everything that has operator<<.
#pragma once

#include <sstream>
#include <string>

namespace dalle {

template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace dalle
