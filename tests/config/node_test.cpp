// The neutral tree: YAML in and out with line numbers, --set, diff.
#include "dalle/config/node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle::config {
namespace {

using ::testing::HasSubstr;
using Kind = Node::Kind;

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

/// Flat text of a tree, so that trees compare in one line: {a: 1, b: ['x', null]}; quoted scalars in '.
std::string flat(const Node& node) {
  std::string text;
  switch (node.kind) {
    case Kind::kNull:
      return "null";
    case Kind::kScalar:
      return node.quoted ? "'" + node.scalar + "'" : node.scalar;
    case Kind::kList:
      for (const auto& item : node.list) text += (text.empty() ? "" : ", ") + flat(item);
      return "[" + text + "]";
    case Kind::kMap:
      for (const auto& [key, child] : node.map) text += (text.empty() ? "" : ", ") + key + ": " + flat(child);
      return "{" + text + "}";
  }
  return text;
}

std::string after_set(const std::string& yaml, const std::vector<std::string>& assignments) {
  Node root = parse_yaml(yaml, "c.yaml");
  for (const auto& assignment : assignments) apply_set(root, assignment);
  return flat(root);
}

TEST(Yaml, KindsQuotesAndOrder) {
  EXPECT_EQ(flat(parse_yaml("b: 1\na: [x, 'y', \"2\", ~]\nc:\n  d: null\ne:\nf: {}\ng: []\n", "c.yaml")),
            "{b: 1, a: [x, 'y', '2', null], c: {d: null}, e: null, f: {}, g: []}");
  EXPECT_EQ(flat(parse_yaml("", "c.yaml")), "null");
}

TEST(Yaml, LinesAreThoseOfTheKeys) {
  const Node root = parse_yaml("# head\na: 1\nsection:\n  b: 2\n\n  list:\n    - x: 1\n    - x: 2\n", "dir/c.yaml");
  EXPECT_EQ(root.find("a")->place(), "dir/c.yaml:2");
  const Node* section = root.find("section");
  EXPECT_EQ(section->place(), "dir/c.yaml:3");
  EXPECT_EQ(section->find("b")->place(), "dir/c.yaml:4");
  EXPECT_EQ(section->find("list")->list[1].find("x")->place(), "dir/c.yaml:8");
  EXPECT_EQ(section->find("none"), nullptr);
  EXPECT_EQ(Node::of_scalar("x").place(), "default");
}

TEST(Yaml, ErrorsNameFileAndLine) {
  EXPECT_THAT(refusal([] { parse_yaml("a: 1\nb: 2\na: 3\n", "c.yaml"); }),
              HasSubstr("c.yaml:3: the key 'a' is given twice"));
  EXPECT_THAT(refusal([] { parse_yaml("s:\n  x: 1\n  x: 1\n", "c.yaml"); }),
              HasSubstr("c.yaml:3: the key 'x' is given twice"));
  EXPECT_THAT(refusal([] { parse_yaml("a: 1\nb: [1, 2\n", "c.yaml"); }), HasSubstr("not valid YAML"));
  EXPECT_THAT(refusal([] { parse_yaml("a: 1\n b: 2\n", "c.yaml"); }), HasSubstr("c.yaml:2: not valid YAML"));
  EXPECT_THAT(refusal([] { parse_yaml("a: 1\n? [x, y]\n: 2\n", "c.yaml"); }),
              HasSubstr("c.yaml:2: a key must be a plain word"));
}

TEST(Yaml, FilesAreReadAndMissingOnesNamed) {
  const testing::TempDirectory scratch("config-yaml");
  write_file(scratch / "c.yaml", "\nlr: 1e-4\n");
  EXPECT_EQ(parse_yaml_file(scratch / "c.yaml").find("lr")->place(), (scratch / "c.yaml").string() + ":2");
  const std::string missing = (scratch / "no.yaml").string();
  EXPECT_THAT(refusal([&] { parse_yaml_file(missing); }), HasSubstr(missing + ": expected a config file"));
  EXPECT_THAT(refusal([&] { parse_yaml_file(scratch.path()); }), HasSubstr("expected a config file"));  // a folder
}

TEST(Yaml, EmittedTextParsesBackToTheSameTree) {
  Node odd = Node::of_map();
  for (const char* text : {"",     " ",   "null",         "~",           "true",  "1e-4",      "-5",
                           "a: b", "- x", "# no comment", "line\nbreak", "tab\t", "quote\" '", "back\\slash",
                           "{}",   "[a]", "*star",        "&and",        "%",     "@",         "gr\xc3\xbc\xc3\x9f",
                           "..."}) {
    odd.set("quoted " + std::to_string(odd.map.size()), Node::of_scalar(text, true));
  }
  for (const char* text : {"1", "-1", "1e-05", "-3.5e+22", "true", "auto", "a_b"}) {
    odd.set("plain " + std::to_string(odd.map.size()), Node::of_scalar(text));
  }
  Node list = Node::of_list();
  list.list = {Node::of_scalar("-1"), Node::of_scalar("a, b", true), Node{}, odd, Node::of_list(), Node::of_map()};
  Node root = Node::of_map();
  root.set("empty list", Node::of_list());
  root.set("empty map", Node::of_map());
  root.set("nothing", Node{});
  root.set("list", list);
  root.set("odd", odd);
  EXPECT_EQ(flat(parse_yaml(emit_yaml(root), "again")), flat(root));
  EXPECT_EQ(emit_yaml(parse_yaml(emit_yaml(root), "again")), emit_yaml(root));
}

TEST(Set, NestedKeysAndListItems) {
  EXPECT_EQ(after_set("a: 1\n", {"a=2"}), "{a: 2}");
  EXPECT_EQ(after_set("s:\n  a: 1\n  b: 2\n", {"s.b=x y"}), "{s: {a: 1, b: x y}}");
  EXPECT_EQ(after_set("l: [{p: 1}, {p: 2}]\n", {"l[1].p=3"}), "{l: [{p: 1}, {p: 3}]}");
  EXPECT_EQ(after_set("l: [1, 2]\n", {"l[0]=7", "l[2]=9"}), "{l: [7, 2, 9]}");  // one past the end adds
  EXPECT_EQ(after_set("l: [[1, 2], [3]]\n", {"l[0][1]=5"}), "{l: [[1, 5], [3]]}");
  EXPECT_EQ(after_set("", {"s.t.u=1", "s.l[0].p=2"}), "{s: {t: {u: 1}, l: [{p: 2}]}}");  // makes what is missing
  EXPECT_EQ(after_set("s:\n", {"s.a=1"}), "{s: {a: 1}}");
  EXPECT_EQ(after_set("a: 1\n", {"a=2", "a=3"}), "{a: 3}");  // the last one holds
}

TEST(Set, ValuesAreYaml) {
  EXPECT_EQ(after_set("", {"a=[x, 1]"}), "{a: [x, 1]}");
  EXPECT_EQ(after_set("", {"a={p: 1, q: [2]}"}), "{a: {p: 1, q: [2]}}");
  EXPECT_EQ(after_set("", {"a=\"1\""}), "{a: '1'}");
  EXPECT_EQ(after_set("a: 1\n", {"a="}), "{a: null}");
  EXPECT_EQ(after_set("", {"a=b=c"}), "{a: b=c}");
}

TEST(Set, PlaceIsTheFlag) {
  Node root = parse_yaml("s: {a: 1}\n", "c.yaml");
  apply_set(root, "s.a={b: [1]}");
  EXPECT_EQ(root.find("s")->find("a")->place(), "--set s.a={b: [1]}");
  EXPECT_EQ(root.find("s")->find("a")->find("b")->list[0].place(), "--set s.a={b: [1]}");
  EXPECT_EQ(root.find("s")->place(), "c.yaml:1");
}

TEST(Set, MalformedAssignmentsAreRefused) {
  for (const char* bad : {"a", "", "=1", ".a=1", "a.=1", "a..b=1", "a[=1", "a[]=1", "a[x]=1", "a[-1]=1", "a[0=1",
                          "a[0]b=1", "a[0].=1", "a[1x]=1", "a[99999999999999999999]=1"}) {
    EXPECT_THAT(refusal([&] { after_set("a: [{}]\n", {bad}); }), HasSubstr("key=value")) << bad;
  }
}

TEST(Set, PathsThatDoNotFitTheTreeAreRefused) {
  EXPECT_THAT(refusal([] { after_set("l: [1]\n", {"l[2]=3"}); }), HasSubstr("an index from 0 to 1"));
  EXPECT_THAT(refusal([] { after_set("l: [1]\n", {"l.x=3"}); }), HasSubstr("a section above 'x'"));
  EXPECT_THAT(refusal([] { after_set("a: 1\n", {"a.b=3"}); }), HasSubstr("a section above 'b'"));
  EXPECT_THAT(refusal([] { after_set("a: {b: 1}\n", {"a[0]=3"}); }), HasSubstr("a list above [0]"));
  EXPECT_THAT(refusal([] { after_set("", {"a=[1"}); }), HasSubstr("--set a=[1"));
}

std::vector<std::string> differences(const std::string& before, const std::string& after) {
  std::vector<std::string> lines;
  for (const auto& [path, old_value, new_value] : diff(parse_yaml(before, "b"), parse_yaml(after, "a"))) {
    lines.push_back(path + ": " + old_value + " -> " + new_value);
  }
  return lines;
}

TEST(Diff, NamesTheLeavesThatDiffer) {
  EXPECT_TRUE(differences("a: 1\ns: {b: [1, 2]}\n", "s: {b: [1, 2]}\na: 1\n").empty());
  EXPECT_THAT(differences("a: 1\ns: {b: [1, {c: 2}], d: x}\n", "a: 2\ns: {b: [1, {c: 3}], d: x}\n"),
              ::testing::ElementsAre("a: 1 -> 2", "s.b[1].c: 2 -> 3"));
  EXPECT_THAT(differences("a: 1\nb: 2\n", "b: 2\nc: 3\n"), ::testing::ElementsAre("a: 1 -> ", "c:  -> 3"));
  EXPECT_THAT(differences("l: [1, 2]\n", "l: [1]\n"), ::testing::ElementsAre("l[1]: 2 -> "));
  EXPECT_THAT(differences("l: []\nm: {}\nn:\n", "l: [1]\nm: {a: 1}\nn: 1\n"),
              ::testing::UnorderedElementsAre("l: [] -> ", "l[0]:  -> 1", "m: {} -> ", "m.a:  -> 1", "n: null -> 1"));
}

}  // namespace
}  // namespace dalle::config
