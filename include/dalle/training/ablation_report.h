// The table and the picture of scripts/ablations.sh: the last validation of each variant's runs, mean and spread over seeds,
// and the same held-out pictures through one model of each variant.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/config/fields.h"

namespace dalle::training {

/// A line "NAME | what it is | key=value key=value" of a variants file.
struct Variant {
  std::string name;
  std::string description;
  std::vector<std::string> assignments;
};

/// Blank lines and lines from # on are left out. Throws ConfigError for a line without its three parts.
std::vector<Variant> read_variants(const std::filesystem::path& path);

struct AblationReportOptions {
  std::filesystem::path runs;
  std::filesystem::path variants;
  int64_t seeds = 3;
  std::filesystem::path table;
  std::filesystem::path picture;
  int64_t pictures = 10;

  static void visit_fields(auto& self, auto&& field) {
    field("runs", self.runs, "folder with the run directories NAME-seedN");
    field("variants", self.variants, "the variants file");
    field("seeds", self.seeds, "runs of a variant, seeds from 0", {.min = 1});
    field("table", self.table, "Markdown file to write; empty = print only");
    field("picture", self.picture, "PNG to write; empty = none");
    field("pictures", self.pictures, "held-out pictures in it", {.min = 1, .max = 64});
  }
};

/// Writes the files and returns the table. Runs without a finished last validation are left out and counted. Throws
/// DataError where there is none at all.
std::string make_ablation_report(const AblationReportOptions& options);

}  // namespace dalle::training
