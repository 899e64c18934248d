#include "dalle/core/enum_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dalle {
namespace {

enum class Fruit { kApple, kPear, kNameless };

}  // namespace

template <>
struct EnumNames<Fruit> {
  static constexpr EnumName<Fruit> values[] = {{Fruit::kApple, "apple"}, {Fruit::kPear, "pear"}};
};

namespace {

TEST(EnumNames, GoBothWays) {
  for (const Fruit fruit : {Fruit::kApple, Fruit::kPear}) {
    Fruit parsed = Fruit::kNameless;
    EXPECT_TRUE(parse_enum(enum_name(fruit), parsed));
    EXPECT_EQ(parsed, fruit);
  }
  EXPECT_EQ(enum_name(Fruit::kPear), "pear");
  EXPECT_EQ(enum_name(Fruit::kNameless), "?");
  EXPECT_THAT(enum_name_list<Fruit>(), ::testing::ElementsAre("apple", "pear"));
}

TEST(EnumNames, AnUnknownNameChangesNothing) {
  for (const char* name : {"", "Apple", "apple ", "?", "plum"}) {
    Fruit fruit = Fruit::kPear;
    EXPECT_FALSE(parse_enum(name, fruit)) << name;
    EXPECT_EQ(fruit, Fruit::kPear) << name;
  }
}

}  // namespace
}  // namespace dalle
