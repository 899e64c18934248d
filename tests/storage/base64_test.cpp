#include "dalle/storage/base64.h"

#include <gtest/gtest.h>

namespace dalle::storage {
namespace {

TEST(Base64, MatchesRfc4648AndRoundTripsAllBytes) {
  const std::pair<std::string, std::string> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : vectors) {
    EXPECT_EQ(encode_base64(bytes), text);
    EXPECT_EQ(decode_base64(text), bytes);
  }
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  EXPECT_EQ(decode_base64(encode_base64(all)), all);
}

TEST(Base64, RefusesOtherText) {
  for (const char* text : {"Zg=", "Z===", "Zg==Zg==", "Z!==", "Zm9\n", "===="})
    EXPECT_FALSE(decode_base64(text)) << text;
}

}  // namespace
}  // namespace dalle::storage
